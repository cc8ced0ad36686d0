"""The product of two values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.operations.call import aten
from ellzero.operations.operation import Recognizer
from ellzero.operations.pairwise import Pairwise, paired


class Multiply(Pairwise):
    """The product of two values."""

    kind: Literal["multiply"] = "multiply"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.mul.Tensor: lambda call: paired(call, Multiply())}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0] * inputs[1]

    def known(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """A product with 0 is 0, whatever the other value is."""
        zero = (inputs[0] == 0) | (inputs[1] == 0)
        return (inputs[0] * inputs[1]).masked_fill(zero, 0)

    def c_pair(self, one: str, other: str) -> str:
        return f"{one} * {other}"
