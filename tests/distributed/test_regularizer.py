"""Penalties on networks of several processes: as on one process with whole weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ellzero as ez
from ellzero.penalties import Term
from spread import Spread, loss, network, spread, whole, wholes


class Means(Term):
    """The user's own penalty, which is no sum over weights: the square of their mean magnitude."""

    elementwise = False
    forms = ("gradient", "loss", "decoupled")

    def value(self, w: Tensor) -> Tensor:
        return self.strength * w.abs().mean().square()

    def gradient(self, w: Tensor) -> Tensor:
        return 2 * self.strength * w.abs().mean() * w.sign() / w.numel()

    def shrink_(self, w: Tensor, step: float | Tensor) -> None:
        flat = w.view(-1)  # in place, by way of a view
        flat.mul_(1 - float(step) * self.strength)


PENALTIES: dict[str, ez.Penalty] = {
    "first": ez.L0(3e-3) + ez.GroupLasso(1e-2, form="loss") + ez.L1(0.02, form="decoupled"),
    "second": ez.L0(3e-3, form="loss")
    + ez.GroupLasso(0.05, form="decoupled")
    + ez.HoyerSquare(0.02),
    "third": ez.L0(0.02, form="decoupled")
    + ez.GroupLasso(0.02)
    + ez.HoyerSquare(0.02, form="loss"),
    "own": Means(1.0) + Means(2.0, form="loss") + Means(0.5, form="decoupled"),
}
"""Each kind in each form."""

OPTIONS: dict[str, Any] = {"layer_scale": "inverse", "ramp": ez.Schedule(0, 1)}


def _trained(how: Spread, name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Weights after 20 steps, and what the penalty comes to."""
    model = network(dtype)
    called = spread(model, how)
    regularizer = ez.Regularizer(called, PENALTIES[name], **OPTIONS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(20):
        regularizer.progress = step / 20
        optimizer.zero_grad()
        (loss(called, dtype) + regularizer.loss()).backward()
        regularizer.add_gradient()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        regularizer.step(optimizer)
    return wholes(model), float(regularizer.value())


def _all_trained(how: Spread) -> dict[str, Any]:
    return {name: _trained(how, name) for name in PENALTIES}


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """What one process comes to."""
    return _all_trained("plain")


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("size", [2, 3])
def test_twenty_steps_are_those_of_one_process(run_in, trained, how, size):
    for results in run_in(size, _all_trained, how):
        for name, (weights, value) in results.items():
            expected, of_one = trained[name]
            for w, other in zip(weights, expected, strict=True):
                torch.testing.assert_close(
                    w, other, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
                )
            assert value == pytest.approx(of_one, rel=1e-5), name


HELD: dict[str, ez.Penalty] = {
    form: ez.L0(0.02 if form == "decoupled" else 3e-3, form=form)
    for form in ("gradient", "loss", "decoupled")
}


def _held(how: Spread, form: str) -> Any:
    """Weights after steps with masks held, which 40 of 619 weights pass."""
    model = network()
    called = spread(model, how)
    masks = ez.prune(called, nonzeros=40)
    regularizer = ez.Regularizer(called, HELD[form])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with masks.hold(optimizer):
        for _ in range(20):
            optimizer.zero_grad()
            (loss(called) + regularizer.loss()).backward()
            regularizer.add_gradient()
            optimizer.step()
            regularizer.step(optimizer, masks=masks)
    return wholes(model)


def _all_held(how: Spread) -> dict[str, Any]:
    return {form: _held(how, form) for form in HELD}


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_with_masks_held_twenty_steps_are_those_of_one_process(run_in, how):
    expected = _all_held("plain")
    for form, weights in expected.items():
        nonzeros = sum(int(w.count_nonzero()) for w in weights if w.dim() > 1)
        assert nonzeros == 40 or (form == "decoupled" and 0 < nonzeros < 40), form
    for results in run_in(2, _all_held, how):
        torch.testing.assert_close(results, expected, rtol=0, atol=1e-5)
        for form, weights in results.items():
            for w, other in zip(weights, expected[form], strict=True):
                assert (w == 0).equal(other == 0), form


def _gradients(penalty: ez.Penalty) -> Any:
    """The gradients of a penalty alone, by `add_gradient` and by autograd, and its value."""
    model = spread(network(torch.float64), "fsdp")
    regularizer = ez.Regularizer(model, penalty)
    in_loss = regularizer.loss()
    if in_loss.requires_grad:
        in_loss.backward()
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "add_gradient.. found no gradient")
            regularizer.add_gradient()
    placed = {n: p.grad is not None and type(p.grad) is type(p.data) for n, p in _weights(model)}
    return {n: whole(p.grad) for n, p in _weights(model)}, float(regularizer.value()), placed


def _weights(model: nn.Module) -> Any:
    return [(n, p) for n, p in model.named_parameters() if n.endswith("weight")]


@pytest.mark.parametrize("form", ["gradient", "loss"])
def test_gradients_of_parts_are_finite_differences_of_the_whole(run_in, form):
    penalty = ez.L0(0.3, form=form) + ez.GroupLasso(0.2, form=form) + ez.HoyerSquare(0.1, form=form)
    model = network(torch.float64)

    def value() -> float:
        weights = [w.detach() for _, w in _weights(model)]
        l0 = sum(0.3 * (1 - torch.exp(-5 * w.abs())).sum() for w in weights)
        groups = [w.flatten(1) for w in weights]
        lasso = sum(0.2 * w.shape[1] ** 0.5 * w.square().sum(1).sqrt().sum() for w in groups)
        hoyer = sum(0.1 * w.abs().sum() ** 2 / w.square().sum() for w in weights)
        return float(l0 + lasso + hoyer)

    at = {"0.weight": [(0, 0, 0, 0), (4, 0, 2, 1)], "3.weight": [(0, 0), (4, 7), (6, 79)]}
    at["5.weight"] = [(0, 0), (1, 6)]
    expected = {}
    for name, places in at.items():
        w = model.get_parameter(name).data
        for place in places:
            start, h = float(w[place]), 1e-6
            values = []
            for shift in (h, -h):
                w[place] = start + shift
                values.append(value())
            w[place] = start
            expected[name, place] = (values[0] - values[1]) / (2 * h)
    for size in (2, 3):
        for gradients, total, placed in run_in(size, _gradients, penalty):
            assert total == pytest.approx(value(), rel=1e-12)
            assert all(placed.values())
            for (name, place), slope in expected.items():
                assert float(gradients[name][place]) == pytest.approx(slope, rel=1e-6)


def _half(how: Spread, resumed: bool) -> Any:
    """Weights in bfloat16 after decoupled steps, each too small to show alone."""
    model = network(torch.bfloat16)
    called = spread(model, how)
    penalty = ez.L1(1.0, form="decoupled") + ez.GroupLasso(0.3, form="decoupled")
    regularizer = ez.Regularizer(called, penalty)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    for _ in range(15):
        regularizer.step(optimizer)
    if resumed:
        state = regularizer.state_dict()
        regularizer = ez.Regularizer(called, penalty)
        regularizer.load_state_dict(state)
    for _ in range(15):
        regularizer.step(optimizer)
    return wholes(model), regularizer.state_dict()["remainders"]


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_what_rounding_takes_is_owed_to_parts(run_in, size, resumed):
    expected = _half("plain", False)
    assert not expected[0][2].equal(network(torch.bfloat16)[3].weight)
    for result in run_in(size, _half, "fsdp", resumed):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def _sharded_midway(how: Spread, dtype: torch.dtype) -> Any:
    """Steps before and after a network is sharded, with the regularizer that it had."""
    model = network(dtype)
    penalty = ez.L0(0.1) + ez.HoyerSquare(0.01, form="loss") + ez.L1(0.3, form="decoupled")
    regularizer = ez.Regularizer(model, penalty, layer_scale="paper")
    for step in range(4):
        if step == 2:
            spread(model, how)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        optimizer.zero_grad()
        (loss(model, dtype, everything=True) + regularizer.loss()).backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)
    return wholes(model), regularizer.state_dict()["remainders"], float(regularizer.value())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_regularizer_goes_along_with_weights_that_are_sharded(run_in, dtype):
    weights, remainders, value = _sharded_midway("plain", dtype)
    tolerance = 1e-6 if dtype is torch.float32 else 2e-3
    for others, owed, total in run_in(2, _sharded_midway, "fsdp", dtype):
        for w, other in zip(weights, others, strict=True):
            torch.testing.assert_close(w, other, rtol=0, atol=tolerance)
        assert owed.keys() == remainders.keys()
        assert total == pytest.approx(value, rel=1e-2 if remainders else 1e-5)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 7)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def _tied(how: Spread) -> Any:
    torch.manual_seed(0)
    model = _Tied()
    if how == "fsdp":
        fully_shard(model)
    regularizer = ez.Regularizer(model, ez.L0(0.01) + ez.L1(0.1, form="decoupled"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 7)).square().mean().backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)
    return list(regularizer.weights), wholes(model), float(regularizer.value())


def test_tied_weights_count_once(run_in):
    names, weights, value = _tied("plain")
    assert names == ["first.weight"]
    for size in (2, 3):
        for theirs in run_in(size, _tied, "fsdp"):
            assert theirs[0] == names
            torch.testing.assert_close(theirs[1:], (weights, value), rtol=0, atol=1e-6)


def _hybrid(how: Spread) -> Any:
    """HSDP: replicas of a sharded network."""
    model = network()
    if how == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "rows")))
    regularizer = ez.Regularizer(model, PENALTIES["first"] + PENALTIES["second"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (loss(model) + regularizer.loss()).backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)
    return wholes(model), float(regularizer.value())


def test_replicas_of_shards_are_as_one_process(run_in):
    expected = _hybrid("plain")
    for result in run_in(4, _hybrid, "fsdp"):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def _compiled(how: Spread) -> Any:
    model = network()
    called = spread(model, how)
    # Hoyer-square needs whole weights where they are sharded, and is not compiled there
    penalty = ez.L0(3e-3) + ez.GroupLasso(0.02) + ez.HoyerSquare(0.02)
    regularizer = ez.Regularizer(called, penalty, compile=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        loss(called).backward()
        regularizer.add_gradient()
        optimizer.step()
    return wholes(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")
def test_a_compiled_gradient_is_that_of_parts(run_in):
    expected = _compiled("plain")
    for weights in run_in(3, _compiled, "fsdp", timeout=300.0):
        torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
