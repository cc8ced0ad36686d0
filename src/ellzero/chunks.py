"""Chunks: large tensors in parts, so that what is made of them is small and stays cached.

On a GPU also small tensors together, so that an operation on all of them is one launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

CACHED = 1 << 16
"""Elements of a chunk for each thread on a CPU: a few intermediates of it fit a core's cache."""

LARGEST = 1 << 22
"""Elements of a chunk at most, and on devices where each chunk is a launch: 16 MiB of float32."""

SMALL = 1 << 20
"""Elements up to which a tensor on such a device is joined with others.

Launches of its own take longer there than the copies that joining makes.
"""


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same parts of several tensors of one shape, in no particular order.

    Together they are the whole. Where all tensors are dense and laid out alike, whatever the order
    of their dimensions, the parts are runs of memory.

    Example:
        >>> w = torch.zeros(3, 70_000)
        >>> for part, like in chunks(w, torch.ones(3, 70_000)):
        ...     _ = part.add_(like)
        >>> int(w.sum())
        210000
    """
    if torch.compiler.is_compiling() or _whole.get():
        yield tensors
        return
    numel, size = tensors[0].numel(), chunk_size(tensors[0].device)
    if numel <= size:
        yield tensors
        return
    runs = _runs(tensors)
    if runs is not None:
        yield from zip(*(run.chunk(-(-numel // size)) for run in runs), strict=True)
    else:
        longest = max(range(tensors[0].dim()), key=tensors[0].size)
        for halves in zip(*(tensor.chunk(2, longest) for tensor in tensors), strict=True):
            yield from chunks(*halves)


def joined_chunks(
    groups: Iterable[tuple[Tensor, ...]], written: int
) -> Iterator[tuple[Tensor, ...]]:
    """Chunks of several groups of tensors, each group of one shape, in no particular order.

    Where each operation is a launch (GPUs), small tensors come as one 1-d copy of them, and what is
    written to it is copied back after it. For operations on each element alone.

    Args:
        groups: tensors as `chunks` takes them; the first of each group have the same dtype and
            device, as have the second, and so on.
        written: how many tensors of a group, from its first, are written to.

    Example:
        >>> weights = [torch.zeros(3), torch.zeros(2, 2)]
        >>> for part, like in joined_chunks([(w, torch.ones_like(w)) for w in weights], written=1):
        ...     _ = part.add_(like)
        >>> [float(w.sum()) for w in weights]
        [3.0, 4.0]
    """
    bag: list[list[Tensor]] = []
    left = LARGEST
    for tensors in groups:
        small = is_joined(tensors[0])
        runs = _runs(tensors) if small else None
        if runs is None:
            yield from chunks(*tensors)
            continue
        if runs[0].numel() > left:
            yield from _joined(bag, written)
            bag, left = [], LARGEST
        bag.append(runs)
        left -= runs[0].numel()
    yield from _joined(bag, written)


def _joined(bag: list[list[Tensor]], written: int) -> Iterator[tuple[Tensor, ...]]:
    """One chunk of all in the bag; none where it is empty."""
    if len(bag) < 2:
        yield from map(tuple, bag)
        return
    columns = [list(column) for column in zip(*bag, strict=True)]
    copies = tuple(torch.cat(column) for column in columns)
    yield copies
    sizes = [tensor.numel() for tensor in columns[0]]
    for column, copy in zip(columns[:written], copies, strict=False):
        torch._foreach_copy_(column, copy.split(sizes))  # pyright: ignore[reportPrivateImportUsage]


def is_joined(tensor: Tensor) -> bool:
    """Whether a tensor is so small, and on such a device, that it is joined with others."""
    return tensor.device.type != "cpu" and tensor.numel() <= SMALL


@contextmanager
def whole() -> Iterator[None]:
    """Tensors in one chunk each, for a compiler that makes one loop of all that is done to them."""
    before = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(before)


_whole = ContextVar("whole", default=False)


def ordered_chunks(tensor: Tensor, size: int) -> Iterator[Tensor]:
    """A tensor in 1-d parts of at most `size`, in the order of its flat indices.

    Views where the tensor is contiguous, and copies where it is not.
    """
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(size)
    elif tensor.numel() <= size:
        yield tensor.reshape(-1)
    else:
        for part in tensor.chunk(2) if len(tensor) > 1 else tensor:
            yield from ordered_chunks(part, size)


def chunk_size(device: torch.device) -> int:
    """Elements of a chunk at most."""
    return min(CACHED * torch.get_num_threads(), LARGEST) if device.type == "cpu" else LARGEST


def _runs(tensors: tuple[Tensor, ...]) -> list[Tensor] | None:
    """The tensors as 1-d views in the order of memory, where they have the same one."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(-1) for tensor in tensors]
    order = sorted(range(tensors[0].dim()), key=tensors[0].stride, reverse=True)
    permuted = [tensor.permute(order) for tensor in tensors]
    if all(tensor.is_contiguous() for tensor in permuted):
        return [tensor.view(-1) for tensor in permuted]
    return None
