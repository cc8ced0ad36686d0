"""What all operations of integers share: what they take in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ellzero.operations.operation import FUNCTION, Operation
from ellzero.tensors import Shape


class IntegerOperation(Operation):
    """An operation of int8 values. Torch works with them in 8 bytes each, several times over."""

    PER_VALUE: ClassVar[int | None] = 2 * FUNCTION

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        return 8 * super().workspace(inputs, weights, output)
