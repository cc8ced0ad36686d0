"""Networks of the tests in several processes, and how they are spread over these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

Spread = Literal["plain", "ddp", "fsdp"]


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Layers of 5, 7 and 2 rows: not alike on two or three ranks, the last one empty on one."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 7), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(7, 2)).to(dtype)


def spread(model: nn.Module, how: Spread) -> nn.Module:
    """The network over all processes: its last layer stays with the root of FSDP2."""
    if how == "ddp":
        return DistributedDataParallel(model)
    if how == "fsdp":
        blocks = [m for m in model.children() if list(m.parameters())]
        for block in blocks[:-1]:
            fully_shard(block)
        fully_shard(model)
    return model


def batch(dtype: torch.dtype, *, everything: bool) -> tuple[Tensor, Tensor]:
    """This process's share of twelve examples, or all of them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 1, 6, 6, generator=generator)
    y = torch.randint(0, 2, (12,), generator=generator)
    alone = everything or not dist.is_initialized()
    rank, size = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    return x[rank::size].to(dtype), y[rank::size]


def loss(
    model: Callable[[Tensor], Tensor],
    dtype: torch.dtype = torch.float32,
    *,
    everything: bool = False,
) -> Tensor:
    """The mean loss of this process's share of the examples, or of all of them."""
    x, y = batch(dtype, everything=everything)
    return nn.functional.cross_entropy(model(x).float(), y)


def wholes(model: nn.Module) -> list[Tensor]:
    """Copies of the parameters, whole."""
    return [whole(p).clone() for p in model.parameters()]


def whole(tensor: Tensor) -> Tensor:
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach()
