"""Curves: pure functions of progress, so that a schedule has no state that would need saving.

Each maps progress in [0, 1] to a fraction in [0, 1], rising from 0 to 1 (`constant` is 1 all the
way). Learning rates, the ramp of a penalty's strength and the sparsity of gradual pruning use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ellzero.errors import InputError, is_number

Shape = Literal["constant", "linear", "cosine", "cubic"]

SHAPES: dict[Shape, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 - 0.5 * math.cos(math.pi * t),
    # Zhu & Gupta 2017, arXiv 1710.01878, equation 1
    "cubic": lambda t: 1.0 - (1.0 - t) ** 3,
}


@dataclass(frozen=True)
class Curve:
    """A rise from 0 to 1 of a given shape, between two points of progress.

    Args:
        shape: `constant` (1 everywhere), `linear`, `cosine` or `cubic`.
        start: progress in [0, 1) until which the curve is 0.
        end: progress in (start, 1] from which it is 1.

    Raises:
        InputError: an unknown shape; `start` and `end` not in order within [0, 1].

    Example:
        >>> ramp = Curve("linear", start=0.0, end=0.5)
        >>> [ramp(t) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
    """

    shape: Shape
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError(f"curve shape is {self.shape!r}; expected one of {', '.join(SHAPES)}")
        numbers = is_number(self.start) and is_number(self.end)
        if not numbers or not 0 <= self.start < self.end <= 1:
            raise InputError(
                f"curve runs from {self.start!r} to {self.end!r}; expected 0 <= start < end <= 1"
            )

    def __call__(self, progress: float) -> float:
        """The curve's value at a progress in [0, 1]; beyond either end it is what it is there.

        Raises:
            InputError: the progress is NaN or no number.
        """
        if not is_number(progress) or math.isnan(progress):
            raise InputError(f"progress is {progress!r}; expected a number in [0, 1]")
        within = (progress - self.start) / (self.end - self.start)
        return SHAPES[self.shape](min(max(within, 0.0), 1.0))


@dataclass(frozen=True)
class Schedule:
    """A number that goes from `start` to `end` over the whole training, such as a penalty's beta.

    Args:
        start: the number at progress 0; finite.
        end: the number at progress 1; finite.
        shape: `linear`, `cosine` or `cubic` (fast at first); `constant` is `end` all the way.

    Raises:
        InputError: an unknown shape; a number that is not finite.

    Example:
        >>> beta = Schedule(start=1.0, end=9.0)
        >>> [beta(t) for t in (0.0, 0.25, 1.0)]
        [1.0, 3.0, 9.0]
    """

    start: float
    end: float
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        Curve(self.shape)  # which knows the shapes
        for name in ("start", "end"):
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value):
                raise InputError(f"schedule {name} is {value!r}; expected a finite number")

    def __call__(self, progress: float) -> float:
        """The number at a progress in [0, 1]."""
        return self.start + (self.end - self.start) * Curve(self.shape)(progress)


def learning_rate(
    progress: float, *, peak: float, warmup: float, decay: Shape, floor: float = 0.0
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
