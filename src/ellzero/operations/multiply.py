"""The product of two values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.c.kernel import Context, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.tensors import Shape


class Multiply(Operation):
    """The product of two values; an axis of size 1 goes with each index of the other's."""

    kind: Literal["multiply"] = "multiply"
    ARITY = 2
    ELEMENTWISE = True
    FOLLOWS = True
    C = "body"
    FINISHES = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.mul.Tensor: _multiply}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0] * inputs[1]

    def known(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """A product with 0 is 0, whatever the other value is."""
        zero = (inputs[0] == 0) | (inputs[1] == 0)
        return (inputs[0] * inputs[1]).masked_fill(zero, 0)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        one, other = inputs
        if len(one) != len(other) or any(
            a != b and 1 not in (a, b) for a, b in zip(one, other, strict=True)
        ):
            raise InputError(f"a product of {one} and {other}")
        return tuple(map(max, one, other))

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = [f"a{axis}" for axis in range(len(output))]
        read = (
            " ".join(
                "1" if n == 1 < m else name for n, m, name in zip(x, output, names, strict=True)
            )
            for x in inputs
        )
        return Axes(tuple(read), " ".join(names))

    def c_body(self, context: Context) -> str:
        def value(indices: Sequence[str]) -> str:
            return " * ".join(
                f"{x}[{_place(indices, shape)}]"
                for x, shape in zip(("x", "x2"), context.inputs, strict=True)
            )

        return context.each_place(value)


def _place(indices: Sequence[str], shape: Shape) -> str:
    steps = zip(indices, shape, strides(shape), strict=True)
    return " + ".join(f"{i} * {step}" for i, size, step in steps if size > 1) or "0"


def _multiply(call: Call) -> Recognized | None:
    shapes = call.shape_of("self"), call.shape_of("other")
    if not all(shapes) or len(shapes[0]) != len(shapes[1]):
        return None
    return Recognized(Multiply(), [call["self"], call["other"]])
