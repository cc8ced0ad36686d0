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
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=3)]
"""A setting of each dimension of places: one of a signal, two of an image, three of a volume."""
Margins = Annotated[tuple[Margin, ...], Field(min_length=1, max_length=3)]


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


def dimensions_of(**settings: Shape) -> int:
    """How many dimensions of places settings are for.

    Raises:
        InputError: they are not for equally many.
    """
    (first, shape), *others = settings.items()
    for name, values in others:
        if len(values) != len(shape):
            raise InputError(
                f"{first} is {shape}, {name} is {values}; expected equally many numbers"
            )
    return len(shape)


def each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """A setting of each dimension, as torch takes it: one number is that of all.

    Example:
        >>> each(3, 2), each([3], 2), each([3, 4], 2)
        ((3, 3), (3, 3), (3, 4))
    """
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values
