"""Schedules: pure functions of progress, so that nothing of them would need saving.

Learning rates, the ramp of a penalty's strength, its beta and the sparsity of gradual pruning
follow them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ellzero.errors import InputError, is_number

ScheduleShape = Literal["constant", "linear", "cosine", "cubic"]

SHAPES: dict[ScheduleShape, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 - 0.5 * math.cos(math.pi * t),
    # Zhu & Gupta 2017, arXiv 1710.01878, equation 1
    "cubic": lambda t: 1.0 - (1.0 - t) ** 3,
}
"""Ways from 0 to 1, of progress in [0, 1]."""


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` while the progress of the training goes on.

    Args:
        start: the number at first; finite.
        end: the number at last; finite.
        shape: of the way: `linear`, `cosine` or `cubic` (fast at first); `constant` is `end` all
            the way.
        after: progress in [0, 1) until which it stays at `start`.
        until: progress in (after, 1] from which it stays at `end`.

    Raises:
        InputError: an unknown shape; a number that is not finite; `after` and `until` not in order
            within [0, 1], or of a constant schedule.

    Example:
        >>> beta = Schedule(1.0, 9.0)
        >>> [beta(t) for t in (0.0, 0.25, 1.0)]
        [1.0, 3.0, 9.0]
        >>> ramp = Schedule(0, 1, "cubic", until=0.5)
        >>> [ramp(t) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.875, 1.0, 1.0]
    """

    start: float
    end: float
    shape: ScheduleShape = "linear"
    after: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in tuple(SHAPES):  # which also takes what cannot be hashed
            raise InputError(
                f"schedule shape is {self.shape!r}; expected one of {', '.join(SHAPES)}"
            )
        for name in ("start", "end"):
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value):
                raise InputError(f"schedule {name} is {value!r}; expected a finite number")
        numbers = is_number(self.after) and is_number(self.until)
        if not numbers or not 0 <= self.after < self.until <= 1:
            raise InputError(
                f"schedule runs after {self.after!r} until {self.until!r}; "
                "expected 0 <= after < until <= 1"
            )
        if self.shape == "constant" and (self.after, self.until) != (0, 1):
            raise InputError(
                f"a constant schedule runs after {self.after:g} until {self.until:g}, which has no "
                "effect on it; leave them out, or take another shape"
            )

    def __call__(self, progress: float) -> float:
        """The number at a progress in [0, 1]; beyond either end it is what it is there.

        Raises:
            InputError: the progress is NaN or no number.
        """
        if not is_number(progress) or math.isnan(progress):
            raise InputError(f"progress is {progress!r}; expected a number in [0, 1]")
        within = (progress - self.after) / (self.until - self.after)
        return self.start + (self.end - self.start) * SHAPES[self.shape](min(max(within, 0.0), 1.0))


def learning_rate(
    progress: float, *, peak: float, warmup: float, decay: ScheduleShape, floor: float = 0.0
) -> float:
    """Linear warm-up to `peak` over the first `warmup` of the progress, then down by `decay`.

    It ends at `floor * peak`.

    Example:
        >>> [learning_rate(t, peak=1.0, warmup=0.5, decay="linear") for t in (0.25, 0.5, 0.75, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return peak * progress / warmup
    if decay == "constant":
        return peak
    fallen = SHAPES[decay]((progress - warmup) / (1.0 - warmup))
    return peak * (1.0 - (1.0 - floor) * fallen)
