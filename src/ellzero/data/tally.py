"""A tally of examples: how many there are, which labels they bear, whether they are one-hot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_LABELS = 1 << 20
"""Beyond that integers are no labels of classes, and nothing is made of that size."""


@dataclass(frozen=True)
class Tally:
    """What was counted; those of two batches add up to that of both.

    Example:
        >>> import torch
        >>> Tally.of(torch.tensor([0, 2, 2])) + Tally.of(torch.tensor([1]))
        Tally(examples=4, labels=frozenset({0, 1, 2}), one_hot=False)
    """

    examples: int
    labels: frozenset[int] | None
    """The labels that occur, negative ones left out (a loss may ignore them); None: no labels."""
    one_hot: bool
    """Whether every target is a row of floating numbers, one of them 1 and the others 0."""

    @classmethod
    def of(cls, targets: Tensor) -> Tally:
        """The tally of the targets of a batch, or of a whole part."""
        return cls(len(targets), _labels(targets), _is_one_hot(targets))

    def __add__(self, other: Tally) -> Tally:
        known = None if self.labels is None or other.labels is None else self.labels | other.labels
        examples = self.examples + other.examples
        return Tally(examples, known, self.one_hot and other.one_hot)


NOTHING = Tally(0, frozenset(), one_hot=True)
"""The tally of no examples, to add to."""


def _labels(targets: Tensor) -> frozenset[int] | None:
    if targets.is_floating_point():
        return None
    labels = targets.flatten()
    labels = labels.byte() if labels.dtype is torch.bool else labels
    if labels.numel() and int(labels.max()) >= MOST_LABELS:
        return None
    if labels.numel() and int(labels.min()) < 0:
        labels = labels[labels >= 0]
    return frozenset(torch.bincount(labels).nonzero().flatten().tolist())


def _is_one_hot(targets: Tensor) -> bool:
    if not targets.is_floating_point() or targets.ndim != 2 or targets.shape[1] < 2:
        return False
    # the first rows tell nearly always, so that most regressions are not read to the end
    return all(
        bool(((rows == 0) | (rows == 1)).all()) and bool(((rows == 1).sum(1) == 1).all())
        for rows in (targets[:100], targets[100:])
    )
