"""Chunks: large tensors in parts, so that what is made of them is small and stays cached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

CACHED = 1 << 16
"""Elements of a chunk for each thread on a CPU: a few intermediates of it fit a core's cache."""

LARGEST = 1 << 22
"""Elements of a chunk at most, and on devices where each chunk is a launch: 16 MiB of float32."""


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
