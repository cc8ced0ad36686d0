"""How real values are held as int8."""

from __future__ import annotations

from dataclasses import dataclass

FINEST = 2.0**-126
"""The least scale: its reciprocal is a float32, which inputs are multiplied by."""


@dataclass(frozen=True)
class Scale:
    """How a real value `x` is held as the int8 `q`: `x = scale * (q - zero)`."""

    scale: float
    zero: int

    def integer(self, x: float) -> int:
        """The nearest int8."""
        return max(-128, min(127, round(x / self.scale) + self.zero))

    @classmethod
    def of_range(cls, low: float, high: float, least: float = 0.0) -> Scale:
        """The scale of a range, with 0 a multiple of it; 1 for a range of nothing.

        Args:
            low: <= 0.
            high: >= 0.
            least: the scale is at least that.

        Example:
            >>> Scale.of_range(0.0, 63.75)
            Scale(scale=0.25, zero=-128)
        """
        scale = max(max((high - low) / 255, least) or 1.0, FINEST)
        return cls(scale, max(-128, min(127, round(-128 - low / scale))))
