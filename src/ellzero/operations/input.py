"""An input of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch

from ellzero.operations.axes import Axes, letters
from ellzero.operations.operation import COPY, Operation
from ellzero.operations.shapes import Size
from ellzero.tensors import Shape

InputType = Literal["float", "int64", "int32", "int16", "int8", "uint8", "bool"]
"""What an input's numbers are; "float" is any precision."""


class Input(Operation):
    """An input of the network: one tensor."""

    kind: Literal["input"] = "input"
    size: tuple[Size, ...]
    dtype: InputType = "float"
    ARITY = 0
    PER_VALUE = COPY

    @staticmethod
    def dtype_of(dtype: torch.dtype) -> InputType:
        """The name of a tensor's dtype."""
        name = str(dtype).removeprefix("torch.")
        return next((known for known in get_args(InputType) if known == name), "float")

    def zeros(self) -> torch.Tensor:
        """A batch of one example, all zeros."""
        dtype = None if self.dtype == "float" else getattr(torch, self.dtype)
        return torch.zeros(1, *self.size, dtype=dtype)

    @property
    def is_integer(self) -> bool:
        """Whether it takes whole numbers, such as tokens."""
        return self.dtype != "float"

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return self.size

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        return Axes((), letters(len(output)))
