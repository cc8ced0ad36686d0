"""Training in several processes: the network replicated by DDP or sharded by FSDP2.

Snapshots and checkpoints are whole tensors, on the CPU of rank 0 alone, which writes the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ellzero import files, processes
from ellzero.sharding import part_of
from ellzero.tensors import is_distributed


def forward_of(model: nn.Module, *, compile: bool) -> Callable[..., Any]:
    """The network as the training calls it; its backward averages gradients over the processes."""
    called: Any = torch.compile(model) if compile else model
    if processes.world_size() == 1 or is_sharded(model):
        return called
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(called)


def accumulating(forward: Callable[..., Any], *, is_last: bool) -> AbstractContextManager[Any]:
    """Around a forward and backward pass: gradients are exchanged in the last one of a step."""
    network: Any = forward
    if is_last or processes.world_size() == 1:
        return nullcontext()
    return _without_exchange(network) if is_sharded(network) else network.no_sync()


@contextmanager
def _without_exchange(network: Any) -> Iterator[None]:
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of a network's parameters."""
    return any(is_distributed(parameter) for parameter in model.parameters())


def shard(model: nn.Module, device: torch.device) -> None:
    """Shard a network by FSDP2, in place, and move it to the device, a block at a time.

    Blocks are the members of the outermost `Sequential`, `ModuleList` and `ModuleDict`s, which are
    gathered one at a time; all else is gathered with the network. Where blocks share a parameter,
    the network is one block.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.world_size(),))
    for module in (*_blocks(model), model):
        # the root, too, so that all parameters are shards whenever the network is not at work
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    blocks = list(_members(model))
    within = {module for block in blocks for module in block.modules()}
    others = (m for m in model.modules() if m not in within)
    held = [set(block.parameters()) for block in blocks]
    held.append({p for module in others for p in module.parameters(recurse=False)})
    is_shared = sum(map(len, held)) > len(set().union(*held))
    return [] if is_shared else blocks


def _members(module: nn.Module) -> Iterator[nn.Module]:
    is_list = isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    for child in module.children():
        if is_list and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from _members(child)


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state_dict on the CPU of rank 0; elsewhere it is empty.

    All ranks have to call this.
    """
    if not processes.is_main() and not is_sharded(model):
        return {}
    return files.copied(model, keep=processes.is_main())


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
    return part_of(whole, like)


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
