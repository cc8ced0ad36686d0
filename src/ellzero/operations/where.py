"""One of two values at each place, by a third."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ellzero.operations.call import Call, aten, is_truth
from ellzero.operations.operation import Recognized, Recognizer
from ellzero.operations.pairwise import Pairwise, paired


class Where(Pairwise):
    """The second value where the first is not 0, else the third."""

    kind: Literal["where"] = "where"
    ARITY: ClassVar[int | None] = 3

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        either = aten.__or__.Tensor, aten.bitwise_or.Tensor, aten.logical_or.default
        chosen = aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar
        filled = aten.masked_fill.Scalar, aten.masked_fill.Tensor
        return {
            **dict.fromkeys(chosen, lambda call: _where(call, "condition", "self", "other")),
            **dict.fromkeys(filled, lambda call: _where(call, "mask", "value", "self")),
            **dict.fromkeys(either, _either),
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        condition, one, other = inputs[0].bool(), *inputs[1:]
        if one.dtype == other.dtype == torch.bool:  # of which onnxruntime can choose none
            return (condition & one) | (~condition & other)
        return torch.where(condition, one, other)

    def known(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Where nothing is known of the condition, both values have to be the same."""
        condition, one, other = inputs
        same = torch.where(one == other, one, math.nan)
        return torch.where(condition.isnan(), same, self.run(inputs, weights))

    def c_pair(self, *values: str) -> str:
        condition, one, other = values
        return f"{condition} != 0.0f ? {one} : {other}"


def _where(call: Call, *roles: str) -> Recognized | None:
    return paired(call, Where(), *(call[role] for role in roles), numbers=True)


def _either(call: Call) -> Recognized | None:
    """Of two truth values, whether one of them is true: the first if it is, else the second."""
    one, other = call["self"], call["other"]
    if not (is_truth(one) and is_truth(other)):
        return None
    return paired(call, Where(), one, one, other)
