"""Where the batch lies in a traced value, and which of its dimensions are an example's axes.

An operation of a graph sees the batch first and then the axes of an example. A network's own code
may have it elsewhere: sequences with time first, heads of an attention folded into the batch. A
layout says how what the code has there is the same values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ellzero.tensors import Shape


@dataclass(frozen=True)
class Layout:
    """What each dimension of a traced value is made of, the last part fastest.

    Args:
        dims: of each dimension the sizes of the axes in it, None for the batch. A plain batch of
            images is `((None,), (3,), (28,), (28,))`; with heads folded into the batch and time
            before it, `((5,), (None, 8), (16,))`. Without None it is no batch: a weight.

    Example:
        >>> layout = Layout(((5,), (None, 8), (16,)))
        >>> layout.shape, layout.axis(0), layout.axis(1), layout.axis(-1)
        ((5, 8, 16), 0, None, 2)
    """

    dims: tuple[tuple[int | None, ...], ...]

    def __post_init__(self) -> None:
        # one value an example has an axis of size 1 beside the batch, for an example has axes
        if self.dims == ((None,),):
            object.__setattr__(self, "dims", ((None, 1),))

    @classmethod
    def plain(cls, shape: Sequence[int]) -> Layout:
        """The batch first, then the axes of an example."""
        return cls(((None,), *((size,) for size in shape)))

    @classmethod
    def of_weight(cls, shape: Sequence[int]) -> Layout:
        """No batch."""
        return cls(tuple((size,) for size in shape))

    @property
    def shape(self) -> Shape:
        """Shape of one example."""
        return tuple(size for dim in self.dims for size in dim if size is not None)

    @property
    def is_plain(self) -> bool:
        """Whether the batch is dimension 0, and each other dimension is one axis."""
        return self == Layout.plain(self.shape)

    @property
    def has_batch(self) -> bool:
        """Whether the batch is somewhere in it."""
        return any(None in dim for dim in self.dims)

    def axis(self, dim: int) -> int | None:
        """The example's axis that a dimension is; None for one of several axes, or the batch."""
        dim %= len(self.dims)
        if len(self.dims[dim]) != 1 or self.dims[dim] == (None,):
            return None
        return sum(size is not None for before in self.dims[:dim] for size in before)

    def axes(self, dim: int) -> list[int]:
        """The example's axes in a dimension, without the batch."""
        first = sum(size is not None for before in self.dims[:dim] for size in before)
        return list(range(first, first + sum(size is not None for size in self.dims[dim])))

    def without(self, dim: int) -> Layout:
        """Less a dimension."""
        dim %= len(self.dims)
        return Layout(self.dims[:dim] + self.dims[dim + 1 :])

    def inserted(self, dim: int, size: int = 1) -> Layout:
        """With one more dimension at this place."""
        dim %= len(self.dims) + 1
        return Layout((*self.dims[:dim], (size,), *self.dims[dim:]))

    def resized(self, dim: int, size: int) -> Layout:
        """With another size of a dimension that is one axis."""
        dim %= len(self.dims)
        return Layout((*self.dims[:dim], (size,), *self.dims[dim + 1 :]))

    def permuted(self, dims: Sequence[int]) -> tuple[Layout, list[int]]:
        """With the dimensions in another order; and which of the example's axes each one was."""
        dims = [dim % len(self.dims) for dim in dims]
        order = [axis for dim in dims for axis in self.axes(dim)]
        return Layout(tuple(self.dims[dim] for dim in dims)), order

    def viewed(self, sizes: Sequence[Any], batch: Any) -> Layout | None:
        """The layout of the same values, in the same order, seen as these dimensions.

        What lies before the batch stays before it and what lies behind it behind it, so that an
        example's values stay in their order, too.

        Args:
            sizes: of the dimensions, int, and SymInt where the batch is in it.
            batch: the batch's size, a SymInt.

        Returns:
            None where the batch would be taken apart.
        """
        parts = [size for dim in self.dims for size in dim]
        places = [place for place, size in enumerate(sizes) if not isinstance(size, int)]
        if None not in parts:
            return None if places else Layout.of_weight(sizes)
        if len(places) != 1 or 0 in (*parts, *sizes):
            return None
        (at,), where = places, parts.index(None)
        slower, rest = divmod(_product(parts[:where]), math.prod(sizes[:at]))
        faster, more = divmod(_product(parts[where + 1 :]), math.prod(sizes[at + 1 :]))
        if rest or more or slower * faster != times(sizes[at], batch):
            return None
        middle = (*[slower] * (slower > 1), None, *[faster] * (faster > 1))
        before, after = Layout.of_weight(sizes[:at]), Layout.of_weight(sizes[at + 1 :])
        return Layout((*before.dims, middle, *after.dims))

    def simplified(self) -> Layout:
        """Without axes of size 1 beside the batch, where an example has others."""
        if self.is_single:
            return self
        dims = [tuple(n for n in dim if n != 1) if None in dim else dim for dim in self.dims]
        return Layout(tuple(dims))

    @property
    def is_single(self) -> bool:
        """Whether there is one value an example."""
        return self.dims == ((None, 1),)

    def restored(self, batch: Tensor) -> Tensor:
        """A batch of examples (N, ...) as the network's code has it."""
        if self.is_plain:
            return batch
        axes = iter(range(1, batch.ndim))
        order = [0 if size is None else next(axes) for dim in self.dims for size in dim]
        return batch.permute(order).reshape([_size(dim, batch.shape[0]) for dim in self.dims])


def _size(dim: Sequence[int | None], batch: Any) -> Any:
    return math.prod(batch if size is None else size for size in dim)


def _product(sizes: Sequence[int | None]) -> int:
    return math.prod(size for size in sizes if size is not None)


def times(size: Any, batch: Any) -> int | None:
    """How many times the batch's size (a SymInt) a size is; None where it is no such multiple."""
    if isinstance(size, int):
        return None
    ratio = size.node.expr / batch.node.expr
    return int(ratio) if ratio.is_Integer else None
