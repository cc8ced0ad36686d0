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
from itertools import pairwise

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
            what `weight[r, c]`, a number or a kernel, makes of c: nothing where it is zero. The
            rows are the axis of the weight that the result has, the columns that of the input.
        reads: where the result is more than such a sum: of each weight (row, column) the name of
            its columns, which an input or the result has. Where it is zero, nothing that the row
            gives depends on the column by it. To what `weight_x` makes, `bias_x` is added.
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
    reads: Mapping[str, str] = field(default_factory=dict)
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

    @cached_property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Of each weight that multiplies, by role: which of its dimensions are rows and columns."""
        if self.mixes:
            row, column = (
                next(p for p, axis in enumerate(self.of_weight("weight")) if axis in value)
                for value in (self.result, self.read[0])
            )
            return {"weight": (row, column)}
        columns = {r: self.of_weight(r).index(Axis((name,))) for r, name in self.reads.items()}
        return {role: (0 if column else 1, column) for role, column in columns.items()}

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


def regrouped(before: Shape, after: Shape) -> Axes:
    """How the axes go together of the same values, in the same order, seen as other axes.

    Axes are cut into factors where the sizes allow it, 12 into 3 and 4; where they do not, as in
    4 x 6 seen as 3 x 8, all of an axis stays. One of size 1 has no name.

    Example:
        >>> axes = regrouped((5, 12), (5, 3, 4))
        >>> axes.inputs, axes.output, axes.whole
        (('n12 (n4 n1)',), 'n12 n4 n1', '')
    """
    # an axis lies between two products of the last sizes: 12 between 1 and 12, 5 between 12 and 60
    cuts = sorted({math.prod(shape[place:]) for shape in (before, after) for place in range(9)})
    sizes = {f"n{low}": high // low for low, high in pairwise(cuts) if high % low == 0}
    texts: list[str] = []
    unknown: set[str] = set()
    for side, shape in enumerate((before, after)):
        words = []
        for place, size in enumerate(shape):
            low = math.prod(shape[place + 1 :])
            names = [f"n{cut}" for cut in reversed(cuts) if low <= cut < low * size]
            if any(name not in sizes for name in names):
                names = [f"whole{side}{place}"]
                unknown.update(names)
            words.append(
                "1" if not names else names[0] if len(names) == 1 else f"({' '.join(names)})"
            )
        texts.append(" ".join(words))
    read, result = ({name for axis in _parsed(text) for name in axis.names} for text in texts)
    # what only one of them has is tied to nothing of the other
    whole = " ".join(sorted(unknown | (read ^ result)))
    used = {name: size for name, size in sizes.items() if name in read | result}
    return Axes((texts[0],), texts[1], whole=whole, sizes=used)
