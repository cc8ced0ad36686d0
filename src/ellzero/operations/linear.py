"""A dense layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.layer import plus_bias, pointers, weighted
from ellzero.c.storage import Matrix, Storage
from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.operations.shapes import expect, sizes
from ellzero.tensors import Shape


class Linear(Operation):
    """A dense layer on (N, in): weight (out, in), bias (out)."""

    kind: Literal["linear"] = "linear"
    REQUIRED = ("weight",)
    OPTIONAL = ("bias",)
    LAYER = "dense"
    C = "body"
    FINISHES = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.linear.default: _linear}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.linear(inputs[0], weights["weight"], weights.get("bias"))

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (features,) = sizes(inputs[0], 1, "the input")
        rows, columns = sizes(weights["weight"], 2, "the weight")
        if columns != features:
            raise InputError(f"a weight of {rows} x {columns} for {features} features")
        expect(weights.get("bias", (rows,)), (rows,), "the bias")
        return (rows,)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        return Axes(("i",), "o", {"weight": "o i", "bias": "o"}, mixes=True)

    def folds_constants(self) -> bool:
        return True

    def c_body(self, context: Context) -> str:
        """Rows one by one, or several in lanes."""
        matrix, storage = weighted(context, np.arange(context.inputs[0][0]), lanes=True)
        if storage.lanes > 1:
            return pointers(storage) + _lanes(context, storage, matrix)
        total = storage.values.finish("total") + plus_bias(context, "r")
        walk = storage.walk("x", f"total += {storage.values.read('*w++')} * *p;")
        row = f"float total = 0.0f;\n{walk}\n{context.finish(total, 'y[r]', 'r')}"
        return pointers(storage) + loop("r", matrix.rows, row)


def _linear(call: Call) -> Recognized | None:
    if len(call.shape) != 1:
        return None
    return Recognized(Linear(), [call["input"]], {"weight": call["weight"], "bias": call["bias"]})


def _lanes(context: Context, storage: Storage, matrix: Matrix) -> str:
    """Rows in lanes: as many sums at once, each with its own weight."""
    lanes = storage.lanes
    sums = _in_vectors if context.choice == "fastest" else _written_out
    row = f"{context.name}_rows[place]" if storage.layout == "sliced" else "place"
    total = storage.values.finish("total[lane]") + plus_bias(context, "row")
    guard = "" if matrix.rows % lanes == 0 else f" && {lanes} * r + lane < {matrix.rows}"
    stores = block(
        f"for (int lane = 0; lane < {lanes}{guard}; ++lane)",
        f"const int place = {lanes} * r + lane;\nconst int row = {row};\n"
        + context.finish(total, "y[row]", "row"),
    )
    return loop("r", -(-matrix.rows // lanes), f"{sums(storage)}\n{stores}")


def _written_out(storage: Storage) -> str:
    """Sums of a dense block one by one: they stay in registers without a compiler's unrolling."""
    names = [f"total{lane}" for lane in range(storage.lanes)]
    sums = "\n".join(
        f"{name} += {storage.values.read(f'w[{lane}]')} * a;" for lane, name in enumerate(names)
    )
    walk = storage.walk("x", f"const float a = *p;\n{sums}\nw += {storage.lanes};")
    zeros = ", ".join(f"{name} = 0.0f" for name in names)
    return f"float {zeros};\n{walk}\nconst float total[{storage.lanes}] = {{{', '.join(names)}}};"


def _in_vectors(storage: Storage) -> str:
    """Sums of a dense or a sliced block as loops of fixed length, which compilers vectorize."""
    lanes, weight = storage.lanes, storage.values.read("w[lane]")
    each = f"for (int lane = 0; lane < {lanes}; ++lane)"
    if storage.layout == "sliced":
        body = f"{each} total[lane] += {weight} * x[at[lane]];\nw += {lanes};\nat += {lanes};"
    else:
        body = f"const float a = *p;\n{each} total[lane] += {weight} * a;\nw += {lanes};"
    return f"float total[{lanes}] = {{0.0f}};\n{storage.walk('x', body)}"
