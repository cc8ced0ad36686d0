"""The product of two matrices, for each index of the axes before them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.c.kernel import Context
from ellzero.c.text import loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.layout import Layout
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.tensors import Shape


class MatMul(Operation):
    """Matrix products (..., t, k) x (..., k, s): of two values, none of them a layer's weight.

    Axes before those of the matrices agree, or one of the values has none.
    """

    kind: Literal["matmul"] = "matmul"
    ARITY = 2
    ANY_LAYOUT = True
    C = "body"
    FINISHES = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            aten.matmul.default: lambda call: _matmul(call, "self", "other"),
            aten.bmm.default: lambda call: _matmul(call, "self", "mat2"),
            aten.mm.default: lambda call: _matmul(call, "self", "mat2"),
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        one, other = inputs
        for _ in range(one.ndim - other.ndim):
            other = other.unsqueeze(1)
        for _ in range(other.ndim - one.ndim):
            one = one.unsqueeze(1)
        return one @ other

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        one, other = inputs
        before = max(one[:-2], other[:-2], key=len)
        fits = len(one) > 1 and len(other) > 1 and one[-1] == other[-2]
        if not fits or {one[:-2], other[:-2]} - {before, ()}:
            raise InputError(f"a matrix product of {one} and {other}")
        return (*before, one[len(one) - 2], other[len(other) - 1])

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        before = letters(len(output) - 2)
        one, other = (before if len(shape) == len(output) else "" for shape in inputs)
        read = (f"{one} row inner", f"{other} inner column")
        return Axes(read, f"{before} row column", whole="inner")

    def work(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape) -> int:
        copied = COPY * self.workspace(inputs, weights, output)
        return math.prod(output) * inputs[0][-1] + copied

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        """Both values, for each index of the axes before the matrices."""
        *before, rows, columns = output
        return math.prod(before) * (rows * columns + (rows + columns) * inputs[0][-1])

    def c_body(self, context: Context) -> str:
        *before, rows, columns = context.shape
        inner = context.inputs[0][-1]
        skip = [math.prod(x[-2:]) if len(x) == len(context.shape) else 0 for x in context.inputs]
        total = loop("k", inner, f"total += x[r * {inner} + k] * x2[k * {columns} + s];")
        store = context.finish("total", "*y++", _channel(before))
        each = loop("r", rows, loop("s", columns, f"float total = 0.0f;\n{total}\n{store}"))
        if not before:
            return each
        return loop("m", math.prod(before), f"{each}\nx += {skip[0]};\nx2 += {skip[1]};")


def _channel(before: Sequence[int]) -> str:
    """C expression of the index of the result's first axis."""
    return f"m / {math.prod(before[1:])}" if before else "r"


def _matmul(call: Call, one: str, other: str) -> Recognized | None:
    layouts = call.layout(one), call.layout(other)
    if layouts[0] is None or layouts[1] is None or min(len(x.dims) for x in layouts if x) < 2:
        return None
    matrix = [[layout.axis(dim) for dim in (-2, -1)] for layout in layouts if layout]
    if any(axis is None for axes in matrix for axis in axes):
        return None
    before, others = (layout.dims[:-2] for layout in layouts if layout)
    if before != others and before and others:
        return None
    rows, columns = layouts[0].dims[-2], layouts[1].dims[-1]
    dims = (*(before or others), rows, columns)
    return Recognized(MatMul(), [call[one], call[other]], layout=Layout(dims))
