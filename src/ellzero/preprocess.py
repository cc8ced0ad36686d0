"""Preprocessing: what turns raw values into the inputs that a network takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of raw inputs, as data: `x * scale + shift`, on float32 of the raw values.

    Args:
        scale: factor, or one per channel (dimension 1 of a batch).
        shift: summand, or one per channel.

    Example:
        >>> import torch
        >>> Preprocess(scale=2.0, shift=-1.0)(torch.tensor([[0, 1]], dtype=torch.uint8))
        tensor([[-1.,  1.]])
    """

    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """The preprocessed batch, float32, of the shape of `x`."""
        scale, shift = (_per_channel(v, x.ndim, x.device) for v in (self.scale, self.shift))
        numbers = x.to(torch.float32)
        # one pass less each: in place where it is a copy, and no sum with 0
        numbers = numbers.mul(scale) if numbers is x else numbers.mul_(scale)
        return numbers if self.shift == 0 else numbers.add_(shift)


@cache  # for a GPU has to be waited for where a tensor is made from numbers
def _per_channel(
    value: float | tuple[float, ...], ndim: int, device: torch.device
) -> float | Tensor:
    if isinstance(value, int | float):
        return value
    shape = (1, len(value), *[1] * (ndim - 2))
    return torch.tensor(value, dtype=torch.float32, device=device).view(shape)
