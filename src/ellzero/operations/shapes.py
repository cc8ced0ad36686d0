"""Shapes of one example, without the batch: (features,) or (channels, height, width)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from ellzero.errors import InputError
from ellzero.tensors import Shape

Size = Annotated[int, Field(ge=1, lt=2**31)]
Margin = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def windows(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    *,
    ceil: bool = False,
) -> Iterator[int]:
    """How many windows fit into the values of each dimension, as PyTorch counts them.

    Raises:
        InputError: not a single one fits.
    """
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        rest = n + 2 * p - d * (k - 1) - 1
        count = (-(-rest // s) if ceil else rest // s) + 1
        # a window that would begin in the padding on the far side is left out
        if ceil and (count - 1) * s >= n + p:
            count -= 1
        if count < 1:
            raise InputError(f"a kernel of {k} (dilation {d}) for {n} values")
        yield count


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
