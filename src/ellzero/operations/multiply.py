"""The product of two values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.operations.call import Call, aten, is_truth
from ellzero.operations.operation import Recognized, Recognizer
from ellzero.operations.pairwise import Pairwise, paired


class Multiply(Pairwise):
    """The product of two values."""

    kind: Literal["multiply"] = "multiply"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        both = aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default
        return {
            aten.mul.Tensor: lambda call: paired(call, Multiply()),
            **dict.fromkeys(both, _both),
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0] * inputs[1]

    def known(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """A product with 0 is 0, whatever the other value is."""
        zero = (inputs[0] == 0) | (inputs[1] == 0)
        return (inputs[0] * inputs[1]).masked_fill(zero, 0)

    def c_pair(self, *values: str) -> str:
        return " * ".join(values)


def _both(call: Call) -> Recognized | None:
    """Of two truth values, whether both are true."""
    is_logic = is_truth(call["self"]) and is_truth(call["other"])
    return paired(call, Multiply()) if is_logic else None
