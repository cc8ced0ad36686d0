"""A dense layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.layer import plus_bias, weighted
from ellzero.c.product import product
from ellzero.c.text import loop
from ellzero.errors import InputError
from ellzero.operations.add import Add
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.layout import Layout
from ellzero.operations.matmul import MatMul
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.operations.permute import Permute
from ellzero.operations.reshape import Reshape
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

    def repeats(self, inputs: Sequence[Shape], output: Shape) -> int:
        return math.prod(output[:-1])

    def c_body(self, context: Context) -> str:
        """The product at one place after the other."""
        *places, features = context.inputs[0]
        weight = context.weights["weight"]
        rows = weight.T.contiguous() if self.transposed else weight
        matrix, storage = weighted(context, np.arange(features), lanes=True, entries=rows)
        channel = f"m / {math.prod(places[1:])}" if places else ""

        def store(total: str, row: str) -> str:
            return context.finish(total + plus_bias(context, row), f"y[{row}]", channel or row)

        body = product(matrix, storage, context.choice, "x", store)
        if not places:
            return body
        return loop("m", math.prod(places), f"{body}\nx += {features};\ny += {matrix.rows};")


def _linear(call: Call) -> Recognized | None:
    layout = call.layout("input")
    if layout is None or layout.axis(-1) is None:
        return None
    weight, bias = call["weight"], call["bias"]
    if call.is_weight("weight") and (bias is None or call.is_weight("bias")):
        return Recognized(Linear(), [call["input"]], {"weight": weight, "bias": bias})
    return _of_computed_weights(call, layout)


def _of_computed_weights(call: Call, layout: Layout) -> Recognized | None:
    """A product with what is made of weights, such as a part of one: attention's projections."""
    matrix, bias = call.layout("weight"), call.layout("bias")
    if matrix is None or matrix.has_batch or len(matrix.dims) != 2:
        return None
    if call["bias"] is not None and (bias is None or bias.has_batch):
        return None
    out, features = matrix.shape
    after = layout.resized(-1, out)
    if call.is_weight("weight"):
        product = Recognized(Linear(), [call["input"]], {"weight": call["weight"]})
    else:
        columns = Recognized(Permute(order=(1, 0)), [call["weight"]])
        rows = Recognized(Reshape(size=(*layout.shape[:-1], features)), [call["input"]])
        if len(layout.shape) == 1:
            rows = Recognized(Reshape(size=(1, features)), [call["input"]])
        product = Recognized(MatMul(), [rows, columns])
    product = Recognized(Reshape(size=after.shape), [product], layout=after)
    if call["bias"] is None:
        return product
    size = (*[1] * (len(after.shape) - 1), out)
    shift = Recognized(Reshape(size=size), [call["bias"]])
    return Recognized(Add(), [product, shift], layout=after)


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
