"""Whether one value is equal to, less or more than another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Recognized, Recognizer
from ellzero.operations.pairwise import Pairwise, paired

Relation = Literal["equal", "not_equal", "less", "at_most", "more", "at_least"]

RELATIONS = {
    "equal": (torch.eq, "=="),
    "not_equal": (torch.ne, "!="),
    "less": (torch.lt, "<"),
    "at_most": (torch.le, "<="),
    "more": (torch.gt, ">"),
    "at_least": (torch.ge, ">="),
}
"""Of each relation what says it in torch and in C."""


class Compare(Pairwise):
    """Whether a relation holds between two values: true or false, in C 1 or 0."""

    kind: Literal["compare"] = "compare"
    relation: Relation

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        calls: list[tuple[Relation, Any]] = [
            ("equal", aten.eq),
            ("not_equal", aten.ne),
            ("less", aten.lt),
            ("at_most", aten.le),
            ("more", aten.gt),
            ("at_least", aten.ge),
        ]
        table: dict[Any, Recognizer] = dict.fromkeys(
            (aten.bitwise_not.default, aten.logical_not.default), _not
        )
        for relation, call in calls:
            table |= dict.fromkeys((call.Tensor, call.Scalar), _comparison(relation))
        return table

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return RELATIONS[self.relation][0](*inputs)

    def known(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Nothing is known of a comparison with what is not known."""
        one, other = inputs
        return self.run(inputs, weights).double().masked_fill((one + other).isnan(), math.nan)

    def c_pair(self, *values: str) -> str:
        return f"{f' {RELATIONS[self.relation][1]} '.join(values)} ? 1.0f : 0.0f"


def _comparison(relation: Relation) -> Recognizer:
    return lambda call: paired(call, Compare(relation=relation), numbers=True)


def _not(call: Call) -> Recognized | None:
    return truth(call, "equal") if call.result.dtype == torch.bool else None


def truth(call: Call, relation: Relation = "not_equal") -> Recognized | None:
    """Whether a value is something else than zero."""
    return paired(call, Compare(relation=relation), call["self"], 0, numbers=True)
