"""Terms of a penalty on one weight; where it is sharded, on the rows that are here or on all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from ellzero.chunks import chunks
from ellzero.penalties import Form, Term
from ellzero.penalties.penalty import wide
from ellzero.regularizers.together import Terms
from ellzero.sharding import local, part_of, summed, whole
from ellzero.tensors import is_distributed
from ellzero.weights import Weight


class Act(NamedTuple):
    """Terms that act on a weight, each with the factor of its strength."""

    weight: Weight
    terms: Terms
    gathered: bool = False
    """Whether they need all of a sharded weight, which is gathered for that; each process then does
    the same, and takes what is of its own part."""

    def values(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Values of the terms, each with the tensor whose part here it is of."""
        parameter = self.weight.parameter
        w = whole(parameter) if self.gathered else local(parameter)
        for term, scale in self.terms:
            yield _value(term, w) * scale, w if self.gathered else parameter


def acts_by_form(
    terms: Sequence[Term], weights: Sequence[Weight], scales: Sequence[float]
) -> dict[Form, list[Act]]:
    """What acts on weights in each form that occurs.

    Args:
        terms: all of them.
        weights: in the selection's order.
        scales: the layer scale of each weight.
    """
    return {
        form: [
            act
            for weight, scale in zip(weights, scales, strict=True)
            for act in _acts_on(weight, [(t, scale if t.layer_scaled else 1.0) for t in acting])
        ]
        for form in get_args(Form)
        if (acting := [term for term in terms if term.form == form])
    }


def at(acts: Sequence[Act], progress: float) -> list[Act]:
    """The same with the numbers that the terms' schedules have at a progress in [0, 1]."""
    now = {term: term.at(progress) for act in acts for term, _ in act.terms}
    return [a._replace(terms=[(now[term], scale) for term, scale in a.terms]) for a in acts]


def _acts_on(weight: Weight, terms: Terms) -> Iterator[Act]:
    """The terms that act on a weight, those apart that need all of a sharded one."""
    if not is_distributed(weight.parameter):
        yield Act(weight, terms)
        return
    by_parts = [(term, scale) for term, scale in terms if term.by_parts]
    others = [(term, scale) for term, scale in terms if not term.by_parts]
    if by_parts:
        yield Act(weight, by_parts)
    if others:
        yield Act(weight, others, gathered=True)


def total(acts: Iterable[Act], device: torch.device) -> Tensor:
    """The sum of all values, over all parts of sharded weights, in one message to the ranks.

    Autograd takes it for the sum over the parts that are here, so that each process's backward adds
    the gradient of its own part, once.
    """
    pairs = [pair for act in acts for pair in act.values()]
    values, of = [value for value, _ in pairs], [tensor for _, tensor in pairs]
    total = torch.zeros((), device=device)
    for value, sum_ in zip(values, summed(values, of), strict=True):
        total = total + (value if sum_ is value else value + (sum_ - value).detach()).to(device)
    return total


@contextmanager
def gathered(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Sharded tensors as wholes, to be changed in place; each process keeps what is of its part."""
    wholes = tuple(map(whole, tensors))
    yield wholes
    for tensor, changed in zip(tensors, wholes, strict=True):
        local(tensor).copy_(local(part_of(changed, tensor)))


def _value(term: Term, w: Tensor) -> Tensor:
    if torch.is_grad_enabled() or not term.elementwise:
        return term.value(wide(w))
    return torch.stack([term.value(wide(part)) for (part,) in chunks(w)]).sum()
