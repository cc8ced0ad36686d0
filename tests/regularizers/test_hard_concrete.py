"""Hard-concrete gates against the paper's closed forms, samples and autograd.

Louizos, Welling and Kingma, arXiv 1712.01312: beta = 2/3, gamma = -0.1, zeta = 1.1.
"""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from cases import fill, small_network
from ellzero.regularizers import BoundGates
from small import classification, mlp, nonzero_weights, recipe

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
DRAWS = 200_000


def logistic(x):
    return 1 / (1 + np.exp(-x))


def cdf(x: float, log_alpha: float) -> float:
    """Q(x) of the stretched variable, equation 12 with the stretching of equation 24."""
    s = (x - GAMMA) / (ZETA - GAMMA)
    return float(logistic(BETA * math.log(s / (1 - s)) - log_alpha))


def log_alpha_of(keep: float) -> float:
    """Solved from P(z > 0) = keep by bisection."""
    low, high = -50.0, 50.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - cdf(0, middle) < keep else (low, middle)
    return low


def bound(regularizer: ez.Regularizer) -> BoundGates:
    assert regularizer.gates is not None
    return regularizer.gates


def within_noise(found: float, p: float, count: int = DRAWS) -> bool:
    """Whether a fraction of so many draws is within four standard errors of its probability."""
    return abs(found - p) <= 4 * math.sqrt(p * (1 - p) / count)


def ones(count: int = DRAWS) -> Any:
    model = nn.Linear(count, 1, bias=False).double()
    nn.init.ones_(model.weight)
    return model


def drawn(log_alpha: float) -> np.ndarray:
    """Gates, drawn through the network: the forward pass sees 1 z."""
    model = ones()
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(1.0))
    bound(regularizer).own["weight"].fill_(log_alpha)
    torch.manual_seed(0)
    regularizer.before_forward()
    return model.weight.detach().numpy().ravel().copy()


@pytest.mark.parametrize("log_alpha", [-3.0, -1.0, 0.0, 0.7, 2.5])
def test_the_gates_drawn_have_the_distribution_of_the_paper(log_alpha):
    z = drawn(log_alpha)
    assert z.min() >= 0
    assert z.max() <= 1
    assert within_noise((z == 0).mean(), cdf(0, log_alpha))
    assert within_noise((z == 1).mean(), 1 - cdf(1, log_alpha))
    for x in (0.05, 0.2, 0.5, 0.8, 0.95):
        assert within_noise((z <= x).mean(), cdf(x, log_alpha))
    assert len(np.unique(z[(z > 0) & (z < 1)])) > 1000


@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, 2.5])
def test_the_value_is_the_expected_count_of_nonzeros(log_alpha):
    model = ones(100)
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(2.0))
    bound(regularizer).own["weight"].fill_(log_alpha)
    value = regularizer.value()
    expected = logistic(log_alpha - BETA * math.log(-GAMMA / ZETA))
    assert value.item() == pytest.approx(2 * 100 * expected, rel=1e-12)
    assert value.shape == ()
    assert within_noise((drawn(log_alpha) != 0).mean(), value.item() / 200)


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9, 0.999])
def test_keep_is_the_probability_by_which_gates_are_nonzero_in_the_beginning(keep):
    model = ones()
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(0.5, keep=keep))
    assert regularizer.value().item() == pytest.approx(0.5 * DRAWS * keep)
    assert bound(regularizer).own["weight"][0, 0].item() == pytest.approx(log_alpha_of(keep))
    torch.manual_seed(1)
    regularizer.before_forward()
    assert within_noise(float((model.weight != 0).double().mean()), keep)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_float32_noise_at_its_ends_gives_finite_gradients(extreme, monkeypatch):
    model = ones().float()
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(1.0))
    monkeypatch.setattr(torch, "rand_like", lambda w: torch.full_like(w, extreme))
    regularizer.before_forward()
    assert model.weight.unique().tolist() == [extreme]
    model.weight.grad = torch.ones_like(model.weight)
    regularizer.add_gradient()
    grad = bound(regularizer).own["weight"].grad
    assert grad is not None
    assert grad.isfinite().all()


# the network without noise

SPREAD = (-6.0, -2.5, -2.3, -1.0, 0.0, 1.0, 2.3, 2.5, 6.0)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (6,), generator=generator)


def task_loss(model: nn.Module, seed: int = 0) -> Tensor:
    x, y = batch(seed)
    return nn.functional.cross_entropy(model(x), y)


def spread_gates(model: nn.Module, **options: Any) -> ez.Regularizer:
    """Gates on a network, some of them shut and some wide open."""
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(0.3, **options))
    for log_alpha in bound(regularizer).own.values():
        values = torch.tensor(SPREAD, dtype=torch.float64).repeat(log_alpha.numel())
        log_alpha.copy_(values[: log_alpha.numel()].view_as(log_alpha))
    return regularizer


def without_noise(model: nn.Module, regularizer: ez.Regularizer) -> nn.Module:
    expected = copy.deepcopy(model)
    for name, log_alpha in bound(regularizer).own.items():
        z = np.clip((ZETA - GAMMA) * logistic(log_alpha.numpy()) + GAMMA, 0, 1)
        fill(expected.get_parameter(name), expected.get_parameter(name).detach().numpy() * z)
    return expected


def test_finalized_is_the_network_without_noise_and_the_old_one_afterwards():
    model = small_network().eval()
    regularizer = spread_gates(model)
    before, (x, _) = copy.deepcopy(model), batch()
    expected = without_noise(model, regularizer)
    with regularizer.finalized():
        torch.testing.assert_close(model(x), expected(x), rtol=1e-12, atol=1e-12)
        # at -2.5 and below 1.2 sigmoid - 0.1 < 0, at 2.5 and above > 1
        assert (model[4].weight.view(-1)[[0, 1]] == 0).all()
        assert model[4].weight.view(-1)[[7, 8]].equal(before[4].weight.view(-1)[[7, 8]])
        assert (model[4].weight.view(-1)[[2, 3, 4, 5, 6]] != 0).all()
    assert all(w.equal(before.state_dict()[name]) for name, w in model.state_dict().items())
    with pytest.raises(RuntimeError, match="stop"), regularizer.finalized():
        raise RuntimeError("stop")
    assert all(w.equal(before.state_dict()[name]) for name, w in model.state_dict().items())


def test_finalize_leaves_the_network_without_noise():
    model = small_network().eval()
    regularizer = spread_gates(model)
    expected, (x, _) = without_noise(model, regularizer), batch()
    regularizer.finalize()
    torch.testing.assert_close(model(x), expected(x), rtol=1e-12, atol=1e-12)
    zeros = sum(int((model.get_parameter(n) == 0).sum()) for n in bound(regularizer).own)
    # two of nine values shut the gate; 72, 288 and 24 weights
    assert zeros == 2 * 8 + 2 * 32 + (2 * 2 + 2)


# gradients


def autograd_reference(
    model: nn.Module, regularizer: ez.Regularizer, strength: float, noise: int
) -> dict[str, Tensor]:
    """Gradients of loss(w z) + strength * sum(P(z > 0)) with z written out for autograd."""
    torch.manual_seed(noise)
    leaves, gated, count = {}, {}, torch.zeros((), dtype=torch.float64)
    for name, start in bound(regularizer).own.items():
        w = model.get_parameter(name).detach().clone().requires_grad_()
        a = start.detach().clone().requires_grad_()
        u = torch.rand_like(w)
        s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + a) / BETA)
        z = torch.clamp(s * (ZETA - GAMMA) + GAMMA, min=0, max=1)
        leaves[name], leaves[f"gate {name}"], gated[name] = w, a, w * z
        count = count + (1 - torch.sigmoid(BETA * math.log(-GAMMA / ZETA) - a)).sum()
    twin = copy.deepcopy(model)
    x, y = batch()
    loss = nn.functional.cross_entropy(torch.func.functional_call(twin, gated, (x,)), y)
    (loss + strength * count).backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_gradients_of_weights_and_gates_are_those_of_autograd(strength):
    model = small_network()
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(strength, keep=0.7))
    expected = autograd_reference(model, regularizer, strength, noise=3)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    regularizer.before_forward()
    assert any(not model.get_parameter(n).equal(before[n]) for n in bound(regularizer).own)
    task_loss(model).backward()
    regularizer.add_gradient()
    for name, log_alpha in bound(regularizer).own.items():
        w = model.get_parameter(name)
        assert w.equal(before[name]), "the weights are put back, bit for bit"
        torch.testing.assert_close(w.grad, expected[name], rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(log_alpha.grad, expected[f"gate {name}"], rtol=1e-9, atol=1e-13)


def test_the_gradient_of_the_penalty_is_that_of_finite_differences():
    model = nn.Linear(9, 1).double()
    regularizer = spread_gates(model)
    log_alpha, h = bound(regularizer).own["weight"], 1e-5
    regularizer.before_forward()
    regularizer.add_gradient()  # without a loss the weight has no gradient
    assert model.weight.grad is None
    found = log_alpha.grad
    assert found is not None
    expected = []
    for index in range(9):
        ends = []
        for step in (h, -h):
            log_alpha[0, index] += step
            ends.append(regularizer.value().item())
            log_alpha[0, index] -= step
        expected.append((ends[0] - ends[1]) / (2 * h))
    assert found[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert (found > 0).all()


def test_accumulated_passes_share_their_gates_and_add_up():
    def gradients(*seeds: int) -> list[Tensor]:
        model = small_network()
        regularizer = ez.Regularizer(model, gates=ez.HardConcrete(0.0, keep=0.7))
        torch.manual_seed(5)
        regularizer.before_forward()
        for seed in seeds:
            task_loss(model, seed).backward()
        regularizer.add_gradient()
        found = []
        for name, log_alpha in bound(regularizer).own.items():
            found += [model.get_parameter(name).grad, log_alpha.grad]
        assert all(g is not None and g.any() for g in found)
        return [g for g in found if g is not None]

    for both, one, two in zip(gradients(1, 2), gradients(1), gradients(2), strict=True):
        torch.testing.assert_close(both, one + two, rtol=1e-10, atol=1e-14)


def test_a_second_draw_needs_add_gradient_in_between():
    model = small_network()
    before = copy.deepcopy(model.state_dict())
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(1.0))
    regularizer.before_forward()
    with pytest.raises(ez.InputError, match="before_forward was called twice"):
        regularizer.before_forward()
    regularizer.add_gradient()
    assert all(w.equal(before[name]) for name, w in model.state_dict().items())
    regularizer.before_forward()


def test_add_gradient_needs_a_draw():
    model = small_network()
    regularizer = ez.Regularizer(model, gates=ez.HardConcrete(1.0))
    task_loss(model).backward()
    with pytest.raises(ez.InputError, match="before_forward, which draws them"):
        regularizer.add_gradient()


def test_the_strength_rises_with_the_ramp():
    model = nn.Linear(4, 1).double()
    gates = ez.HardConcrete(2.0, keep=0.5)
    regularizer = ez.Regularizer(model, gates=gates, ramp=ez.Schedule(0, 1, "linear"))
    for progress in (0.0, 0.25, 1.0):
        regularizer.progress = progress
        regularizer.before_forward()
        regularizer.add_gradient()
        # P (1 - P) = 1/4 at P = 1/2
        expected = pytest.approx([2 * progress / 4] * 4)
        grad = bound(regularizer).own["weight"].grad
        assert grad is not None
        assert grad[0].tolist() == expected
        assert regularizer.value().item() == pytest.approx(2 * progress * 4 / 2)


def test_the_gates_learn_at_rate_times_the_learning_rate():
    # Adam's first step is the learning rate, against the gradient's sign
    for lr in (0.01, torch.tensor(0.01)):
        model = nn.Linear(4, 1)
        regularizer = ez.Regularizer(model, gates=ez.HardConcrete(1.0, rate=7.0))
        before = bound(regularizer).own["weight"].clone()
        regularizer.before_forward()
        regularizer.add_gradient()
        regularizer.step(torch.optim.SGD(model.parameters(), lr=lr))
        moved = before - bound(regularizer).own["weight"]
        assert moved[0].tolist() == pytest.approx([0.07] * 4, rel=1e-3)


@pytest.mark.parametrize(("strength", "zeros"), [(0.0, (0, 0)), (0.005, (60, 143))])
def test_a_large_strength_ends_in_exact_zeros(strength, zeros):
    told = recipe(
        train={"epochs": 15, "penalty": {}, "gates": {"hard_concrete": {"strength": strength}}},
        prune={"sparsity": 0.0},
        finetune={"epochs": 0},
    )
    result = ez.compress(mlp(), classification(), told)
    fewest, most = zeros
    assert fewest <= 144 - nonzero_weights(result.model) <= most
    assert result.record.compressed.validation.score > 0.7


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        *(({"strength": s}, "strength is") for s in (-1.0, math.nan, math.inf, "1", True, None)),
        *(({"rate": r}, "rate is") for r in (0, -1.0, math.nan, math.inf, "1", True, None)),
        *(({"keep": k}, "keep is") for k in (0, 1, 1.0, -0.5, 1.5, math.nan, "0.5", True, None)),
    ],
)
def test_bad_parameters(options, expected):
    with pytest.raises(ez.InputError, match=f"^HardConcrete: {expected}"):
        ez.HardConcrete(**{"strength": 1.0, **options})
