"""Weights of networks as distributed programs have them: by plain names, and taken over by name."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import ellzero as ez
from distributed_networks import Tied, network, sharded
from ellzero.sharding import local, whole

NAMES = ["first.weight", "blocks.0.weight", "blocks.1.weight", "last.weight"]


def _found() -> None:
    compiled: Any = network()
    compiled.blocks[1] = torch.compile(compiled.blocks[1], backend="eager")
    models: tuple[Any, ...] = (
        network(),
        DistributedDataParallel(network()),
        torch.compile(DistributedDataParallel(network()), backend="eager"),
        compiled,
        sharded(network()),
        torch.compile(sharded(network()), backend="eager"),
    )
    for model in models:
        weights = ez.select(model)
        assert list(weights) == NAMES
        held = [*model.parameters()]
        assert all(any(w is p for p in held) for w in weights.values())
        weights.require_current()


def test_names_are_plain_and_the_weights_those_of_the_network_within(run_in):
    run_in(2, _found)


def _taken_over() -> tuple[Tensor, int, Tensor]:
    model: Any = network()
    weights = ez.select(model)
    masks = ez.prune(model, sparsity=0.5, weights=weights)
    sharded(model)
    masks.apply()
    assert all(w is model.get_parameter(name) for name, w in weights.items())
    assert all(isinstance(w, DTensor) for w in weights.values())
    assert local(masks["first.weight"]).shape == local(model.first.weight).shape
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with masks.hold(optimizer):
        model(torch.ones(2, 5)).square().sum().backward()
        optimizer.step()
    return whole(masks["first.weight"]), masks.nonzeros, whole(model.first.weight.detach())


@pytest.mark.parametrize("size", [2, 3])
def test_fully_shard_after_pruning_is_taken_over_by_name(run_in, size):
    model = network()
    masks = ez.prune(model, sparsity=0.5)
    for mask, nonzeros, w in run_in(size, _taken_over):
        assert mask.equal(masks["first.weight"])
        assert nonzeros == masks.nonzeros
        assert w.ne(0).equal(mask)
        assert not w.equal(model.first.weight)  # it was trained


def _after_a_forward() -> None:
    model: Any = sharded(network())
    masks = ez.prune(model, sparsity=0.5)
    with torch.no_grad():
        model(torch.ones(2, 5))
    assert not isinstance(model.first.weight, DTensor)  # the gathered one, kept for a backward
    masks.apply()
    assert isinstance(model.first.weight, DTensor)
    with torch.no_grad():
        model(torch.ones(2, 5))
    assert all(isinstance(w, DTensor) for w in ez.select(model).values())


def test_gathered_weights_that_fsdp_keeps_after_a_forward_are_not_what_is_worked_on(run_in):
    run_in(2, _after_a_forward)


def _refused() -> None:
    mesh = init_device_mesh("cpu", (2,))
    model: Any = network()
    weights = ez.select(model)
    for placement, said in ((Shard(1), r"S\(1\)|Shard\(dim=1\)"), (Shard(0), None)):
        w = distribute_tensor(network().first.weight.detach(), mesh, [placement])
        model.first.weight = nn.Parameter(w)
        if said is None:
            ez.select(model)
        else:
            with pytest.raises(ez.InputError, match=rf"first\.weight \(7, 5\).*({said})"):
                ez.select(model)
    model.first.weight = nn.Parameter(distribute_tensor(torch.ones(7, 5), mesh, [Replicate()]))
    assert ez.select(model).numel == 147
    # a parameter of another shape is no sharded form of the weight, nor is a plain one
    for other in (distribute_tensor(torch.ones(9, 5), mesh, [Shard(0)]), torch.ones(7, 5)):
        model.first.weight = nn.Parameter(other)
        with pytest.raises(ez.InputError, match=r"first\.weight of Tied is another parameter now"):
            weights.require_current()
    uneven = torch.ones(2 + dist.get_rank(), 5)  # 2 and 3 rows; torch.chunk gives 3 and 2
    w = DTensor.from_local(uneven, mesh, [Shard(0)], shape=torch.Size((5, 5)), stride=(5, 1))
    with pytest.raises(ez.InputError, match=r"weight \(5, 5\) is a DTensor placed as"):
        ez.select(nn.ParameterDict({"weight": nn.Parameter(w)}), include=["weight"])
    linear = nn.Linear(4, 4)
    nn.utils.parametrizations.weight_norm(linear, dim=1)
    with pytest.raises(ez.InputError, match=r"original1 is sharded by rows.*norm over several"):
        ez.select(sharded(linear))


def test_what_is_spread_in_another_way_is_refused_by_name(run_in):
    run_in(2, _refused)


def _fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with pytest.raises(ez.InputError, match=r"FullyShardedDataParallel.*use fully_shard"):
        ez.select(FullyShardedDataParallel(Tied(), device_id=torch.device("cpu")))


def test_fsdp1_is_refused_by_name(run_in):
    run_in(2, _fsdp1)
