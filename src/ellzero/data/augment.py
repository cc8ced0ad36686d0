"""Augmentation: random changes of training examples, drawn anew for each batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InputError, nearest


@dataclass(frozen=True)
class Augment:
    """Random changes of a batch of raw training inputs, each example on its own.

    Where things are changes along `axes`: output `i` of an axis of length L is read at a position
    `p(i) = a i + b`, between two values by linear interpolation, and 0 beyond the ends. What is
    read then becomes `gain * x + noise`. Random numbers come from torch's global generator of the
    inputs' device.

    Args:
        shift: the most values by which an example moves along each axis; whole steps.
        flip: half of the examples are mirrored along the last axis.
        crop: a window of at least `1 - crop` of each axis, wherever it lies, fills the whole.
        speed: an example runs 1 - speed to 1 + speed times as fast, about the middle of each axis.
        gain: an example is multiplied by 1 - gain to 1 + gain.
        noise: normal noise is added, its deviation drawn for each example from 0 to `noise`, in
            units of the raw inputs.
        axes: dimensions that count as place or time; left out: all after the first two.

    Raises:
        InputError: a value of the wrong kind or out of range.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(1)
        >>> Augment(shift=1)(torch.tensor([[[1, 2, 3]], [[1, 2, 3]], [[1, 2, 3]]])).squeeze()
        tensor([[1, 2, 3],
                [0, 1, 2],
                [2, 3, 0]])
    """

    shift: int = 0
    flip: bool = False
    crop: float = 0.0
    speed: float = 0.0
    gain: float = 0.0
    noise: float = 0.0
    axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if type(self.shift) is not int or self.shift < 0:
            raise InputError(f"augment.shift is {self.shift!r}; expected a whole number >= 0")
        if type(self.flip) is not bool:
            raise InputError(f"augment.flip is {self.flip!r}; expected true or false")
        for name, limit in (("crop", 1), ("speed", 1), ("gain", 1), ("noise", math.inf)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < limit:
                below = "" if limit == math.inf else f" and < {limit}"
                raise InputError(f"augment.{name} is {value!r}; expected a number >= 0{below}")

    @classmethod
    def parse(
        cls,
        table: Mapping[str, Any] | Augment | None,
        known: Sequence[str],
        axes: tuple[int, ...] = (),
    ) -> Augment | None:
        """The augmentation of a recipe's table, `{shift = 4, flip = true}`; None for none.

        Args:
            table: its values by name, or the augmentation itself.
            known: the names that mean something for the data at hand.
            axes: as for the class.

        Raises:
            InputError: another name; a value of the wrong kind or out of range.
        """
        if table is None or isinstance(table, Augment):
            return table
        if not isinstance(table, Mapping):
            raise InputError(f"augment is {table!r}; expected a table, of {', '.join(known)}")
        for name in table:
            if name not in known:
                raise InputError(f"augment has no {name!r} for this data; {nearest(name, known)}")
        return cls(**table, axes=axes)

    def __call__(self, x: Tensor) -> Tensor:
        """The changed batch, of the shape of `x`; of its type, too, unless values are computed."""
        axes = self.axes or tuple(range(2, x.ndim))
        if self._moves:
            if not axes:
                raise InputError(
                    f"inputs of shape {tuple(x.shape)} have no place or time to augment; "
                    "expected (N, C, ...), or give axes"
                )
            x = self._moved(x, axes)
        if self.gain:
            x = x * _uniform(x, 1 - self.gain, 1 + self.gain)
        if self.noise:
            x = x.to(torch.get_default_dtype()) if not x.is_floating_point() else x
            x = x + torch.randn_like(x) * _uniform(x, 0, self.noise)
        return x

    @property
    def _moves(self) -> bool:
        return bool(self.shift or self.flip or self.crop or self.speed)

    def _moved(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        # one draw for all axes, so that proportions stay
        size = _uniform(x, 1 - self.crop, 1) if self.crop else None
        speed = _uniform(x, 1 - self.speed, 1 + self.speed) if self.speed else None
        for axis in axes:
            length = x.shape[axis]
            positions = torch.arange(length, device=x.device)
            if size is not None:
                start = _uniform(x, 0, 1) * (length - 1) * (1 - size)
                positions = start.view(-1, 1) + size.view(-1, 1) * positions
            if speed is not None:
                middle = (length - 1) / 2
                positions = middle + speed.view(-1, 1) * (positions - middle)
            if self.shift:
                steps = torch.randint(-self.shift, self.shift + 1, (len(x), 1), device=x.device)
                positions = positions - steps
            if self.flip and axis == axes[-1]:
                mirrored = torch.rand(len(x), 1, device=x.device) < 0.5
                positions = torch.where(mirrored, length - 1 - positions, positions)
            x = _read(x, axis, positions.expand(len(x), length))
        return x


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    """A random number for each example, of a shape that goes with `x`."""
    numbers = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device)
    return low + (high - low) * numbers


def _read(x: Tensor, axis: int, positions: Tensor) -> Tensor:
    """The values of `x` at positions (N, L) of an axis, 0 beyond its ends."""
    if not positions.is_floating_point():
        return _take(x, axis, positions)
    lower = positions.floor()
    weight = _along(positions - lower, x, axis)
    lower = lower.long()
    return _take(x, axis, lower) * (1 - weight) + _take(x, axis, lower + 1) * weight


def _take(x: Tensor, axis: int, index: Tensor) -> Tensor:
    last = x.shape[axis] - 1
    values = x.gather(axis, _along(index.clamp(0, last), x, axis).expand(x.shape))
    return values.mul_(_along((index >= 0) & (index <= last), x, axis))


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values (N, L) with dimensions of size 1 elsewhere, to go with `x`."""
    return values.view([len(x), *(n if d == axis else 1 for d, n in enumerate(x.shape) if d)])
