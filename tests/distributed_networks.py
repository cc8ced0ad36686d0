"""Small networks for distributed programs: uneven rows, equal magnitudes, a tied weight."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Tied(nn.Module):
    """Five layers; the fourth has the weight of the third, the last has two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.blocks = nn.Sequential(nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 7))
        self.last = nn.Linear(7, 2)
        self.blocks[2].weight = self.blocks[1].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(self.first(x).relu()))


def network(*, ties: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tied:
    """The same on all ranks; with ties most magnitudes occur several times."""
    torch.manual_seed(seed)
    model = Tied().to(dtype)
    if ties:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(10).round_().div_(8)
    return model


def sharded(model: nn.Module) -> Any:
    """The network sharded by FSDP2: the blocks by themselves, then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if isinstance(model, Tied):
        fully_shard(model.blocks, mesh=mesh)
    return fully_shard(model, mesh=mesh)
