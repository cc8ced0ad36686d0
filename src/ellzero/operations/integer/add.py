"""The sum of two values of integers, each with a scale of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ellzero.operations.integer.fixed_point import Value, saturated
from ellzero.operations.integer.operation import IntegerOperation
from ellzero.operations.shapes import expect
from ellzero.tensors import Shape

FACTOR_BITS = 21
"""Bits of a factor: 9 bits of a value less its zero point, twice, then fit into 31."""

Factor = Annotated[int, Field(ge=0, le=2**FACTOR_BITS)]


class IntegerAdd(IntegerOperation):
    """`y = low..high(zero_y + round((m1 (x1 - zero1) + m2 (x2 - zero2)) / 2^shift))`."""

    kind: Literal["integer_add"] = "integer_add"
    zeros: tuple[Value, Value]
    factors: tuple[Factor, Factor]
    shift: Annotated[int, Field(ge=1, le=30)]
    output_zero: Value
    low: Value = -128
    high: Value = 127
    ARITY = 2

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        terms = zip(inputs, self.zeros, self.factors, strict=True)
        total = sum(((x.long() - zero) * factor for x, zero, factor in terms), start=0)
        assert isinstance(total, Tensor)
        rounded = (total + (1 << (self.shift - 1))) >> self.shift
        return saturated(rounded + self.output_zero, self.low, self.high)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        expect(inputs[1], inputs[0], "the second value")
        return inputs[0]
