"""The decoupled step: what terms of that form do to weights after the optimizer's step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ellzero.chunks import joined_chunks
from ellzero.penalties.penalty import wide
from ellzero.regularizers.together import Together, Work, together


def shrink(works: Iterable[Work], ramped: float) -> None:
    """Take the step.

    Args:
        works: each of a weight, changed in place, and in half precision of its remainder beside it,
            float32; with the learning rate.
        ramped: a factor on all terms.
    """
    for group in together(works):
        rate = group.rate * ramped
        if len(group.tensors[0]) > 1:
            _shrink_half(group, rate)
        else:
            _shrink(group, rate)


def _shrink(group: Together, rate: float | Tensor) -> None:
    for (part,) in joined_chunks(group.tensors, written=1) if group.elementwise else ():
        for term, scale in group.elementwise:
            term.shrink_(part, rate * scale)
    for term, scale in group.others:
        for (w,) in group.tensors:
            term.shrink_(w, rate * scale)


def _shrink_half(group: Together, rate: float | Tensor) -> None:
    """The step on weights in half precision, as it would be in float32.

    A usual step is smaller than half the distance to the next number, so rounded by itself it would
    never move the weight. What rounding took away is remembered, and owed to the next step.
    """
    for part, owed in joined_chunks(group.tensors, written=2) if group.elementwise else ():
        exact = _exact(part, owed)
        for term, scale in group.elementwise:
            term.shrink_(exact, rate * scale)
        _round_(part, owed, exact)
    for term, scale in group.others:
        for w, remainder in group.tensors:
            exact = _exact(w, remainder)
            term.shrink_(exact, rate * scale)
            _round_(w, remainder, exact)


def _exact(w: Tensor, owed: Tensor) -> Tensor:
    """The weight with what it is owed; a debt that rounding would show is of an older weight."""
    plain = wide(w)
    exact = plain + owed
    return torch.where(exact.to(w.dtype) == w, exact, plain)


def _round_(w: Tensor, owed: Tensor, exact: Tensor) -> None:
    w.copy_(exact)
    owed.copy_(exact - wide(w))
