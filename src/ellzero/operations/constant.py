"""A value that is the same for every input: a weight that is added, a mask, positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from ellzero.operations.axes import Axes, letters
from ellzero.operations.operation import COPY, Operation
from ellzero.tensors import Shape


class Constant(Operation):
    """A weight as it is, one example: it goes with each example of a batch."""

    kind: Literal["constant"] = "constant"
    REQUIRED = ("value",)
    ARITY = 0
    FOLLOWS = True
    PER_VALUE = COPY

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return weights["value"].unsqueeze(0)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return weights["value"]

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        return Axes((), names, {"value": names})
