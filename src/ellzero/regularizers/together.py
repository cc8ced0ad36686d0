"""Weights on which the same terms act alike, worked on together: few launches on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ellzero.penalties import Term

Terms = Sequence[tuple[Term, float]]
"""Terms of a penalty, each with the factor of its strength."""


class Work(NamedTuple):
    """A weight with what is worked on beside it, the terms that act on it, and their rate."""

    tensors: tuple[Tensor, ...]
    terms: Terms
    rate: float | Tensor = 1.0
    """The learning rate, where that matters."""


class Together(NamedTuple):
    """The same of several weights, whose tensors are of the same dtypes on the same device."""

    tensors: list[tuple[Tensor, ...]]
    elementwise: Terms
    """The terms that act on each entry of a weight alone."""
    others: Terms
    rate: float | Tensor
    """A tensor is on the device of the weights."""


def together(works: Iterable[Work]) -> Iterator[Together]:
    """Work, in groups of weights on which the same terms act with the same factors."""
    groups: dict[tuple[object, ...], list[Work]] = {}
    for work in works:
        kinds = [(tensor.device, tensor.dtype) for tensor in work.tensors]
        # terms by identity, for to compare their numbers takes longer
        factors = [(id(term), scale) for term, scale in work.terms]
        groups.setdefault((work.rate, *kinds, *factors), []).append(work)
    for group in groups.values():
        tensors, terms, rate = group[0]
        if isinstance(rate, Tensor):  # not every operation takes a number from the CPU
            rate = rate.to(tensors[0].device, non_blocking=True)
        elementwise = [(term, scale) for term, scale in terms if term.elementwise]
        others = [(term, scale) for term, scale in terms if not term.elementwise]
        yield Together([work.tensors for work in group], elementwise, others, rate)
