"""Working memory of generated C: which of its floats, or bytes, are free."""

from __future__ import annotations

import math
from bisect import bisect


class Memory:
    """Floats or bytes in a row, of which each value takes the lowest ones that are free.

    Args:
        first: so many are taken for good.

    Example:
        >>> memory = Memory()
        >>> memory.take(4), memory.take(2)
        (0, 4)
        >>> memory.give(0, 4)
        >>> memory.take(3), memory.take(2), memory.size
        (0, 6, 8)
    """

    def __init__(self, first: int = 0) -> None:
        self.size = first
        """How many there are."""
        self._free: list[tuple[int, float]] = [(first, math.inf)]  # begin and end, in order

    def take(self, count: int) -> int:
        """Where so many begin that are free until now."""
        place = next(i for i, (begin, end) in enumerate(self._free) if end - begin >= count)
        begin, end = self._free[place]
        self._free[place : place + 1] = [(begin + count, end)] * (end - begin > count)
        self.size = max(self.size, begin + count)
        return begin

    def give(self, begin: int, count: int) -> None:
        """Make free what was taken."""
        end: float = begin + count
        place = bisect(self._free, (begin, end))
        if self._free[place][0] == end:  # the last one never ends
            end = self._free.pop(place)[1]
        if place and self._free[place - 1][1] == begin:
            place -= 1
            begin = self._free.pop(place)[0]
        self._free.insert(place, (begin, end))
