"""Training in several processes: the network replicated by DDP, and what goes between them.

Snapshots and checkpoints are whole tensors, on the CPU of rank 0 alone, which writes the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ellzero import files, processes, sharding


def forward_of(model: nn.Module, *, compile: bool) -> Callable[..., Any]:
    """The network as the training calls it; its backward averages gradients over the processes."""
    called: Any = torch.compile(model) if compile else model
    if processes.world_size() == 1:
        return called
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(called)


def accumulating(forward: Callable[..., Any], *, is_last: bool) -> AbstractContextManager[Any]:
    """Around a forward and backward pass: gradients are exchanged in the last one of a step."""
    without: Any = getattr(forward, "no_sync", None)
    return nullcontext() if is_last or without is None else without()


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state_dict on the CPU of rank 0; elsewhere it is empty.

    All ranks have to call this.
    """
    return files.copied(model) if processes.is_main() else {}


def restore(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put a network to what `copied` gave, on all ranks, which all have to call this.

    Raises:
        RuntimeError: the tensors are of another network.
    """
    if processes.world_size() == 1:
        model.load_state_dict(tensors)
        return
    expected = model.state_dict()
    if processes.is_main():
        _require_alike(expected, tensors)
    model.load_state_dict({name: received(tensors.get(name), x) for name, x in expected.items()})


def received(tensor: Tensor | None, like: Tensor) -> Tensor:
    """Rank 0's tensor on all ranks, which all have to call this, laid out as `like` is.

    Args:
        tensor: of the shape of `like`; not used elsewhere than on rank 0.
        like: what it is to be put into.
    """
    device = like.device if like.is_cuda else processes.communication_device()
    if processes.is_main():
        assert tensor is not None
        whole = tensor.to(device, like.dtype, memory_format=torch.contiguous_format)
    else:
        whole = torch.empty(like.shape, dtype=like.dtype, device=device)
    processes.broadcast(whole)
    return sharding.part_of(whole, like)


def shared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rank 0's tensors, whole, on the CPU of all ranks, which all have to call this."""
    if processes.world_size() == 1:
        return dict(tensors)
    header = [[n, list(x.shape), str(x.dtype).removeprefix("torch.")] for n, x in tensors.items()]
    whole = {}
    for name, shape, dtype in processes.agreed(header):
        like = torch.empty(shape, dtype=getattr(torch, dtype))
        whole[name] = received(tensors.get(name), like)
    return whole


def _require_alike(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | given.keys()):
        shapes = [tuple(x[name].shape) if name in x else None for x in (expected, given)]
        if shapes[0] != shapes[1]:
            raise RuntimeError(f"{name} is {shapes[1]}; the network's is {shapes[0]}")
