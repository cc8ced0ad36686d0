"""Sharded tensors: those of FSDP2, of which each process holds some rows, as a `DTensor`.

Work is done on the part that is here, for many operations of torch do not know a `DTensor`. Rows
are runs of flat indices in the order of the ranks, so what goes by the flat index needs no whole
tensor. A part may be empty: a tensor of two rows on three ranks. A tensor that is not sharded is a
part that is the whole.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ellzero.chunks import chunks
from ellzero.errors import InputError
from ellzero.tensors import is_distributed, require_plain

if TYPE_CHECKING:  # slow to import, and only needed where there is a DTensor already
    from torch.distributed import ProcessGroup


def require_sharding(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is spread in another way than by rows.

    FSDP2 shards dimension 0 on one dimension of the mesh; on the others (HSDP) it is replicated.

    Raises:
        InputError: a DTensor of tensor parallelism, sharded along another dimension, along several
            dimensions of the mesh or unlike `torch.chunk`; partial sums; on a mesh without this
            process.
    """
    if not is_distributed(tensor):
        return
    sharded: Any = tensor
    rows = _rows(sharded)
    if rows is None or local(tensor).shape != (rows[1] - rows[0], *tensor.shape[1:]):
        placed = ", ".join(map(str, sharded.placements))
        raise InputError(
            f"{name} {tuple(tensor.shape)} is a DTensor placed as ({placed}) on a mesh of "
            f"{tuple(sharded.device_mesh.shape)}; expected rows as FSDP2's fully_shard spreads "
            "them: Shard(dim=0) on one dimension of the mesh, Replicate() on the others. Leave "
            f"it out with exclude=[{name!r}], or work on the network before it is spread"
        )


def require_workable(name: str, tensor: Tensor) -> None:
    """Refuse a weight that is neither a dense tensor of real numbers nor rows of one.

    Raises:
        InputError: as `require_sharding` and `require_plain` raise.
    """
    require_sharding(name, tensor)
    require_plain(name, local(tensor))


def require_no_flat_shards(model: nn.Module) -> None:
    """Refuse FSDP's first version, which cuts weights joined in a row, anywhere within them.

    Raises:
        InputError: the network is within `FullyShardedDataParallel`, or a part of it.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FullyShardedDataParallel):
                raise InputError(
                    "the network is within FullyShardedDataParallel (FSDP1), which cuts weights "
                    "joined in a row, so that no layer is there as such; use fully_shard (FSDP2), "
                    "or prune before"
                )


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here: rows of a `DTensor`, any other tensor as it is.

    It is a view, so what is written to it is written to the tensor; autograd goes through it.

    Example:
        >>> w = torch.ones(2, 3)
        >>> local(w) is w
        True
    """
    sharded: Any = tensor
    return sharded.to_local() if is_distributed(tensor) else tensor


def like(part: Tensor, tensor: Tensor) -> Tensor:
    """A tensor that is sharded as `tensor` is, and of which the part here is `part`.

    Of any dtype; no copy, no communication. Where `tensor` is not sharded, it is `part` itself.
    """
    if not is_distributed(tensor):
        return part
    from torch.distributed.tensor import DTensor

    sharded: Any = tensor
    return DTensor.from_local(
        part,
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def whole(tensor: Tensor) -> Tensor:
    """A tensor as a whole, gathered from the ranks, all of which have to call this.

    A tensor that is not sharded is returned as it is.
    """
    sharded: Any = tensor
    return sharded.full_tensor() if is_distributed(tensor) else tensor


def part_of(whole: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, sharded as `tensor` is; each process copies its own part, none communicates.

    It is on the device of `tensor`. Where that is not sharded, it is `whole` itself, on that
    device.

    Args:
        whole: of the shape of `tensor`, and any dtype.
        tensor: what is sharded, or not.
    """
    if not is_distributed(tensor):
        return whole.to(tensor.device)
    rows = _rows(tensor)
    assert rows is not None, "checked by require_sharding"
    # a copy, for a view would keep all of the whole in memory
    part = whole[slice(*rows)].to(local(tensor).device, copy=True)
    return like(part, tensor)


def redistributed(tensor: Tensor, other: Tensor) -> Tensor:
    """A tensor, sharded as another one of its shape is, or whole as that is, on its device.

    All ranks have to call this where the tensor is sharded, and the other one is not, or otherwise.
    """
    sharded, wanted = cast(Any, tensor), cast(Any, other)
    if not is_distributed(tensor):
        return part_of(tensor, other)
    if not is_distributed(other):
        return whole(tensor).to(other.device)
    if (sharded.device_mesh, sharded.placements) == (wanted.device_mesh, wanted.placements):
        return tensor
    return part_of(whole(tensor), other)


def start(tensor: Tensor) -> int:
    """The flat index, in the whole tensor, at which the part begins that is here.

    Example:
        >>> start(torch.ones(2, 3))
        0
    """
    if not is_distributed(tensor):
        return 0
    rows = _rows(tensor)
    assert rows is not None, "checked by require_sharding"
    return rows[0] * tensor.shape[1:].numel()


def group_of(tensor: Tensor) -> ProcessGroup | None:
    """The processes whose parts make up the whole tensor; None where the whole is here."""
    dimension = _sharded_dimension(tensor) if is_distributed(tensor) else None
    if dimension is None:
        return None
    sharded: Any = tensor
    return sharded.device_mesh.get_group(dimension)


@torch.no_grad()
def summed(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over the parts of tensors that are here -> the sums over the whole tensors.

    Those of sharded tensors are added up over the ranks, which all have to call this, in one
    message for each mesh and dtype; those of other tensors stay as they are.

    Args:
        values: for each tensor a tensor of any shape and dtype, such as a count or a sum.
        tensors: what they are of.

    Example:
        >>> w = torch.ones(2, 3)
        >>> summed([w.sum()], [w])
        [tensor(6.)]
    """
    sums = list(values)
    alike: dict[tuple[ProcessGroup, torch.dtype, torch.device], list[int]] = {}
    for index, (value, tensor) in enumerate(zip(values, tensors, strict=True)):
        group = group_of(tensor)
        if group is not None:
            alike.setdefault((group, value.dtype, _device(tensor)), []).append(index)
    for (group, _, device), indices in alike.items():
        message = torch.cat([values[i].detach().reshape(-1).to(device) for i in indices])
        torch.distributed.all_reduce(message, group=group)
        parts = message.split([values[i].numel() for i in indices])
        for i, part in zip(indices, parts, strict=True):
            sums[i] = part.view(values[i].shape).to(values[i].device)
    return sums


def nonzeros(tensors: Sequence[Tensor]) -> list[int]:
    """How many entries of each tensor are not zero; of sharded ones, all ranks have to call this.

    Example:
        >>> nonzeros([torch.eye(3), torch.zeros(2)])
        [3, 0]
    """
    # in chunks, for a GPU makes integers of 8 bytes of what it counts
    parts = [[part for (part,) in chunks(local(tensor).detach())] for tensor in tensors]
    counts = [torch.stack([part.count_nonzero() for part in some]).sum() for some in parts]
    return [int(count) for count in summed(counts, tensors)]


@torch.no_grad()
def before_and_total(counts: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Of counts in the parts of tensors, the sums of the ranks before, and of all ranks.

    Example:
        >>> before_and_total([torch.tensor(5)], [torch.zeros(9)])
        [(0, 5)]
    """
    rows, ranks = [], []
    for count, tensor in zip(counts, tensors, strict=True):
        sharded: Any = tensor
        dimension = _sharded_dimension(sharded) if is_distributed(tensor) else None
        mesh = None if dimension is None else sharded.device_mesh
        rank, size = (mesh.get_local_rank(dimension), mesh.size(dimension)) if mesh else (0, 1)
        row = count.new_zeros(size)
        row[rank] = count
        rows.append(row)
        ranks.append(rank)
    sums = [row.tolist() for row in summed(rows, tensors)]
    return [(sum(row[:rank]), sum(row)) for row, rank in zip(sums, ranks, strict=True)]


def reshard(model: nn.Module) -> None:
    """Give a network its sharded parameters back, where FSDP2 has kept the gathered ones.

    It does so after a forward pass without backward, and they are thrown away later. The next
    forward pass gathers them again.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                cast(Any, module).reshard()


def _device(tensor: Tensor) -> torch.device:
    """The device whose tensors the ranks of a sharded tensor exchange; parts may be elsewhere.

    Parameters that FSDP2 offloads are on the CPU, while its mesh is one of GPUs.
    """
    sharded: Any = tensor
    kind = sharded.device_mesh.device_type
    part = local(tensor)
    return part.device if part.device.type == kind else torch.device(kind)


def _sharded_dimension(tensor: Any) -> int | None:
    """The dimension of the mesh along which the rows of a DTensor are spread, if there is one."""
    sharded = (d for d, placement in enumerate(tensor.placements) if placement.is_shard())
    return next(sharded, None)


def _rows(tensor: Any) -> tuple[int, int] | None:
    """The rows of a DTensor that are here, from and to; None where it is not spread by rows.

    They are dealt out as by `torch.chunk`: the first ranks have equally many, the last ones fewer.
    """
    from torch.distributed.tensor import Replicate, Shard

    coordinates = tensor.device_mesh.get_coordinate()
    others = [p for p in tensor.placements if not isinstance(p, Replicate)]
    if coordinates is None or tensor.ndim == 0 or others not in ([], [Shard(0)]):
        return None
    dimension, numel = _sharded_dimension(tensor), tensor.shape[0]
    if dimension is None:
        return 0, numel
    each = -(-numel // tensor.device_mesh.size(dimension))
    first = coordinates[dimension] * each
    return min(first, numel), min(first + each, numel)
