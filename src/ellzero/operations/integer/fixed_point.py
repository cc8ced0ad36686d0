"""Fixed-point numbers: a sum of 32 bits times a real factor, rounded to 8 bits, in integers alone.

The factor `m` is held as the integer `round(m 2^32)`; the upper half of the 64-bit product, rounded
once, is what one instruction of many processors gives (SMMULR on Arm's with DSP).
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ellzero.errors import InputError

FACTOR_BITS = 32
LARGEST_FACTOR = 0.5 - 2.0**-32
"""So that a factor in 32 bits of fraction is an int32."""

SUM_LIMIT = 2**31 - 1
"""What a sum in int32 can be, in either direction."""

Value = Annotated[int, Field(ge=-128, le=127)]
"""A setting of the type of the values, int8."""


def fixed_point(factor: float) -> int:
    """A factor as an int32: `round(factor * 2^32)`.

    Raises:
        InputError: it is not in 2^-32 .. 0.5.

    Example:
        >>> fixed_point(0.25) == 2**30
        True
    """
    exact = round(math.ldexp(factor, FACTOR_BITS))
    if not 1 <= exact < 2**31:
        raise InputError(f"the factor {factor:g} is no fraction of 32 bits below 0.5")
    return exact


def scaled(sums: Tensor, factors: Tensor) -> Tensor:
    """`floor(sums * factors / 2^32 + 1/2)`: the upper half of the product, rounded once.

    Args:
        sums: int64 that fit into int32.
        factors: int32, of fixed point; the two are broadcast.

    Returns:
        int64.

    Example:
        >>> scaled(torch.tensor([3, -3, 100]), torch.tensor(2**31 - 1))
        tensor([ 1, -1, 50])
    """
    return (sums * factors.long() + (1 << (FACTOR_BITS - 1))) >> FACTOR_BITS


def saturated(values: Tensor, low: int = -128, high: int = 127) -> Tensor:
    """Integers as int8: what is outside of the limits becomes the limit.

    Example:
        >>> saturated(torch.tensor([-300, 5, 300]))
        tensor([-128,    5,  127], dtype=torch.int8)
    """
    return values.clamp(low, high).to(torch.int8)


def exact_integers(values: Tensor) -> Tensor:
    """Whole numbers that were summed up as float64, in which sums of int32 are exact."""
    return values.round().long()
