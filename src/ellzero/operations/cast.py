"""Whole numbers and truth values as other numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten, result_of
from ellzero.operations.compare import truth
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.tensors import Shape

CASTS = {
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
}
"""Calls that give their argument in another dtype, or on another device."""

NumberType = Literal["float64", "float32", "float16", "bfloat16", "int64", "int32"]


class Cast(Operation):
    """The same numbers in another dtype, as of tokens or a mask: a whole number 1 as 1.0.

    C, which has but floats, has nothing to do.
    """

    kind: Literal["cast"] = "cast"
    dtype: NumberType
    ANY_LAYOUT = True
    ELEMENTWISE = True
    FOLLOWS = True
    C = "same"
    PER_VALUE = COPY
    VIEW = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return dict.fromkeys(CASTS, _cast)

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].to(getattr(torch, self.dtype))

    def known(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """The numbers stay; whole ones could not be NaN where nothing is known."""
        return inputs[0]

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return inputs[0]

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        return Axes((letters(len(output)),), letters(len(output)))


def _cast(call: Call) -> Recognized | None:
    before, after = result_of(call["self"]).dtype, call.result.dtype
    if after == torch.bool:
        return truth(call)
    # of floats something is lost, and of large numbers in few bytes, which C would not lose
    if (
        before.is_floating_point
        or before.is_complex
        or not (after.is_floating_point or after in (torch.int64, torch.int32))
    ):
        return None
    name = str(after).removeprefix("torch.")
    return Recognized(Cast.model_validate({"dtype": name}), [call["self"]])
