"""Flags: a sentence for each way in which a result means less than it seems to, from figures alone.

`ellzero.conclusion` finds the figures; warnings, the record, tables and the report have the
sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ellzero.pruning.budget import Budget
from ellzero.record import Evaluation

WORSE_LOSS = 0.1
"""By how much a reference's loss may exceed the compressed network's; more is no chance."""

STANDARD_ERRORS = 2.0
"""A difference within so many standard errors, to a constant answer or a network, is noise."""

EXPLAINED = 0.1
"""The least share of the targets' variance that a network has to explain."""

STILL_FALLING = 0.05
"""A loss that falls by more than this in the last epoch would have gone on falling."""

HARDLY = "is hardly better than one constant answer"
WORSE = "the budget was met against a reference that is worse than the compressed network"


class Constant(NamedTuple):
    """What the best constant answer scores on validation data, and over how many targets.

    The score is the share of the largest class, or the variance of the targets times -1.
    """

    score: float
    targets: int
    accuracy: bool


def worse_reference(
    budget: Budget, reference: Evaluation, compressed: Evaluation, targets: int
) -> list[str]:
    """A budget that is met against a reference worse than the compressed network, beyond chance.

    Args:
        budget: its own measure is compared.
        reference: what the reference reached on validation data.
        compressed: what the compressed network reached there.
        targets: how many targets an accuracy is a share of.
    """
    if budget.max_accuracy_drop is not None:
        margin = math.sqrt(reference.score * (1 - reference.score) / targets)
        worse = compressed.score - reference.score > margin
        figures = f"accuracy {reference.score:.3f} against {compressed.score:.3f}"
    else:
        worse = reference.loss > (1 + WORSE_LOSS) * compressed.loss
        figures = f"loss {reference.loss:.3g} against {compressed.loss:.3g}"
    if not worse:
        return []
    return [f"{WORSE}, validation {figures}; train the reference longer, or give a trained one"]


def weak_networks(reference: Evaluation, compressed: Evaluation, constant: Constant) -> list[str]:
    """A reference, or what became of a better one, that is hardly better than a constant answer."""
    beaten = f"{HARDLY} (validation"
    figures = _hardly_better(reference, constant)
    if figures is not None:
        return [
            f"the reference {beaten} {figures}), so a drop against it means little; train the "
            "reference longer"
        ]
    figures = _hardly_better(compressed, constant)
    if figures is not None:
        return [
            f"the compressed network {beaten} {figures}), so nothing is left of what the reference "
            "can do; keep more weights, leave small layers out (exclude), or take weaker penalties"
        ]
    return []


def _hardly_better(found: Evaluation, constant: Constant) -> str | None:
    """The figures, where an evaluation does not beat the best constant answer beyond chance."""
    if constant.accuracy:
        share, count = constant.score, constant.targets
        if found.score > share + STANDARD_ERRORS * math.sqrt(share * (1 - share) / count):
            return None
        return f"accuracy {found.score:.3f}, the share of the largest class {share:.3f}"
    if -found.score < (1 - EXPLAINED) * -constant.score:
        return None
    return f"error {-found.score:.3g}, the variance of the targets {-constant.score:.3g}"


def short_reference(losses: Sequence[float]) -> list[str]:
    """A reference that a budget is measured against, and that was not trained to its end.

    Args:
        losses: on validation data, after each epoch of its training.
    """
    advice = "so the budget allows more than it says; train the reference longer"
    if len(losses) == 1:
        return [f"the reference was trained for one epoch only, {advice}"]
    if len(losses) > 1 and 0 < losses[-1] < (1 - STILL_FALLING) * losses[-2]:
        return [
            "the reference's validation loss still fell in its last epoch, from "
            f"{losses[-2]:.3g} to {losses[-1]:.3g}, {advice}"
        ]
    return []


def undermining(warnings: Sequence[str]) -> str | None:
    """The first of these sentences, of a run's record, after which its drop means little."""
    return next((text for text in warnings if HARDLY in text or WORSE in text), None)
