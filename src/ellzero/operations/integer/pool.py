"""The maximum or the average of windows of integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ellzero.errors import InputError
from ellzero.operations.integer.fixed_point import Value, exact_integers, saturated, scaled
from ellzero.operations.integer.operation import IntegerOperation
from ellzero.operations.pool import Pool
from ellzero.operations.shapes import Margins, Sizes, expect
from ellzero.tensors import Shape


class IntegerPool(IntegerOperation):
    """The maximum or the average of windows of each channel, in one or two dimensions.

    A maximum keeps the scale and the zero point. An average has its own, and a weight `multiplier`,
    int32 (area): the factor of a sum of that many values, at the index one less.
    """

    kind: Literal["integer_pool"] = "integer_pool"
    function: Literal["max", "average"]
    kernel: Sizes
    stride: Sizes
    padding: Margins
    dilation: Sizes
    ceil: bool = False
    count_padding: bool = True
    zero: Value = 0
    output_zero: Value = 0
    low: Value = -128
    high: Value = 127
    OPTIONAL = ("multiplier",)
    INTEGERS: ClassVar = {"multiplier": torch.int32}

    @property
    def windows(self) -> Pool:
        """The same windows, of floats."""
        return Pool(
            function=self.function,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil=self.ceil,
            count_padding=self.count_padding,
        )

    @classmethod
    def of(cls, pool: Pool, **settings: object) -> IntegerPool:
        """The same windows as a pooling of floats, of integers."""
        return cls.model_validate(pool.model_dump() | {"kind": "integer_pool"} | settings)

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        values = inputs[0].double()
        if self.function == "max":
            return saturated(self.windows.run([values], {}))
        sums, counts = self.sums(values - self.zero), self.counts(inputs[0].shape[2:])
        multiplier = weights["multiplier"][counts.to(inputs[0].device) - 1]
        value = scaled(sums, multiplier) + self.output_zero
        return saturated(value, self.low, self.high)

    def sums(self, values: Tensor) -> Tensor:
        """Sums over the windows, int64 (N, channels, places ...)."""
        area = math.prod(self.kernel)
        whole = self.windows.model_copy(update={"count_padding": True, "ceil": False})
        padded = F.pad(values, self._sides(values.shape[2:]))
        averages = whole.model_copy(update={"padding": (0,) * len(self.kernel)})
        return exact_integers(averages.run([padded], {}) * area)

    def _sides(self, places: Sequence[int]) -> list[int]:
        """Zeros around each axis so that every window, the last ones too, lies within."""
        result = self.windows.shape([(1, *places)], {})[1:]
        axes = zip(places, result, self.kernel, self.stride, self.padding, strict=True)
        ends = [(n - 1) * s + k - p - size for size, n, k, s, p in axes]
        sides = zip(reversed(self.padding), reversed(ends), strict=True)
        return [side for pair in sides for side in pair]

    def counts(self, shape: Sequence[int]) -> Tensor:
        """How many values each window's average is of, int64 (places ...).

        Padding counts where it is asked to, but not what a last window reaches beyond it.
        """
        counted = self.padding if self.count_padding else (0,) * len(self.padding)
        along = []
        result = self.windows.shape([(1, *shape)], {})[1:]
        for axis, places in enumerate(result):
            start = torch.arange(places) * self.stride[axis] - self.padding[axis]
            end = (start + self.kernel[axis]).clamp(max=shape[axis] + counted[axis])
            along.append(end - start.clamp(min=-counted[axis]))
        return along[0] if len(along) == 1 else along[0][:, None] * along[1]

    def work(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape) -> int:
        windows = self.windows.work(inputs, {}, output)
        return super().work(inputs, weights, output) + windows

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if len(self.kernel) > 2:
            raise InputError("a pooling of integers in 3 dimensions")
        if ("multiplier" in weights) != (self.function == "average"):
            raise InputError("an average has multipliers, a maximum has none")
        area = math.prod(self.kernel)
        expect(weights.get("multiplier", (area,)), (area,), "the multiplier")
        return self.windows.shape(inputs, {})
