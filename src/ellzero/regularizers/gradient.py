"""The penalty's gradient in the plain form: each term adds its own, in few passes."""

from __future__ import annotations

from collections.abc import Iterable

from ellzero.chunks import joined_chunks
from ellzero.penalties.penalty import wide
from ellzero.regularizers.together import Work, together


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
