"""Masks of sharded weights: laid out as they are, exact figures, whole masks taken and given."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import ellzero as ez
from distributed_networks import network, sharded
from ellzero.sharding import local, part_of, start, summed, whole


def _parts() -> None:
    model: Any = sharded(network())
    for w, plain in zip(model.parameters(), network().parameters(), strict=True):
        first, part = start(w), local(w.detach())
        assert plain.detach().reshape(-1)[first : first + part.numel()].equal(part.reshape(-1))
        assert whole(part_of(plain.detach(), w)).equal(plain)
        assert local(part_of(plain.detach(), w)).untyped_storage().nbytes() <= 4 * part.numel()
    weights = [*model.parameters(), torch.ones(3)]
    sums = summed([local(w.detach()).sum() for w in weights], weights)
    plain_sums = [w.detach().sum() for w in network().parameters()] + [torch.tensor(3.0)]
    torch.testing.assert_close(sums, plain_sums)


@pytest.mark.parametrize("size", [2, 3])
def test_parts_are_where_they_say_and_add_up_to_the_whole(run_in, size):
    run_in(size, _parts)


def _kept_zeros() -> None:
    plain: Any = network()
    with torch.no_grad():
        plain.first.weight[6, 3] = plain.last.weight[1, 2] = plain.blocks[0].weight[0, 0] = 0
    kept = {"first.weight": [33], "last.weight": [9]}
    model: Any = sharded(copy.deepcopy(plain))
    masks = ez.Masks.of(ez.select(model), kept)
    assert masks.kept_zeros == kept
    assert (masks.nonzeros, masks.numel) == (146, 147)
    assert masks.sparsity == pytest.approx(1 / 147)
    with pytest.raises(ez.InputError, match="reach outside its 35"):
        ez.Masks.of(masks.weights, {"first.weight": [35]})


@pytest.mark.parametrize("size", [2, 3])
def test_kept_zeros_are_flat_indices_of_the_whole_weights(run_in, size):
    run_in(size, _kept_zeros)


def _moved_between() -> None:
    model: Any = sharded(network())
    masks = ez.prune(model, sparsity=0.5)
    wholes = {name: whole(mask) for name, mask in masks.state_dict().items()}
    # whole masks into a sharded network, and sharded ones into another sharded one
    for state in (wholes, masks.state_dict()):
        others = ez.Masks.of(ez.select(sharded(network(seed=1))))
        assert others.sparsity == 0
        others.load_state_dict(state)
        assert {name: whole(mask).tolist() for name, mask in others.items()} == {
            name: mask.tolist() for name, mask in wholes.items()
        }
        others.apply()
        assert all(whole(w).ne(0).equal(wholes[n]) for n, w in others.weights.items())
    # sharded masks to networks that are whole, such as an average, and sharded
    for other in (network(seed=2), torch.optim.swa_utils.AveragedModel(network(seed=2))):
        masks.apply_to(other)
        found = dict(other.named_parameters())
        prefix = "module." if isinstance(other, torch.optim.swa_utils.AveragedModel) else ""
        assert all(found[prefix + n].ne(0).equal(wholes[n]) for n in wholes)
    plain = ez.Masks(ez.select(network()), wholes)
    for apply in (masks, plain):
        other = sharded(network(seed=2))
        apply.apply_to(other)
        assert all(whole(other.get_parameter(n)).ne(0).equal(wholes[n]) for n in wholes)


def test_masks_move_between_whole_and_sharded_networks(run_in):
    run_in(3, _moved_between)


def _mixed() -> tuple[dict[str, Tensor], int]:
    model: Any = network(ties=True)
    fully_shard(model.blocks, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    masks = ez.prune(model, nonzeros=60)
    assert [isinstance(mask, DTensor) for mask in masks.values()] == [False, True, True, False]
    return {name: whole(mask) for name, mask in masks.items()}, masks.nonzeros


def _on_replicas() -> tuple[dict[str, Tensor], int]:
    model: Any = network(ties=True)
    mesh = init_device_mesh("cpu", (1, 3), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh)
    masks = ez.prune(model, nonzeros=60)
    return {name: whole(mask) for name, mask in masks.items()}, masks.nonzeros


@pytest.mark.parametrize("function", [_mixed, _on_replicas])
def test_plain_and_replicated_weights_count_once(run_in, function):
    model = network(ties=True)
    masks = ez.prune(model, nonzeros=60)
    for found, nonzeros in run_in(3, function):
        assert nonzeros == masks.nonzeros == 60
        assert all(found[name].equal(mask) for name, mask in masks.items())


def _not_finite() -> None:
    for value in (float("nan"), float("inf")):
        plain: Any = network()
        with torch.no_grad():
            plain.blocks[1].weight[6, 6] = value
        with pytest.raises(ez.InputError, match=r"blocks\.1\.weight \(7, 7\) holds NaN or inf"):
            ez.prune(sharded(plain), sparsity=0.5)


def test_a_nan_in_one_part_is_refused_on_all_ranks(run_in):
    run_in(3, _not_finite)


def _warned() -> list[str]:
    model: Any = sharded(network())
    with torch.no_grad():
        for w in model.parameters():
            local(w).zero_()
        local(model.first.weight).fill_(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ez.EllzeroWarning)
        masks = ez.prune(model, nonzeros=100)
    assert masks.nonzeros == 35
    return [str(warning.message) for warning in caught]


def test_rank_0_alone_warns(run_in):
    first, *others = run_in(3, _warned)
    assert len(first) == 2
    assert "only 35 are nonzero" in first[0]
    assert "3 of 4 layers" in first[1]
    assert others == [[], []]


def _normalized() -> Tensor:
    model: Any = _normalized_network()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    masks = ez.prune(model, nonzeros=11)
    with pytest.raises(ez.InputError, match="leaves a row without a weight"):
        masks.load_state_dict({name: torch.zeros(7, 5, dtype=torch.bool) for name in masks})
    return whole(masks["parametrizations.weight.original1"])


def _normalized_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.utils.parametrizations.weight_norm(nn.Linear(5, 7))


def test_weight_normalization_keeps_a_weight_of_each_row(run_in):
    masks = ez.prune(_normalized_network(), nonzeros=11)
    for found in run_in(3, _normalized):
        assert found.any(1).all()
        assert found.equal(masks["parametrizations.weight.original1"])
