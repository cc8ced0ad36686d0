"""The penalty's gradient in the plain form: each term adds its own, in few passes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ellzero.chunks import joined_chunks
from ellzero.penalties.penalty import wide
from ellzero.regularizers.together import Terms, Work, together
from ellzero.sharding import local, part_of, whole


def add_gradients(works: Iterable[Work], ramped: float) -> None:
    """Add the gradient of terms to gradients.

    Args:
        works: each of a gradient, changed in place, and its weight.
        ramped: a factor on all terms.
    """
    for group in together(works):
        # one pass over the memory, however many terms there are
        for into, part in joined_chunks(group.tensors, written=1) if group.elementwise else ():
            total, wide_part = wide(into), wide(part)
            for term, scale in group.elementwise:
                term.add_gradient_(total, wide_part, scale * ramped)
            if total is not into:
                into.copy_(total)
        for term, scale in group.others:
            for gradient, w in group.tensors:
                term.add_gradient_(gradient, w, scale * ramped)


def add_gathered_gradient(w: Tensor, terms: Terms, ramped: float) -> None:
    """Add the gradient of terms that need all of a sharded weight to the part of its `.grad`.

    All processes have to call this. Each computes all of the gradient, for that takes no message.

    Args:
        w: the weight; it is gathered.
        terms: what acts on it.
        ramped: a factor on all terms.
    """
    gathered = whole(w)
    gradient = torch.zeros_like(gathered)
    add_gradients([Work((gradient, gathered), terms)], ramped)
    gradient_of(w).add_(local(part_of(gradient, w)))


def gradient_of(w: Tensor) -> Tensor:
    """The part of a weight's gradient that is here; made, of zeros, where it has none."""
    if w.grad is None:
        w.grad = torch.zeros_like(w)
    return local(w.grad)
