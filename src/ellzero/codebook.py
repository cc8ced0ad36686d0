"""Quantized weights as codes and values, found in the weights themselves.

A weight is quantized if it holds few distinct values. Nothing marks it as such: what packs or
exports a network reads the values off it, as masks are read off the zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_VALUES = 256
"""Distinct values besides zero that a quantized weight may have: 8 bits."""

_FIRST = 4 * MAX_VALUES
"""Entries of a weight that tell soon that it is not quantized."""

_BY_CHANCE = 4
"""So few values do not show that they are uniform."""

_HALF_TOP = 15  # float16 reaches 65504, so magnitudes are brought below 2^15


@dataclass(frozen=True, eq=False)
class Codebook:
    """A weight with few distinct values: which value stands where.

    Args:
        values: the distinct nonzero values, float (k,), ascending; k <= 256.
        codes: int16, of the weight's shape: 0 where it is zero, i + 1 where it is `values[i]`.
        scale: where every value is a multiple q * scale, -127 <= q <= 127, the largest such scale;
            of four values or fewer only one with which some |q| is 127. None elsewhere.
    """

    values: Tensor
    codes: Tensor
    scale: float | None

    @property
    def bits(self) -> int:
        """Bits that tell the nonzero values apart: ceil(log2 k), 0 for a single one."""
        return max(len(self.values) - 1, 0).bit_length()

    def expand(self, values: Tensor) -> Tensor:
        """The weight with other values (k,) in place of the codebook's; zeros stay zero.

        Autograd goes through it: the gradient of a value is the sum of those of its weights.

        Example:
            >>> codebook = find_codebook(torch.tensor([[0.5, 0.0], [-1.0, 0.5]]))
            >>> codebook.expand(torch.tensor([-3.0, 2.0]))
            tensor([[ 2.,  0.],
                    [-3.,  2.]])
        """
        table = torch.cat([values.new_zeros(1), values])
        return table.index_select(0, self.codes.flatten().int()).view(self.codes.shape)

    @property
    def integers(self) -> Tensor | None:
        """The values as int8 multiples of the scale, where there is one."""
        if self.scale is None:
            return None
        return torch.round(self.values.double() / self.scale).to(torch.int8)


def find_codebook(weight: Tensor) -> Codebook | None:
    """The codebook of a weight, or None if it has more than 256 distinct nonzero values.

    Example:
        >>> codebook = find_codebook(torch.tensor([0.5, 0.0, -1.0, 0.5]))
        >>> codebook.values, codebook.codes
        (tensor([-1.0000,  0.5000]), tensor([2, 0, 1, 2], dtype=torch.int16))
    """
    if weight.numel() > _FIRST and find_codebook(weight.flatten()[:_FIRST]) is None:
        return None  # without sorting all
    nonzero = weight.detach() != 0
    values, codes = torch.unique(weight.detach()[nonzero], return_inverse=True)
    if len(values) > MAX_VALUES:
        return None
    every = torch.zeros(weight.shape, dtype=torch.int16, device=weight.device)
    every[nonzero] = (codes + 1).to(torch.int16)
    return Codebook(values, every, _scale(values))


def _scale(values: Tensor) -> float | None:
    if not len(values):
        return None
    exact = values.double()
    # few values may be multiples of something by chance; of int8 they are known by the largest
    tops = torch.arange(1 if len(values) > _BY_CHANCE else 127, 128)
    scales = exact.abs().max() / tops
    multiples = torch.round(exact / scales[:, None]) * scales[:, None]
    fitting = scales[(multiples == exact).all(1)]
    return float(fitting[0]) if len(fitting) else None


def half_exponent(values: Tensor) -> int:
    """The exponent e with which values are held as float16 times 2^e: the largest fits just."""
    top = float(values.detach().abs().max()) if values.numel() else 0.0
    if top == 0:
        return 0
    mantissa, exponent = torch.frexp(torch.tensor(top, dtype=torch.float64))
    # a largest magnitude that rounds up to a power of two counts as that: rounding twice is once
    return int(exponent) + (float(mantissa.half()) == 1.0) - _HALF_TOP


def round_half(values: Tensor) -> Tensor:
    """Values rounded to 16 bits: float16 times a power of two that the whole tensor shares.

    The shared exponent keeps tensors of tiny or huge values as exact as any: 11 significant bits
    down to 2^-29 of the largest magnitude, fewer below; under 2^-40 of it a value becomes 0.

    Example:
        >>> round_half(torch.tensor([1e-9, 3.14159]))
        tensor([9.9681e-10, 3.1406e+00])
    """
    exponent = half_exponent(values)
    scaled = torch.ldexp(values.detach().double(), torch.tensor(-exponent))
    return torch.ldexp(scaled.half().double(), torch.tensor(exponent)).to(values.dtype)


def round_values(values: Tensor) -> Tensor:
    """The values of a codebook rounded to 16 bits, of which none becomes zero.

    One that cancelled or underflows becomes the smallest that 16 bits can say beside the others.
    """
    rounded = round_half(values)
    smallest = torch.ldexp(values.new_ones(()), torch.tensor(half_exponent(rounded) - 24))
    return torch.where(rounded == 0, smallest, rounded)
