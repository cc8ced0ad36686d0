"""How the axes of an operation's inputs, result and weights go together, as names.

Axes of one name are one: an index of them stays everywhere, or leaves everywhere. A depthwise
convolution is `c h w -> c y x` with the weight `c 1 u v`, a linear layer `i -> o` with `o i`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ellzero.errors import InputError
from ellzero.tensors import Shape

_TOKEN = re.compile(r"\(([a-z0-9 ]+)\)|([a-z0-9+]+)")


@dataclass(frozen=True)
class Axis:
    """One axis: a name, or several of which it is made, or none where its size is 1 for good.

    Args:
        names: of one axis, or of its parts, the last of which is the fastest.
        joined: the parts follow each other, as in a concatenation; else each index of the axis is
            one of every part.
    """

    names: tuple[str, ...]
    joined: bool = False

    @property
    def is_made_of_parts(self) -> bool:
        """Whether it is no axis of a name."""
        return len(self.names) > 1


@dataclass(frozen=True)
class Axes:
    """The names of all axes of an operation, without the batch.

    `"c h w"` names three axes. `"(g o)"` is an axis of which each index is one of g and one of o,
    as when two axes become one; in `"a+b"` those of b follow those of a; `"1"` has size 1.

    Args:
        inputs: of each input.
        output: of the result.
        weights: of each weight, by role.
        whole: names of which every index stays, as others depend on it, or nothing is known.
        mixes: row r of the result is `bias[r]`, if there is one, plus the sum over columns c of
            what `weight[r, c]`, a number or a kernel, makes of c: nothing where it is zero.
        picks: role of the weight that says which index of the input each index of the result is,
            in ascending order.
        sizes: of names that are nowhere an axis by themselves.

    Raises:
        InputError: a text that names no axes.

    Example:
        >>> axes = Axes(("t (h d)",), "h t d")
        >>> axes.result[0], axes.sizes_of([(7, 6)], (2, 7, 3), {})
        (Axis(names=('h',), joined=False), {'t': 7, 'h': 2, 'd': 3})
    """

    inputs: tuple[str, ...]
    output: str
    weights: Mapping[str, str] = field(default_factory=dict)
    whole: str = ""
    mixes: bool = False
    picks: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def read(self) -> tuple[tuple[Axis, ...], ...]:
        """The axes of each input."""
        return tuple(_parsed(text) for text in self.inputs)

    @cached_property
    def result(self) -> tuple[Axis, ...]:
        """The axes of the result."""
        return _parsed(self.output)

    def of_weight(self, role: str) -> tuple[Axis, ...]:
        """The axes of a weight; one that nothing is said of has none."""
        return _parsed(self.weights.get(role, ""))

    def sizes_of(
        self, inputs: Sequence[Shape], output: Shape, weights: Mapping[str, Shape]
    ) -> dict[str, int]:
        """The size of each name, for these shapes.

        Raises:
            InputError: axes that do not go with the shapes.
        """
        known = dict(self.sizes)
        tensors = [*zip(self.read, inputs, strict=True), (self.result, output)]
        tensors += [
            (self.of_weight(role), weights[role]) for role in self.weights if role in weights
        ]
        for axes, shape in tensors:
            if len(axes) != len(shape):
                raise InputError(f"{len(axes)} axes named for the shape {shape}")
        for axes, shape in tensors:
            for axis, size in zip(axes, shape, strict=True):
                if len(axis.names) == 1 and known.setdefault(axis.names[0], size) != size:
                    raise InputError(
                        f"the axis {axis.names[0]} has {known[axis.names[0]]} and {size} indices"
                    )
        for axes, shape in tensors:
            for axis, size in zip(axes, shape, strict=True):
                total = sum if axis.joined else math.prod
                if axis.names and total(known[name] for name in axis.names) != size:
                    raise InputError(f"an axis of {size} indices is not made of {axis.names}")
        return known


def _parsed(text: str) -> tuple[Axis, ...]:
    axes = tuple(_axes(text))
    if _TOKEN.sub("", text).strip():
        raise InputError(f"{text!r} names no axes; expected such as 'c (h d) a+b 1'")
    return axes


def _axes(text: str) -> Iterator[Axis]:
    for product, plain in _TOKEN.findall(text):
        if product:
            yield Axis(tuple(product.split()))
        elif plain == "1":
            yield Axis(())
        else:
            names = tuple(plain.split("+"))
            yield Axis(names, joined=len(names) > 1)


def places(count: int, letter: str) -> str:
    """Names for the axes of so many dimensions of places.

    Example:
        >>> places(2, "y")
        'y0 y1'
    """
    return " ".join(f"{letter}{place}" for place in range(count))


def letters(count: int) -> str:
    """Names for so many axes.

    Example:
        >>> letters(3)
        'a b c'
    """
    return " ".join("abcdefgh"[:count])
