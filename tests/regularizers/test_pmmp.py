"""PMMP against its objective, written out from arXiv 2505.17469 and differentiated numerically.

loss(a) + strength sum(p) + sum(u (d^2 + w^2 p (1 - p))) with d = a - w p, minimized over a, w, p
and maximized over u.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from cases import fill
from ellzero.regularizers import BoundGates

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here

STRENGTH = 0.3
A = (0.5, -1.25, 2.0, -0.01, 0.0)
W = (1.5, -0.75, 1.0, 0.4, -2.0)
P = (0.25, 0.75, 1.0, 0.0, 0.6)
U = (1.0, 0.5, 3.0, 2.0, 0.7)


def bound(regularizer: ez.Regularizer) -> BoundGates:
    assert regularizer.gates is not None
    return regularizer.gates


def gradient_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def prepared(**options: Any) -> tuple[Any, ez.Regularizer]:
    """Five weights and their stand-ins, none of them where it begins."""
    model: Any = nn.Linear(5, 1, bias=False).double()
    regularizer = ez.Regularizer(model, gates=ez.PMMP(STRENGTH), **options)
    fill(model.weight, A)
    for name, values in (("w", W), ("p", P), ("u", U)):
        fill(bound(regularizer).own[f"{name}/weight"], values)
    return model, regularizer


def objective(a: Tensor, w: Tensor, p: Tensor, u: Tensor, *, strength: float = STRENGTH) -> float:
    """The constraint by its meaning: E (a - w z)^2 over z in {0, 1}, equal to d^2 + w^2 p (1-p)."""
    expected_square = p * (a - w) ** 2 + (1 - p) * a**2
    return float(strength * p.sum() + (u * expected_square).sum())


def differences(values: list[Tensor], which: int, strength: float = STRENGTH) -> list[float]:
    """Central differences of the objective by one of a, w, p, u."""
    h, found = 1e-5, []
    for index in range(5):
        ends = []
        for step in (h, -h):
            moved = [v.clone() for v in values]
            moved[which][index] += step
            ends.append(objective(*moved, strength=strength))
        found.append((ends[0] - ends[1]) / (2 * h))
    return found


VALUES = [torch.tensor(v, dtype=torch.float64) for v in (A, W, P, U)]


def test_the_value_is_the_objective():
    model, regularizer = prepared()
    assert regularizer.value().item() == pytest.approx(objective(*VALUES), rel=1e-12)
    assert model.weight.tolist() == [list(A)]


def test_in_the_beginning_all_are_kept_and_no_constraint_is_violated():
    model: Any = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 4)).double()
    regularizer = ez.Regularizer(model, gates=ez.PMMP(0.25, multiplier=7.0))
    assert regularizer.value().item() == 0.25 * (54 + 108)
    own = bound(regularizer).own
    assert own["w/0.weight"].equal(model[0].weight)
    assert (own["u/2.weight"] == 7).all()


@pytest.mark.parametrize("progress", [None, 0.5])
def test_gradients_are_those_of_finite_differences(progress):
    model, regularizer = prepared(ramp=None if progress is None else ez.Schedule(0, 1, "linear"))
    regularizer.progress = progress
    strength = STRENGTH * (1.0 if progress is None else progress)
    regularizer.before_forward()
    x = torch.tensor([[1.0, 2.0, -1.0, 0.5, 3.0]], dtype=torch.float64)
    model(x).sum().backward()
    regularizer.add_gradient()
    own = bound(regularizer).own
    # the loss is a x, so its gradient is x
    by_loss = gradient_of(model.weight)[0] - x[0]
    assert by_loss.tolist() == pytest.approx(differences(VALUES, 0), abs=1e-8)
    for which, name in ((1, "w"), (2, "p"), (3, "u")):
        found = gradient_of(own[f"{name}/weight"])[0]
        sign = -1 if name == "u" else 1  # an optimizer that descends makes it ascend
        expected = differences(VALUES, which, strength=strength)
        assert (sign * found).tolist() == pytest.approx(expected, abs=1e-8)
    assert regularizer.value().item() == pytest.approx(objective(*VALUES, strength=strength))


def test_a_weight_without_a_gradient_gets_one():
    model, regularizer = prepared()
    regularizer.add_gradient()
    assert gradient_of(model.weight)[0].tolist() == pytest.approx(differences(VALUES, 0), abs=1e-8)


def stepped(regularizer: ez.Regularizer, model: nn.Module, lr: float, times: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(times):
        optimizer.zero_grad()
        regularizer.before_forward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)


def test_the_multiplier_rises_where_the_constraint_is_violated():
    model, regularizer = prepared()
    u = bound(regularizer).own["u/weight"]
    stepped(regularizer, model, 0.01, 1)
    # E (a - w z)^2 = p (a - w)^2 + (1 - p) a^2 > 0 everywhere; Adam's first step is the rate, but
    # less by its epsilon in the fourth, whose violation is 1e-4
    assert (u[0] - torch.tensor(U, dtype=torch.float64)).tolist() == pytest.approx(
        [0.01] * 5, rel=2e-4
    )


@pytest.mark.parametrize("lr", [torch.tensor(0.02), 0.02])
def test_the_stand_ins_learn_at_rate_times_the_learning_rate(lr):
    model: Any = nn.Linear(3, 1, bias=False).double()
    regularizer = ez.Regularizer(model, gates=ez.PMMP(1.0, rate=5.0))
    stepped(regularizer, model, lr, 1)
    # p falls by the strength; the first step of Adam is 5 * 0.02
    assert bound(regularizer).own["p/weight"][0].tolist() == pytest.approx([0.9] * 3)


def test_the_probability_stays_between_0_and_1():
    model, regularizer = prepared()
    p = bound(regularizer).own["p/weight"]
    seen = []
    for _ in range(6):
        stepped(regularizer, model, 0.4, 1)
        assert p.min() >= 0
        assert p.max() <= 1
        seen.append(p.clone())
    assert any((p == 0).any() for p in seen), "choose steps that would go beyond"
    model = nn.Linear(5, 1, bias=False).double()
    fill(model.weight, [2.0] * 5)
    regularizer = ez.Regularizer(model, gates=ez.PMMP(0.0))
    own = bound(regularizer).own
    fill(own["p/weight"], [0.9] * 5)  # with w = a and no strength, p belongs at 1
    stepped(regularizer, model, 0.4, 1)
    assert own["p/weight"].tolist() == [[1.0] * 5]


def test_finalize_puts_the_expectation_in_place_of_each_weight():
    model, regularizer = prepared()
    expected = pytest.approx([0.375, -0.5625, 1.0, 0.0, -1.2], rel=1e-15)
    with regularizer.finalized():
        assert model.weight[0].tolist() == expected
    assert model.weight.tolist() == [list(A)]
    regularizer.finalize()
    assert model.weight[0].tolist() == expected


def least_squares(loss: Callable[[nn.Module], Tensor], strength: float) -> tuple[Any, Tensor]:
    """A line trained by PMMP, and its probabilities at the end."""
    torch.manual_seed(0)
    model: Any = nn.Linear(6, 1, bias=False).double()
    regularizer = ez.Regularizer(model, gates=ez.PMMP(strength))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        regularizer.before_forward()
        loss(model).backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)
    p = bound(regularizer).own["p/weight"].clone()
    regularizer.finalize()
    return model, p[0]


def test_useless_inputs_are_dropped_and_the_useful_one_is_kept():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(200, 1, generator=generator, dtype=torch.float64)
    y = 1.5 * x[:, 2:3] + noise
    model, p = least_squares(lambda m: (m(x) - y).square().mean(), strength=0.1)
    assert p[2] > 0.99
    assert (p[[0, 1, 3, 4, 5]] == 0).all()
    assert model.weight[0, 2].item() == pytest.approx(1.5, abs=0.1)
    assert (model.weight[0, [0, 1, 3, 4, 5]] == 0).all()


@pytest.mark.parametrize("name", ["strength", "rate", "multiplier"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", True, None])
def test_bad_parameters(name, value):
    with pytest.raises(ez.InputError, match=f"^PMMP: {name} is"):
        ez.PMMP(**{"strength": 1.0, name: value})


def test_a_rate_of_zero_would_learn_nothing():
    with pytest.raises(ez.InputError, match=r"^PMMP: rate is 0"):
        ez.PMMP(1.0, rate=0)
    assert ez.PMMP(0, multiplier=0) == ez.PMMP(0.0, multiplier=0.0)
