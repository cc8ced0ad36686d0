"""All values of an example in one dimension."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from ellzero.operations.axes import Axes, regrouped
from ellzero.operations.operation import COPY, Operation
from ellzero.tensors import Shape


class Flatten(Operation):
    """All values of an example in one dimension, the last index fastest."""

    kind: Literal["flatten"] = "flatten"
    C = "same"
    FOLLOWS = True
    PER_VALUE = COPY
    VIEW = True

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].flatten(1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return (math.prod(inputs[0]),)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        return regrouped(inputs[0], output)
