"""Held masks: zeros stay zero while FSDP2 and DDP train, and replicas that differ are refused."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import ellzero as ez
from distributed_networks import network, sharded
from ellzero.sharding import local, whole

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
}


def _trained(
    model: Any, optimizer: torch.optim.Optimizer, masks: ez.Masks, inputs: Tensor
) -> dict[str, Tensor]:
    """Weights after 20 steps under the masks, and one more without a gradient."""
    with masks.hold(optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            for name, w in masks.weights.items():
                assert local(w)[~local(masks[name])].eq(0).all()
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer.step()  # momentum under the masks would revive the weights
    return {name: whole(w.detach()).clone() for name, w in masks.weights.items()}


def _inputs() -> Tensor:
    return torch.linspace(-1, 1, 60).sin().view(12, 5)


def _trained_on_rank(kind: str, name: str) -> dict[str, Tensor]:
    model: Any = network()
    model = sharded(model) if kind == "fsdp" else DistributedDataParallel(model)
    masks = ez.prune(model, sparsity=0.7)
    share = _inputs().chunk(dist.get_world_size())[dist.get_rank()]
    weights = _trained(model, OPTIMIZERS[name](model.parameters()), masks, share)
    assert all(w.ne(0).equal(whole(masks[n])) for n, w in weights.items())
    return weights


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("kind", "size"), [("fsdp", 2), ("fsdp", 3), ("ddp", 2)])
def test_zeros_stay_and_training_is_that_of_one_process(run_in, kind, size, name):
    model = network()
    masks = ez.prune(model, sparsity=0.7)
    expected = _trained(model, OPTIMIZERS[name](model.parameters()), masks, _inputs())
    for found in run_in(size, _trained_on_rank, kind, name):
        for key, w in expected.items():
            torch.testing.assert_close(found[key], w, atol=1e-5, rtol=0)


def _with_masters() -> None:
    model: Any = network()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model.blocks, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    masks = ez.prune(model, sparsity=0.7)
    assert all(w.dtype == torch.float32 for w in masks.weights.values())
    weights = _trained(model, torch.optim.AdamW(model.parameters()), masks, _inputs())
    assert all(w.ne(0).equal(whole(masks[n])) for n, w in weights.items())
    # bfloat16 shards, whose optimizer keeps its state in float32
    model = sharded(network(dtype=torch.bfloat16))
    masks = ez.prune(model, sparsity=0.7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with masks.hold(optimizer):
        for _ in range(3):
            model(_inputs().bfloat16()).square().mean().backward()
            optimizer.step()
            for w in model.parameters():
                optimizer.state[w]["master"] = w.detach().float() + 1
    for name, w in masks.weights.items():
        kept = whole(masks[name])
        assert whole(w).ne(0).equal(kept)
        assert whole(optimizer.state[w]["master"]).masked_select(~kept).eq(0).all()
        assert whole(optimizer.state[w]["momentum_buffer"]).masked_select(~kept).eq(0).all()


def test_float32_masters_of_bfloat16_weights(run_in):
    run_in(2, _with_masters)


def _refused() -> None:
    model: Any = sharded(network())
    masks = ez.prune(model, sparsity=0.5)
    with pytest.raises(ez.InputError, match="LBFGS works on vectors over all weights in a row"):
        masks.hold(torch.optim.LBFGS(model.parameters()))
    plain: Any = network()
    masks = ez.prune(plain, sparsity=0.5)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    hold = masks.hold(optimizer)
    plain(_inputs()).sum().backward()
    sharded(plain)
    with pytest.raises(ez.InputError, match=r"was sharded .* while masks hold"):
        optimizer.step()
    with pytest.raises(ez.InputError, match=r"was sharded .* while masks hold"):
        hold.release()


def _validated() -> None:
    model: Any = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = ez.prune(model, sparsity=0.5)
    with masks.hold(optimizer):
        for _ in range(2):
            optimizer.zero_grad()
            model(_inputs()).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                model(_inputs())  # FSDP2 keeps the gathered weights of the root
            optimizer.step()
    assert all(whole(w).ne(0).equal(whole(masks[n])) for n, w in masks.weights.items())


def test_a_validation_within_a_hold_leaves_it_at_work(run_in):
    run_in(2, _validated)


def test_what_cannot_be_held_on_sharded_weights_is_refused(run_in):
    run_in(2, _refused)


def _pruned_apart() -> str:
    rank = dist.get_rank()
    model: Any = network(seed=rank)
    masks = ez.prune(model, sparsity=0.5)
    replica = DistributedDataParallel(model)  # all ranks have the weights of rank 0 now
    try:
        masks.hold(torch.optim.SGD(replica.parameters(), lr=0.1))
    except ez.InputError as error:
        return str(error)
    return "held"


def test_pruning_before_ddp_on_ranks_seeded_apart_is_refused(run_in):
    first, second = run_in(2, _pruned_apart)
    assert first == "held"
    assert "not zero where the masks of rank 1 prune them" in second
    assert "after that" in second


def _held_with(sparsities: list[list[float]]) -> list[str]:
    """What each hold says, of masks that differ between ranks or do not."""
    said = []
    for of_ranks in sparsities:
        sparsity = of_ranks[dist.get_rank()]
        model = DistributedDataParallel(network())
        masks = ez.prune(model, sparsity=sparsity)
        dist.barrier()
        try:
            masks.hold(torch.optim.SGD(model.parameters(), lr=0.1)).release()
            said.append("held")
        except ez.InputError as error:
            said.append(str(error))
    return said


def test_masks_that_differ_between_replicas_are_refused(run_in):
    first, second = run_in(2, _held_with, [[0.5, 0.5], [0.5, 0.6], [0.7, 0.7]])
    assert first[0] == second[0] == first[2] == second[2] == "held"
    found = {first[1] == "held", second[1] == "held"}
    assert found == {True, False}  # whoever comes second
    assert "are not those of another rank" in (first[1] + second[1])


def _held_on_rank_0() -> None:
    if dist.get_rank() == 0:
        model = network()
        masks = ez.prune(model, sparsity=0.5)
        masks.hold(torch.optim.SGD(model.parameters(), lr=0.1)).release()
        assert local(model.first.weight) is model.first.weight


def test_a_hold_waits_for_no_other_rank(run_in):
    run_in(2, _held_on_rank_0)
