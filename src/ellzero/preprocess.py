"""Preprocessing: what turns raw values into the inputs that a network takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_VALUES_AT_ONCE = 1 << 18  # as float64 they stay in a processor's cache


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

    @classmethod
    def standardizing(cls, inputs: Tensor, *, per_channel: bool = True) -> Preprocess:
        """What gives these inputs mean 0 and deviation 1: `(x - mean) / deviation`.

        The deviation is that of the numbers given, not an estimate of another one. Where all are
        equal it would be 0; they are shifted to 0 and not scaled.

        Args:
            inputs: the training inputs, numbers of any type (N, C, ...).
            per_channel: a mean and deviation for each channel (dimension 1); else for all values.

        Example:
            >>> import torch
            >>> Preprocess.standardizing(torch.tensor([[0.0, 5.0], [4.0, 5.0]]))
            Preprocess(scale=(0.5, 1.0), shift=(-1.0, -5.0))
        """
        channels = inputs.shape[1] if per_channel else 1
        examples = max(_VALUES_AT_ONCE // max(inputs[0].numel(), 1), 1)
        blocks = [  # float64 of everything would take 8 times the memory of pixels
            block.reshape(len(block), channels, -1) for block in inputs.split(examples)
        ]
        count = sum(block.numel() for block in blocks) / channels
        mean = torch.stack([b.double().sum((0, 2)) for b in blocks]).sum(0) / count
        squares = [(b.double() - mean.view(-1, 1)).square().sum((0, 2)) for b in blocks]
        deviation = (torch.stack(squares).sum(0) / count).sqrt()
        scale = torch.where(deviation > 0, 1 / deviation, 1.0)
        scales, shifts = (tuple(values.tolist()) for values in (scale, -mean * scale))
        return cls(scales, shifts) if per_channel else cls(scales[0], shifts[0])

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
