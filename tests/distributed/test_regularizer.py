"""Penalties on networks of several processes: as on one process with whole weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero.penalties import Term
from spread import Spread, loss, network, spread, wholes


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
