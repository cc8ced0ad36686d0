"""Gates on networks of several processes: replicas stay alike, parts are those of the whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import ellzero as ez
from ellzero.regularizers import Gates
from spread import Spread, loss, network, spread, wholes

GATES: dict[str, Gates] = {
    "hard_concrete": ez.HardConcrete(1e-3, keep=0.7),
    "pmmp": ez.PMMP(1e-3),
}


def _train(
    model: nn.Module,
    called: nn.Module,
    regularizer: ez.Regularizer,
    steps: int,
    *,
    everything: bool = False,
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        with regularizer.before_forward():
            loss(called, everything=everything).backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)


def _seed() -> None:
    """Seed the ranks apart; one process draws as rank 0 has the others draw."""
    if dist.is_initialized():
        torch.manual_seed(100 + dist.get_rank())
        return
    torch.manual_seed(100)
    torch.manual_seed(int(torch.randint(1 << 62, ())))


def _trained(how: Spread, name: str) -> dict[str, Any]:
    model = network()
    called = spread(model, how)
    regularizer = ez.Regularizer(called, gates=GATES[name])
    _seed()
    _train(model, called, regularizer, 8)
    with regularizer.finalized():
        plain = wholes(model)
    return {
        "weights": wholes(model),
        "plain": plain,
        "value": float(regularizer.value()),
        "state": regularizer.state_dict()["gates"],
    }


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", GATES)
def test_ranks_seeded_apart_train_as_one_process(run_in, how, size, name):
    expected = _trained("plain", name)
    before = network().state_dict()
    assert not expected["weights"][0].equal(before["0.weight"])
    for result in run_in(size, _trained, how, name):
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


def _replicas(renewed: bool) -> list[Tensor]:
    """The gates of two passes; the noise is seeded anew before the second one, or goes on."""
    model = network()
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(1e-3, keep=0.5))
    seen = []
    for _ in range(2):
        torch.manual_seed(7)
        if renewed:
            regularizer.renew_noise()
        with regularizer.before_forward():
            seen.append(model.get_parameter("3.weight").detach().clone())
        regularizer.restore()
    return seen


def test_noise_that_is_renewed_begins_anew(run_in):
    for first, second in run_in(2, _replicas, True):
        assert first.equal(second)
    for first, second in run_in(2, _replicas, False):
        assert not first.equal(second)
    first, second = _replicas(True)  # the global generator, which is seeded before each pass
    assert first.equal(second)


def _saved(name: str) -> Any:
    model = spread(network(), "fsdp")
    regularizer = ez.Regularizer(model, gates=GATES[name])
    _seed()
    _train(model, model, regularizer, 3)
    return wholes(model), regularizer.state_dict()


def _resumed(how: Spread, name: str, weights: list[Tensor], state: Any) -> Any:
    model = network()
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(w)
    called = spread(model, how)
    regularizer = ez.Regularizer(called, gates=GATES[name])
    regularizer.load_state_dict(state)
    _seed()
    _train(model, called, regularizer, 3)
    return wholes(model), regularizer.state_dict()


@pytest.mark.parametrize("name", GATES)
def test_a_state_of_three_ranks_goes_on_with_two_or_one(run_in, name):
    weights, state = run_in(3, _saved, name)[1]
    expected = _resumed("plain", name, weights, copy.deepcopy(state))
    for how in ("ddp", "fsdp"):
        for result in run_in(2, _resumed, how, name, weights, state):
            torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


def _sharded_midway(how: Spread, name: str) -> Any:
    """What a network comes to that is sharded after some steps, with the regularizer it had."""
    model = network()
    regularizer = ez.Regularizer(model, gates=GATES[name])
    torch.manual_seed(3)
    for step in range(4):
        if step == 2:
            spread(model, how)
            torch.manual_seed(4)
            regularizer.renew_noise()
        _train(model, model, regularizer, 1, everything=True)
    return wholes(model), regularizer.state_dict()


@pytest.mark.parametrize("name", GATES)
def test_gates_go_along_with_weights_that_are_sharded(run_in, name):
    replicated = run_in(2, _sharded_midway, "plain", name)[0]
    for result in run_in(2, _sharded_midway, "fsdp", name):
        torch.testing.assert_close(result, replicated, rtol=0, atol=2e-5)


class Own(ez.HardConcrete):
    """Gates that do not say that they are elementwise."""

    elementwise = False


def _refused() -> str:
    with pytest.raises(ez.InputError) as error:
        ez.Regularizer(spread(network(), "fsdp"), gates=Own(1e-3))
    return str(error.value)


def test_gates_that_do_not_say_they_are_elementwise_are_refused(run_in):
    for text in run_in(2, _refused):
        assert text.startswith("Own is not elementwise, and 0.weight is sharded (FSDP2)")
