"""Where an integer network begins and ends: floats to int8, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ellzero.operations.integer.fixed_point import Value, saturated
from ellzero.operations.integer.operation import IntegerOperation
from ellzero.tensors import Shape

Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]

REACH = 512.0
"""Quotients are limited to this before they are rounded; int8 with any zero point ends before."""


class Quantize(IntegerOperation):
    """Floats as int8: `q = round(x * (1 / scale)) + zero`, saturated; halves are rounded up.

    In float32, operation by operation, so that C gives the same integers. NaN becomes the least.
    """

    kind: Literal["quantize"] = "quantize"
    scale: Scale
    zero: Value

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        quotient = inputs[0].float() * torch.tensor(1 / self.scale, dtype=torch.float32)
        limited = quotient.nan_to_num(-REACH, REACH, -REACH).clamp(-REACH, REACH)
        # all is positive before it is rounded down, where C rounds towards zero
        rounded = (limited + (REACH + 0.5)).floor().int() - int(REACH)
        return saturated(rounded + self.zero)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return inputs[0]


class Dequantize(IntegerOperation):
    """int8 as floats: `x = (q - zero) * scale`, float32."""

    kind: Literal["dequantize"] = "dequantize"
    scale: Scale
    zero: Value

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return (inputs[0].int() - self.zero).float() * self.scale

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return inputs[0]
