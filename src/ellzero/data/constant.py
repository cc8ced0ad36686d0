"""The best constant answer: what a network scores that says the same of every example."""

from __future__ import annotations

from collections import Counter

import torch

from ellzero.data.data import Data
from ellzero.data.part import Part
from ellzero.data.tally import NOTHING, Tally, counts_of
from ellzero.data.tasks import Labels


def best_constant(data: Data, batch_size: int) -> tuple[float, int] | None:
    """What the best constant answer scores on validation data, and over how many targets.

    The score is the share of the largest class, or the variance of the targets times -1. Labels
    that do not count are left out, and examples count by their weights.

    Returns:
        None where the score is another one than the accuracy or the mean squared error.

    Example:
        >>> import torch, ellzero as ez
        >>> x, y = torch.zeros(4, 2), torch.tensor([0, 1, 1, 1])
        >>> best_constant(ez.Data((x, y), (x, y)), batch_size=2)
        (0.75, 4)
    """
    if data.scores_accuracy:
        return _largest_class(data.validation, data.task, batch_size)
    return _variance(data.validation, batch_size) if data.objective.scores_squares else None


def _largest_class(part: Part, task: object, batch_size: int) -> tuple[float, int] | None:
    assert isinstance(task, Labels)
    batches = ((targets.cpu(), w) for targets, w in part.targets(batch_size))
    counts: Counter[int] | None = Counter()
    if part.first.weights is None:
        tally = part.tally or sum((Tally.of(targets) for targets, _ in batches), NOTHING)
        counts = None if tally.counts is None else tally.counts.copy()
    else:
        for targets, weights in batches:
            shares = task.shares(targets, None if weights is None else weights.cpu())
            counts.update(counts_of(targets, shares) or {})
    if counts is not None and task.ignored is not None:
        del counts[task.ignored]
    if not counts or not counts.total():
        return None
    largest = max(counts.values()) / counts.total()
    return largest, round(counts.total())


def _variance(part: Part, batch_size: int) -> tuple[float, int] | None:
    count, share = 0, torch.zeros(()).double()
    total = squares = torch.zeros(()).double()
    for targets, weights in part.targets(batch_size):
        exact = targets.double().cpu()
        if count and exact.shape[1:] != total.shape:
            return None  # examples of many shapes have no common answer
        w = torch.ones(len(exact)) if weights is None else weights.cpu()
        w = w.double().view(-1, *(1 for _ in exact.shape[1:]))
        count, share = count + len(exact), share + w.sum()
        total, squares = total + (w * exact).sum(0), squares + (w * exact.square()).sum(0)
    return -float((squares / share - (total / share).square()).mean()), count
