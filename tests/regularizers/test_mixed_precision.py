"""Mixed precision: the penalty enters once and unscaled, whatever a gradient scaler does."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from cases import fill, small_network

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here

STEPS, SCALE = 4, 2.0**12
L0_STRENGTH, BETA, L2_STRENGTH = 0.02, 7.0, 0.05

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
}
FORMS = {
    "gradient": ez.L0(L0_STRENGTH, beta=BETA) + ez.L2(L2_STRENGTH),
    "decoupled": ez.L0(L0_STRENGTH, beta=BETA, form="decoupled"),
    "both": ez.L0(L0_STRENGTH, beta=BETA, form="decoupled") + ez.L2(L2_STRENGTH),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
each_form = pytest.mark.parametrize("penalty", FORMS.values(), ids=FORMS)
accumulating = pytest.mark.parametrize("micro", [1, 3], ids=["1-batch", "3-batches"])


def batch(seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 3, (6,), generator=generator)


def micro_losses(model: nn.Module, step: int, micro: int) -> list[Callable[[], Tensor]]:
    """The losses of a step's micro-batches, to be called one after the other."""
    dtype = next(model.parameters()).dtype

    def loss(seed: int) -> Tensor:
        x, y = batch(seed, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            outputs = model(x)
        return nn.functional.cross_entropy(outputs.to(dtype), y) / micro

    return [lambda seed=100 * step + i: loss(seed) for i in range(micro)]


def scaled_steps(
    model: nn.Module, penalty: Any, make: Any, micro: int, scaler: torch.amp.GradScaler
) -> None:
    """The loop that the manual tells, with a scaler that does not skip a step."""
    optimizer, regularizer = make(model.parameters()), ez.Regularizer(model, penalty)
    for step in range(STEPS):
        optimizer.zero_grad()
        for loss in micro_losses(model, step, micro):
            scaler.scale(loss()).backward()
        scaler.unscale_(optimizer)
        regularizer.add_gradient()
        scaler.step(optimizer)
        scaler.update()
        regularizer.step(optimizer)


def plain_steps(model: nn.Module, penalty: Any, make: Any, micro: int) -> None:
    """The same without any scaler."""
    optimizer, regularizer = make(model.parameters()), ez.Regularizer(model, penalty)
    for step in range(STEPS):
        optimizer.zero_grad()
        for loss in micro_losses(model, step, micro):
            loss().backward()
        regularizer.add_gradient()
        optimizer.step()
        regularizer.step(optimizer)


@each_optimizer
@each_form
@accumulating
def test_a_scaler_changes_no_bit_of_the_weights(make, penalty, micro):
    # float32 weights, the forward pass in bfloat16: a power of two scales both without rounding
    scaled, plain = (small_network(dtype=torch.float32) for _ in range(2))
    scaled_steps(scaled, penalty, make, micro, torch.amp.GradScaler("cpu", init_scale=SCALE))
    plain_steps(plain, penalty, make, micro)
    start = small_network(dtype=torch.float32).state_dict()
    for name, w in scaled.named_parameters():
        assert w.equal(plain.get_parameter(name)), name
        assert not w.equal(start[name]), f"{name} did not move"


@each_optimizer
@each_form
@accumulating
def test_the_penalty_enters_once_however_many_batches_are_accumulated(make, penalty, micro):
    # The reference knows nothing of the package: the mean loss and the penalty as one sum, which
    # autograd differentiates, and the decoupled step weight by weight.
    model, reference = (small_network() for _ in range(2))
    scaled_steps(model, penalty, make, micro, torch.amp.GradScaler("cpu", init_scale=SCALE))
    weights = [p for p in reference.parameters() if p.ndim > 1]
    decoupled = [term for term in penalty.terms if term.form == "decoupled"]
    optimizer = make(reference.parameters())
    for step in range(STEPS):
        optimizer.zero_grad()
        objective = torch.stack([loss() for loss in micro_losses(reference, step, micro)]).sum()
        for w in weights:
            if not decoupled:
                objective = objective + L0_STRENGTH * (1 - torch.exp(-BETA * w.abs())).sum()
            if len(penalty.terms) == 2:
                objective = objective + L2_STRENGTH * (w * w).sum()
        objective.backward()
        optimizer.step()
        rate = optimizer.param_groups[0]["lr"]
        for w in weights if decoupled else ():
            fill(w, [shrunk(number, rate) for number in w.detach().view(-1).tolist()])
    for name, w in model.named_parameters():
        torch.testing.assert_close(w, reference.get_parameter(name), rtol=1e-9, atol=1e-11)


def shrunk(number: float, rate: float) -> float:
    pull = rate * L0_STRENGTH * BETA * math.exp(-BETA * abs(number))
    return math.copysign(max(abs(number) - pull, 0.0), number)


@each_optimizer
@each_form
def test_a_step_that_the_scaler_skips_leaves_the_weights_as_they_were(make, penalty):
    model = small_network(dtype=torch.float32)
    optimizer, regularizer = make(model.parameters()), ez.Regularizer(model, penalty)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    skipped = []
    for step in range(4):
        before = [w.detach().clone() for w in model.parameters()]
        optimizer.zero_grad()
        for i, loss in enumerate(micro_losses(model, step, 3)):
            # one of three micro-batches overflows in the second and the third step
            spoilt = i == 1 and step in (1, 2)
            scaler.scale(loss() * (math.inf if spoilt else 1)).backward()
        scaler.unscale_(optimizer)
        regularizer.add_gradient()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        skipped.append(scaler.get_scale() < scale)
        if not skipped[-1]:
            regularizer.step(optimizer)
        same = [w.equal(old) for w, old in zip(model.parameters(), before, strict=True)]
        assert all(same) if skipped[-1] else not any(same)
    assert skipped == [False, True, True, False]
    assert all(w.isfinite().all() for w in model.parameters())


def test_held_weights_stay_zero_through_skipped_steps():
    model = small_network(dtype=torch.float32)
    masks = ez.prune(model, sparsity=0.6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    regularizer = ez.Regularizer(model, FORMS["both"])
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    with masks.hold(optimizer):
        for step in range(4):
            optimizer.zero_grad()
            (loss,) = micro_losses(model, step, 1)
            scaler.scale(loss() * (math.inf if step == 2 else 1)).backward()
            scaler.unscale_(optimizer)
            regularizer.add_gradient()
            scaler.step(optimizer)
            scale = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() >= scale:
                regularizer.step(optimizer, masks=masks)
            for name, mask in masks.items():
                w = model.get_parameter(name)
                assert w.isfinite().all()
                assert int(w[~mask].count_nonzero()) == 0


# a network in bfloat16


@pytest.mark.parametrize("beta", [5.0, 100.0, 1e4])
@pytest.mark.parametrize("layout", ["rows", "channels-last", "gradient-laid-out-otherwise"])
def test_a_bfloat16_gradient_is_rounded_once(beta, layout):
    # 90,000 weights are more than a block; their magnitudes fit beta, so that exp shows
    generator = torch.Generator().manual_seed(int(beta))
    size = (300, 300) if layout == "rows" else (100, 100, 3, 3)
    numbers = torch.randn(size, generator=generator, dtype=torch.float64) * (3 / beta)
    numbers.view(-1)[::7] = 0
    model: Any = nn.Linear(300, 300, bias=False) if layout == "rows" else nn.Conv2d(100, 100, 3)
    model = model.to(torch.bfloat16)
    if layout != "rows":
        model = model.to(memory_format=torch.channels_last)
    fill(model.weight, numbers)
    w = model.weight.detach().double()
    pull = 0.02 * beta * w.sign() * torch.exp(-beta * w.abs()) + 2 * 0.05 * w
    # about as large as the pull, with either sign, so that sums cancel here and there
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    gradient = (pull * noise).to(torch.bfloat16)
    if layout == "channels-last":
        gradient = gradient.to(memory_format=torch.channels_last)
    model.weight.grad = gradient.clone()
    weights = ez.select(model, include=["weight"])
    ez.Regularizer(model, ez.L0(0.02, beta=beta) + ez.L2(0.05), weights=weights).add_gradient()
    got, exact = model.weight.grad, gradient.double() + pull
    assert got.dtype == torch.bfloat16
    # what float32 lacks, of the addends; sums that were taken in bfloat16 lack 2**-9 of them
    lacking = 1e-5 * (gradient.double().abs() + pull.abs())
    assert ((got.double() - exact).abs() <= 2**-8 * exact.abs() + lacking).all()
    assert (got != gradient).double().mean() > 0.5, "the penalty did act"


@pytest.mark.parametrize("beta", [5.0, 100.0, 1e4])
def test_a_bfloat16_weight_without_a_gradient_gets_the_penalty_rounded_once(beta):
    model: Any = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    fill(model.weight, torch.randn(64, 64, generator=generator) * (3 / beta))
    ez.Regularizer(model, ez.L0(0.02, beta=beta) + ez.L2(0.05)).add_gradient()
    w = model.weight.detach().double()
    exact = 0.02 * beta * w.sign() * torch.exp(-beta * w.abs()) + 2 * 0.05 * w
    torch.testing.assert_close(model.weight.grad.double(), exact, rtol=2**-8 + 1e-5, atol=0)


def test_a_bfloat16_network_is_shrunk_in_float32():
    # beta |w| = 5.27 in bfloat16 is off by 0.008, of which a sevenfold would be left in the end
    model: Any = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    fill(model.weight, [1.0, -1 / 128, -27 / 1024, 0.0])
    regularizer = ez.Regularizer(model, ez.L0(0.045, beta=200.0, form="decoupled"))
    regularizer.step(torch.optim.SGD(model.parameters(), lr=0.5))
    # rate * strength * beta = 4.5; at 1 exp is 0, and at 1/128 the pull is 0.94
    left = 27 / 1024 - 4.5 * math.exp(-200 * 27 / 1024)
    expected = torch.tensor([1.0, 0.0, -left, 0.0]).to(torch.bfloat16)
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.detach().view(-1).equal(expected)
