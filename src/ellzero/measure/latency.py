"""Measured latency: one network in the ways there are to run it, side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

ROUNDS = 15
"""How often each way is timed; the ways take turns, so that a slow moment hits all of them."""

SECONDS = 0.02
"""How long a way runs in a round, at least; a single call is too short for the clock."""


@dataclass(frozen=True)
class Latency:
    """Seconds a call, over the rounds.

    Args:
        median_s: the median.
        low_s: the first quartile.
        high_s: the third quartile.
    """

    median_s: float
    low_s: float
    high_s: float


def time_calls(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Latency]:
    """Time functions in turns, each round as often as fills `seconds`.

    Args:
        calls: what is timed, by its name; called without arguments.
        rounds: how many figures the median is of.
        seconds: for each function and round.
        tick: called after each function of each round.

    Example:
        >>> latencies = time_calls({"nothing": lambda: None}, rounds=3, seconds=1e-4)
        >>> 0 < latencies["nothing"].median_s < 1e-3
        True
    """
    counts = {name: _repeats(call, seconds) for name, call in calls.items()}
    seconds_of: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds_of[name].append(_timed(call, counts[name]) / counts[name])
            tick()
    return {name: _summary(figures) for name, figures in seconds_of.items()}


def _repeats(call: Callable[[], object], seconds: float) -> int:
    """How many calls fill the time; the calls that find it out are the warming up."""
    count = 1
    while (took := _timed(call, count)) < seconds:
        count = max(2 * count, int(count * seconds / max(took, 1e-9)))
    return count


def _timed(call: Callable[[], object], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - begin


def _summary(figures: list[float]) -> Latency:
    if len(figures) < 2:
        return Latency(figures[0], figures[0], figures[0])
    low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
    return Latency(median, low, high)
