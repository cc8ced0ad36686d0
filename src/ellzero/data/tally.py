"""A tally of examples: how many there are, how often each label, whether rows are of 0 and 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.data.inputs import all_of

MOST_LABELS = 1 << 20
"""Beyond that integers are no labels of classes, and nothing is made of that size."""


@dataclass(frozen=True)
class Tally:
    """What was counted; those of two batches add up to that of both.

    Example:
        >>> import torch
        >>> Tally.of(torch.tensor([0, 2, -100])) + Tally.of(torch.tensor([2]))
        Tally(examples=4, targets=4, counts=Counter({2: 2, 0: 1}), one_hot=False, \
multi_hot=False)
    """

    examples: int
    targets: int
    """How many there are in all examples; an example may have several."""
    counts: Counter[int] | None
    """How often each label occurs, but negative ones, which a loss may ignore; None: no labels."""
    one_hot: bool
    """Whether every target is a row of floating numbers, one of them 1 and the others 0."""
    multi_hot: bool
    """Whether every target is a row of floating numbers, each of them 0 or 1."""

    @classmethod
    def of(cls, targets: Any) -> Tally:
        """The tally of the targets of a batch, or of a whole part."""
        if not isinstance(targets, Tensor):  # several tensors, of which nothing more is known
            first = all_of(targets)[0]
            return cls(len(first), first.numel(), None, one_hot=False, multi_hot=False)
        is_multi_hot = _are_rows(targets, _are_binary)
        is_one_hot = is_multi_hot and _are_rows(targets, _have_one)
        return cls(len(targets), targets.numel(), counts_of(targets), is_one_hot, is_multi_hot)

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
            self.multi_hot and other.multi_hot,
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
            self.multi_hot and other.multi_hot,
        )


NOTHING = Tally(0, 0, Counter(), one_hot=True, multi_hot=True)
"""The tally of no examples, to add to."""


def counts_of(targets: Tensor, weights: Tensor | None = None) -> Counter[Any] | None:
    """How often each label occurs, or the sum of its weights; None of what is no label.

    Example:
        >>> import torch
        >>> counts_of(torch.tensor([3, 3, -1]), torch.tensor([0.5, 1.0, 9.0]))
        Counter({3: 1.5})
    """
    if targets.is_floating_point():
        return None
    labels = targets.flatten()
    labels = labels.byte() if labels.dtype is torch.bool else labels
    each = None if weights is None else weights.flatten().double()
    if labels.numel() and int(labels.max()) >= MOST_LABELS:
        return None
    if labels.numel() and int(labels.min()) < 0:
        each = None if each is None else each[labels >= 0]
        labels = labels[labels >= 0]
    counts = torch.bincount(labels, each)
    classes = counts.nonzero().flatten()
    return Counter(dict(zip(classes.tolist(), counts[classes].tolist(), strict=True)))


def _are_rows(targets: Tensor, kind: Callable[[Tensor], bool]) -> bool:
    if not targets.is_floating_point() or targets.ndim != 2 or targets.shape[1] < 2:
        return False
    # the first rows tell nearly always, so that most regressions are not read to the end
    return all(kind(rows) for rows in (targets[:100], targets[100:]))


def _are_binary(rows: Tensor) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())


def _have_one(rows: Tensor) -> bool:
    return bool(((rows == 1).sum(1) == 1).all())
