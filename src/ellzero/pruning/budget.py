"""Budgets: what may be lost against the reference, and the search for how much can go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from ellzero.errors import InputError, is_number


@dataclass(frozen=True)
class Budget:
    """What a compressed network may lose against the reference, on validation data.

    Exactly one of the two is given.

    Args:
        max_accuracy_drop: percentage points of accuracy, >= 0: 0.5 allows 97.5 % where the
            reference has 98 %.
        max_loss_increase: relative increase of the loss, >= 0: 0.1 allows 1.1 times the
            reference's.

    Raises:
        InputError: none or both given; a negative or infinite one.

    Example:
        >>> import ellzero as ez
        >>> ez.Budget(max_accuracy_drop=0.5)
        Budget(max_accuracy_drop=0.5, max_loss_increase=None)
    """

    _: KW_ONLY
    max_accuracy_drop: float | None = None
    max_loss_increase: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.max_accuracy_drop, self.max_loss_increase) if v is not None]
        if len(given) != 1 or not is_number(given[0]) or not 0 <= given[0] < math.inf:
            raise InputError(
                f"budget is max_accuracy_drop={self.max_accuracy_drop!r}, max_loss_increase="
                f"{self.max_loss_increase!r}; expected exactly one of them, a finite number >= 0"
            )

    def used(self, *, reference: tuple[float, float], candidate: tuple[float, float]) -> float:
        """What a candidate has lost, in the budget's unit: points of accuracy, or relative loss.

        Args:
            reference: (score, loss) of the reference; the score an accuracy in [0, 1].
            candidate: (score, loss) of the candidate.

        Example:
            >>> budget = Budget(max_accuracy_drop=0.5)
            >>> round(budget.used(reference=(0.98, 0.1), candidate=(0.97, 0.1)), 6)
            1.0
        """
        if self.max_accuracy_drop is not None:
            return 100 * (reference[0] - candidate[0])
        return candidate[1] / reference[1] - 1 if reference[1] > 0 else math.inf

    @property
    def limit(self) -> float:
        """The bound on `used`."""
        bound = self.max_accuracy_drop if self.max_loss_increase is None else self.max_loss_increase
        assert bound is not None
        return bound

    def allows(self, used: float, *, times: float = 1.0) -> bool:
        """Whether that much may be lost; `times` widens the budget to guide a search."""
        # accuracies are fractions of a count: a drop of exactly the limit must not fail by rounding
        return used <= self.limit * times + 1e-9


def bisect(
    accept: Callable[[float], bool], low: float, high: float, *, evaluations: int = 12
) -> float:
    """The largest value in [low, high] that is accepted, to `(high - low) / 2^evaluations`.

    `low` counts as accepted without being asked; `accept` falls from true to false once.

    Example:
        >>> round(bisect(lambda x: x * x < 2, 1, 2), 3)
        1.414
    """
    for _ in range(evaluations):
        middle = (low + high) / 2
        if accept(middle):
            low = middle
        else:
            high = middle
    return low
