"""A tally of examples: how many there are, how often each label, whether they are one-hot."""

from __future__ import annotations

from collections import Counter
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
        >>> Tally.of(torch.tensor([0, 2, -100])) + Tally.of(torch.tensor([2]))
        Tally(examples=4, targets=4, counts=Counter({2: 2, 0: 1}), one_hot=False)
    """

    examples: int
    targets: int
    """How many there are in all examples; an example may have several."""
    counts: Counter[int] | None
    """How often each label occurs, but negative ones, which a loss may ignore; None: no labels."""
    one_hot: bool
    """Whether every target is a row of floating numbers, one of them 1 and the others 0."""

    @classmethod
    def of(cls, targets: Tensor) -> Tally:
        """The tally of the targets of a batch, or of a whole part."""
        return cls(len(targets), targets.numel(), _counts(targets), _is_one_hot(targets))

    @property
    def labels(self) -> frozenset[int] | None:
        """The labels that occur."""
        return None if self.counts is None else frozenset(self.counts)

    def __add__(self, other: Tally) -> Tally:
        counts = None
        if self.counts is not None and other.counts is not None:
            counts = self.counts.copy()
            counts.update(other.counts)  # as a sum does, but without a look at all of both
        return Tally(
            self.examples + other.examples,
            self.targets + other.targets,
            counts,
            self.one_hot and other.one_hot,
        )

    def __or__(self, other: Tally) -> Tally:
        """What is known by two tallies of the same examples, each of which misses some."""
        counts = None
        if self.counts is not None and other.counts is not None:
            counts = self.counts | other.counts
        return Tally(
            max(self.examples, other.examples),
            max(self.targets, other.targets),
            counts,
            self.one_hot and other.one_hot,
        )


NOTHING = Tally(0, 0, Counter(), one_hot=True)
"""The tally of no examples, to add to."""


def _counts(targets: Tensor) -> Counter[int] | None:
    if targets.is_floating_point():
        return None
    labels = targets.flatten()
    labels = labels.byte() if labels.dtype is torch.bool else labels
    if labels.numel() and int(labels.max()) >= MOST_LABELS:
        return None
    if labels.numel() and int(labels.min()) < 0:
        labels = labels[labels >= 0]
    counts = torch.bincount(labels)
    classes = counts.nonzero().flatten()
    return Counter(dict(zip(classes.tolist(), counts[classes].tolist(), strict=True)))


def _is_one_hot(targets: Tensor) -> bool:
    if not targets.is_floating_point() or targets.ndim != 2 or targets.shape[1] < 2:
        return False
    # the first rows tell nearly always, so that most regressions are not read to the end
    return all(
        bool(((rows == 0) | (rows == 1)).all()) and bool(((rows == 1).sum(1) == 1).all())
        for rows in (targets[:100], targets[100:])
    )
