"""The network's input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from ellzero.operations.axes import Axes, letters
from ellzero.operations.operation import Operation
from ellzero.operations.shapes import Size
from ellzero.tensors import Shape


class Input(Operation):
    """The network's input: one tensor."""

    kind: Literal["input"] = "input"
    size: tuple[Size, ...]
    ARITY = 0

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return self.size

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        return Axes((), letters(len(output)))
