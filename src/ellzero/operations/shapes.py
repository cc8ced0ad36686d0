"""Shapes of one example, without the batch: (features,) or (channels, height, width)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from ellzero.errors import InputError
from ellzero.tensors import Shape

Size = Annotated[int, Field(ge=1, lt=2**31)]
Margin = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def windows(n: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil=False) -> int:
    """How many windows fit into n values, as PyTorch counts them.

    Raises:
        InputError: none.
    """
    rest = n + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-rest // stride) if ceil else rest // stride) + 1
    # a window that would begin in the padding on the far side is left out
    if ceil and (count - 1) * stride >= n + padding:
        count -= 1
    if count < 1:
        raise InputError(f"a kernel of {kernel} (dilation {dilation}) for {n} values")
    return count


def sizes(shape: Shape, count: int, what: str) -> Shape:
    """The sizes of a shape of so many dimensions.

    Raises:
        InputError: it has another number of them.
    """
    if len(shape) != count:
        raise InputError(f"{what} has {len(shape)} dimensions; expected {count}")
    return shape


def expect(shape: Shape, expected: Shape, what: str) -> None:
    """Refuse another shape than is expected.

    Raises:
        InputError: it is another.
    """
    if shape != expected:
        raise InputError(f"{what} has shape {shape}; expected {expected}")


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A setting of rows and columns; one number is that of both."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])
