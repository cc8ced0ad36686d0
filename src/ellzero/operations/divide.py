"""The quotient of two values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.operations.call import aten
from ellzero.operations.operation import Recognizer
from ellzero.operations.pairwise import Pairwise, paired


class Divide(Pairwise):
    """The first value divided by the second."""

    kind: Literal["divide"] = "divide"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.div.Tensor: lambda call: paired(call, Divide())}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0] / inputs[1]

    def c_pair(self, *values: str) -> str:
        return " / ".join(values)
