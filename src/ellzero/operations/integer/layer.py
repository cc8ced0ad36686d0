"""Layers of integers: int8 weights and values, int32 sums, one rounding to int8."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ellzero.errors import InputError
from ellzero.operations.integer.fixed_point import (
    SUM_LIMIT,
    Value,
    exact_integers,
    saturated,
    scaled,
)
from ellzero.operations.integer.operation import IntegerOperation
from ellzero.operations.shapes import (
    Margins,
    Size,
    Sizes,
    dimensions_of,
    expect,
    sizes,
    windows,
)
from ellzero.tensors import Shape


class IntegerLayer(IntegerOperation):
    """What integer layers share: `y = low..high(zero_y + round(m * sum(w * (x - zero_x)) + b)))`.

    Settings `zero` and `output_zero` are the zero points of what it reads and gives, `low` and
    `high` its limits, which an activation narrows. Weights: `weight` int8, `bias` int32 (out), in
    units of the sum, `multiplier` int32 (out), the factor of each output in fixed point.
    """

    zero: Value
    output_zero: Value
    low: Value = -128
    high: Value = 127
    REQUIRED: ClassVar[tuple[str, ...]] = ("weight", "bias", "multiplier")
    INTEGERS: ClassVar = {"weight": torch.int8, "bias": torch.int32, "multiplier": torch.int32}

    def first_sums(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Where each sum begins if `w x` is added up: the bias less `w zero`, int64 (out).

        Raises:
            InputError: a sum that can become more than int32 holds, added up in whatever order.
        """
        rows = weight.flatten(1).long()
        first = bias.long() - self.zero * rows.sum(1)
        largest = first.abs() + 128 * rows.abs().sum(1)
        if len(rows) and int(largest.max()) > SUM_LIMIT:
            row = int(largest.argmax())
            raise InputError(
                f"the sum of output {row} can reach {int(largest[row])}, more than the {SUM_LIMIT} "
                "that int32 holds; prune the layer, or split it"
            )
        return first

    def work(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape) -> int:
        _, *row = weights["weight"]
        return super().work(inputs, weights, output) + math.prod(output) * math.prod(row)

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        """The weight, and what each output is made of, as float64."""
        out, *row = weights["weight"]
        rows = out + math.prod(output) // out
        return super().workspace(inputs, weights, output) + 2 * rows * math.prod(row)

    def _rounded(self, sums: Tensor, weights: Mapping[str, Tensor], axis: int) -> Tensor:
        """Sums without bias, exact as float64, as int8; the outputs lie along the axis."""
        view = [1] * sums.ndim
        view[axis] = -1
        bias, multiplier = (weights[role].long().view(view) for role in ("bias", "multiplier"))
        value = scaled(exact_integers(sums) + bias, multiplier)
        return saturated(value + self.output_zero, self.low, self.high)

    def _expect(self, weights: Mapping[str, Shape], out: int) -> None:
        if self.low > self.high:
            raise InputError(f"limits from {self.low} to {self.high}")
        for role in ("bias", "multiplier"):
            expect(weights[role], (out,), f"the {role}")


class IntegerLinear(IntegerLayer):
    """A dense layer of integers on the last axis, (N, ..., in): weight (out, in)."""

    kind: Literal["integer_linear"] = "integer_linear"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        sums = F.linear(inputs[0].double() - self.zero, weights["weight"].double())
        return self._rounded(sums, weights, -1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        *places, features = inputs[0]
        rows, columns = sizes(weights["weight"], 2, "the weight")
        if columns != features:
            raise InputError(f"a weight of {rows} x {columns} for {features} features")
        self._expect(weights, rows)
        return (*places, rows)


class IntegerConv(IntegerLayer):
    """A convolution of integers in one or two dimensions: weight (out, in / groups, kernel ...).

    What is `before` and `after` an axis counts as zero, which is the zero point of the input.
    """

    kind: Literal["integer_conv"] = "integer_conv"
    stride: Sizes
    before: Margins
    after: Margins
    dilation: Sizes
    groups: Size = 1

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        sides = zip(reversed(self.before), reversed(self.after), strict=True)
        centred = inputs[0].double() - self.zero
        padded = F.pad(centred, [side for pair in sides for side in pair])
        convolve = (F.conv1d, F.conv2d)[len(self.stride) - 1]
        weight = weights["weight"].double()
        sums = convolve(padded, weight, None, self.stride, 0, self.dilation, self.groups)
        return self._rounded(sums, weights, 1)

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        """With the input and what is around it, as float64."""
        channels, *places = inputs[0]
        sides = zip(self.before, places, self.after, strict=True)
        padded = channels * math.prod(map(sum, sides))
        return super().workspace(inputs, weights, output) + 2 * padded

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        settings = {"before": self.before, "after": self.after, "dilation": self.dilation}
        count = dimensions_of(stride=self.stride, **settings)
        if count > 2:
            raise InputError("a convolution of integers in 3 dimensions")
        channels, *places = sizes(inputs[0], 1 + count, "the input")
        out, per_group, *kernel = sizes(weights["weight"], 2 + count, "the weight")
        if channels != per_group * self.groups or out % self.groups:
            raise InputError(
                f"a weight of {out} x {per_group} channels in {self.groups} groups for {channels} "
                "channels"
            )
        self._expect(weights, out)
        padded = [sum(n) for n in zip(self.before, places, self.after, strict=True)]
        none = (0,) * count
        return (out, *windows(padded, kernel, self.stride, none, self.dilation))
