"""More places, or fewer, by interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ellzero.c.arrays import floats, unsigned
from ellzero.c.kernel import Context, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, places
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import FUNCTION, Operation, Recognized, Recognizer
from ellzero.operations.shapes import Sizes, sizes
from ellzero.tensors import Shape

Scales = Annotated[
    tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...],
    Field(min_length=1, max_length=3),
]
LINEAR = ("linear", "bilinear", "trilinear")
"""What torch calls it in one, two and three dimensions."""


class Upsample(Operation):
    """As many places as `size` says, or `scale` times as many, in one to three dimensions.

    Values are those of the nearest places, or linear between them.
    """

    kind: Literal["upsample"] = "upsample"
    mode: Literal["nearest", "linear"]
    size: Sizes | None = None
    scale: Scales | None = None
    align_corners: bool = False
    FOLLOWS = True
    C = "body"
    FINISHES = True
    PER_VALUE = FUNCTION

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        nearest = aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d
        linear = aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d
        return {call.vec: _nearest for call in nearest} | {call.vec: _linear for call in linear}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return self._interpolated(inputs[0], self.size, self.scale)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        given = self.size or self.scale
        if given is None or (self.size and self.scale):
            raise InputError("both a size and a scale, or neither; expected one of them")
        channels, *size = sizes(inputs[0], 1 + len(given), "the input")
        if self.scale is None:
            return (channels, *(self.size or ()))
        scaled = [n * factor for n, factor in zip(size, self.scale, strict=True)]
        if not all(1 <= n < 2**31 for n in scaled):
            raise InputError(f"{size} places scaled by {self.scale}: none are left, or too many")
        return (channels, *map(int, scaled))

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        read, result = (places(len(output) - 1, letter) for letter in "ry")
        return Axes((f"c {read}",), f"c {result}", whole=f"{read} {result}")

    def c_body(self, context: Context) -> str:
        """Each place by tables: from where on it lies, and how far to the next one."""
        steps = strides(context.inputs[0])
        tables = [self._table(context, axis) for axis in range(len(steps) - 1)]

        def value(indices: Sequence[str]) -> str:
            return between(indices[1:], 0, f"{indices[0]} * {steps[0]}")

        def between(indices: Sequence[str], axis: int, place: str) -> str:
            if axis == len(indices):
                return f"x[{place}]"
            (first, share), step, index = tables[axis], steps[axis + 1], indices[axis]
            begin = f"{place} + {first}[{index}] * {step}"
            low = between(indices, axis + 1, begin)
            if share is None:
                return low
            high = between(indices, axis + 1, f"{begin} + {step}")
            return f"({low} * (1.0f - {share}[{index}]) + {high} * {share}[{index}])"

        return context.each_place(value)

    def _table(self, context: Context, axis: int) -> tuple[str, str | None]:
        """Arrays of an axis: the place below each of the result's, and the share of the next."""
        size, count = context.inputs[0][axis + 1], context.shape[axis + 1]
        scale = None if self.scale is None else self.scale[axis : axis + 1]
        # the nearest place depends on rounding: float32, as in the network
        dtype = torch.float32 if self.mode == "nearest" else torch.float64
        line = torch.arange(size, dtype=dtype).view(1, 1, -1)
        result = self._interpolated(line, (count,) if scale is None else None, scale)
        at = result.view(-1).double().numpy()
        first = np.minimum(np.floor(at), max(size - 2, 0) if self.mode == "linear" else size - 1)
        name = f"{context.name}_{axis}"
        table = context.array(unsigned(f"{name}_from", first.astype(np.int64)))
        shares = at - first
        return table, context.array(floats(f"{name}_share", shares)) if shares.any() else None

    def _interpolated(
        self, x: Tensor, size: Sequence[int] | None, scale: Sequence[float] | None
    ) -> Tensor:
        mode, corners = self.mode, None
        if mode == "linear":
            mode, corners = LINEAR[x.ndim - 3], self.align_corners
        return F.interpolate(
            x,
            None if size is None else list(size),
            None if scale is None else list(scale),
            mode,
            align_corners=corners,
        )


def _nearest(call: Call) -> Recognized | None:
    return _upsample(call, mode="nearest")


def _linear(call: Call) -> Recognized | None:
    return _upsample(call, mode="linear", align_corners=call["align_corners"])


def _upsample(call: Call, **settings: Any) -> Recognized | None:
    if not call.shape_of("input"):
        return None
    # a size that is given goes before a scale
    size, scale = call["output_size"], call["scale_factors"]
    given = {"scale": tuple(scale)} if size is None else {"size": tuple(size)}
    return Recognized(Upsample.model_validate(settings | given), [call["input"]])
