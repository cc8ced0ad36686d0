"""A dense layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.layer import plus_bias, pointers, weighted
from ellzero.c.storage import Matrix, Storage
from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.operations.shapes import expect, sizes
from ellzero.tensors import Shape


class Linear(Operation):
    """A dense layer on the last axis, (N, ..., in): weight (out, in), bias (out).

    Transposed, the weight is (in, out).
    """

    kind: Literal["linear"] = "linear"
    transposed: bool = False
    ANY_LAYOUT = True
    REQUIRED = ("weight",)
    OPTIONAL = ("bias",)
    LAYER = "dense"
    C = "body"
    FINISHES = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            aten.linear.default: _linear,
            aten.addmm.default: _added,
            aten.mm.default: lambda call: _transposed(call, "self", "mat2", None),
            aten.matmul.default: lambda call: _transposed(call, "self", "other", None),
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        weight = weights["weight"].T if self.transposed else weights["weight"]
        return F.linear(inputs[0], weight, weights.get("bias"))

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        *places, features = inputs[0]
        rows, columns = sizes(weights["weight"], 2, "the weight")
        if self.transposed:
            rows, columns = columns, rows
        if columns != features:
            raise InputError(f"a weight of {rows} x {columns} for {features} features")
        expect(weights.get("bias", (rows,)), (rows,), "the bias")
        return (*places, rows)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        places = letters(len(output) - 1)
        roles = {"weight": "in out" if self.transposed else "out in", "bias": "out"}
        return Axes((f"{places} in",), f"{places} out", roles, mixes=True)

    def folds_constants(self) -> bool:
        return True

    def c_body(self, context: Context) -> str:
        """Rows one by one, or several in lanes, at one place after the other."""
        *places, features = context.inputs[0]
        matrix, storage = weighted(context, np.arange(features), lanes=True)
        channel = f"at / {math.prod(places[1:])}" if places else ""
        rows = _lanes if storage.lanes > 1 else _one_by_one
        body = pointers(storage) + rows(context, storage, matrix, channel)
        if not places:
            return body
        return loop("at", math.prod(places), f"{body}\nx += {features};\ny += {matrix.rows};")


def _linear(call: Call) -> Recognized | None:
    layout = call.layout("input")
    if layout is None or layout.axis(-1) is None:
        return None
    return Recognized(Linear(), [call["input"]], {"weight": call["weight"], "bias": call["bias"]})


def _added(call: Call) -> Recognized | None:
    if call["alpha"] != 1 or call["beta"] != 1 or call.weight("self").ndim != 1:
        return None
    return _transposed(call, "mat1", "mat2", call["self"])


def _transposed(call: Call, role: str, weight: str, bias: Any) -> Recognized | None:
    """A product with a parameter (in, out)."""
    layout, matrix = call.layout(role), call.weight(weight)
    is_layer = isinstance(matrix, nn.Parameter) and matrix.ndim == 2
    if layout is None or layout.axis(-1) is None or not is_layer:
        return None
    weights = {"weight": call[weight], "bias": bias}
    after = layout.resized(-1, matrix.shape[1])
    return Recognized(Linear(transposed=True), [call[role]], weights, layout=after)


def _one_by_one(context: Context, storage: Storage, matrix: Matrix, channel: str) -> str:
    """One sum after the other.

    Args:
        channel: C expression of the result's channel; empty where it is the row.
    """
    total = storage.values.finish("total") + plus_bias(context, "r")
    walk = storage.walk("x", f"total += {storage.values.read('*w++')} * *p;")
    row = f"float total = 0.0f;\n{walk}\n{context.finish(total, 'y[r]', channel or 'r')}"
    return loop("r", matrix.rows, row)


def _lanes(context: Context, storage: Storage, matrix: Matrix, channel: str) -> str:
    """Rows in lanes: as many sums at once, each with its own weight."""
    lanes = storage.lanes
    sums = _in_vectors if context.choice == "fastest" else _written_out
    row = f"{context.name}_rows[place]" if storage.layout == "sliced" else "place"
    total = storage.values.finish("total[lane]") + plus_bias(context, "row")
    guard = "" if matrix.rows % lanes == 0 else f" && {lanes} * r + lane < {matrix.rows}"
    stores = block(
        f"for (int lane = 0; lane < {lanes}{guard}; ++lane)",
        f"const int place = {lanes} * r + lane;\nconst int row = {row};\n"
        + context.finish(total, "y[row]", channel or "row"),
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
