"""The sum of two values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Recognized, Recognizer
from ellzero.operations.pairwise import Pairwise, paired


class Add(Pairwise):
    """The sum of two values: a residual connection, or positions that are added."""

    kind: Literal["add"] = "add"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.add.Tensor: _add}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0] + inputs[1]

    def c_pair(self, *values: str) -> str:
        return " + ".join(values)


def _add(call: Call) -> Recognized | None:
    return paired(call, Add()) if call["alpha"] == 1 else None
