"""The decoupled step on one weight: what terms of that form do to it after the optimizer's step."""

from __future__ import annotations

import torch
from torch import Tensor

from ellzero.chunks import chunks
from ellzero.penalties.penalty import wide
from ellzero.regularizers.compiled import Terms


def shrink_(w: Tensor, terms: Terms, rate: float | Tensor) -> None:
    """The step on a weight of float32 or more.

    Args:
        w: the weight, changed in place.
        terms: of form `decoupled`, each with the factor of its strength.
        rate: the learning rate.
    """
    elementwise = [(term, scale) for term, scale in terms if term.elementwise]
    for (part,) in chunks(w) if elementwise else ():
        for term, scale in elementwise:
            term.shrink_(part, rate * scale)
    for term, scale in terms:
        if not term.elementwise:
            term.shrink_(w, rate * scale)


def shrink_half_(w: Tensor, remainder: Tensor, terms: Terms, rate: float | Tensor) -> None:
    """The step on a weight in half precision, as it would be in float32.

    A usual step is smaller than half the distance to the next number, so rounded by itself it would
    never move the weight. What rounding took away is remembered, and owed to the next step.

    Args:
        w: the weight, changed in place.
        remainder: what is owed, float32 of its shape, changed in place.
        terms: as for `shrink_`.
        rate: as for `shrink_`.
    """
    elementwise = [(term, scale) for term, scale in terms if term.elementwise]
    for part, owed in chunks(w, remainder):
        exact = _exact(part, owed)
        for term, scale in elementwise:
            term.shrink_(exact, rate * scale)
        _round_(part, owed, exact)
    for term, scale in terms:
        if not term.elementwise:
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
