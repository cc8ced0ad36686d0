"""Whether two methods differ: a paired bootstrap over the test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ellzero.answers import wrong_answers
from ellzero.run_folder import RunFolder
from ellzero.study.results import Row
from ellzero.study.study import Target

RESAMPLES = 10_000
LEVEL = 0.05
"""Methods are said to differ where the adjusted p-value is below this."""


@dataclass(frozen=True)
class Pair:
    """A method beside the one that did best on validation data, at one target.

    `difference` is its test error minus the best one's, in percentage points, a mean over the
    seeds; `low` and `high` bound its 95 % bootstrap interval. `p` is two-sided and adjusted for the
    number of methods (Holm).
    """

    target: Target
    best: Row
    other: Row
    difference: float
    low: float
    high: float
    p: float

    @property
    def differs(self) -> bool:
        """Whether the two are said to differ."""
        return self.p < LEVEL


def pairs(rows: Sequence[Row]) -> list[Pair]:
    """Each method beside the best one of its target, as far as the runs tell right from wrong.

    The rows are those of `Results.rows`, target after target.

    The best is the one with the highest median validation score (under a budget: with the fewest
    weights), so the test data has no say in who is compared. Only methods that are done on all
    seeds take part. The test set's examples are drawn again, 10,000 times, the same for both
    methods and for all seeds: the interval tells what other test examples might have said, not
    what other seeds might.
    """
    compared: list[Pair] = []
    for _, group in groupby(rows, key=lambda row: row.target.name):
        complete = [row for row in group if len(row.cells) == row.seeds]
        wrong = {row.method: w for row in complete if (w := _wrong(row.cells)) is not None}
        tested = [row for row in complete if row.method in wrong]
        if len(tested) > 1:
            best = max(tested, key=lambda row: row.merit)
            others = [row for row in tested if row is not best]
            compared += _compared(best, others, wrong)
    return compared


def bootstrap(difference: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Bounds of the 95 % interval of a mean over examples, and the two-sided p-value of zero.

    Args:
        difference: a value for each example, float64 of shape (examples,).
        seed: of the resampling.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 15.
    """
    # few values occur, so drawing examples is drawing how often each value comes
    values, counts = np.unique(difference, return_counts=True)
    examples = len(difference)
    drawn = np.random.default_rng(seed).multinomial(examples, counts / examples, RESAMPLES)
    means = drawn @ values / examples
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(np.mean(means <= 0), np.mean(means >= 0))
    return float(low), float(high), min(1.0, 2 * max(float(tail), 1 / RESAMPLES))


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down rule, in the order given."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def _compared(best: Row, others: Sequence[Row], wrong: dict[str, np.ndarray]) -> list[Pair]:
    differences = [100 * (wrong[other.method] - wrong[best.method]) for other in others]
    bounds = [bootstrap(difference) for difference in differences]
    adjusted = holm([p for _, _, p in bounds])
    return [
        Pair(best.target, best, other, float(difference.mean()), low, high, p)
        for other, difference, (low, high, _), p in zip(
            others, differences, bounds, adjusted, strict=True
        )
    ]


def _wrong(cells: Sequence[RunFolder]) -> np.ndarray | None:
    """The share of the seeds that get each test example wrong; None where no run tells."""
    rows: list[np.ndarray] = []
    for cell in cells:
        wrong = wrong_answers(cell.folder, "compressed")
        if wrong is None:
            return None
        rows.append(wrong)
    if len({len(row) for row in rows}) != 1:
        return None
    return np.mean(rows, axis=0)
