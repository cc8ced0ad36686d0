"""What sets the group lasso apart from other penalties: it acts on whole units."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ellzero as ez
from cases import fill
from small import classification, mlp, recipe

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    """Weights of which the second unit has none left, and others have single zeros."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=generator, dtype=torch.float64)
    w.view(-1)[::5] = 0.0
    w[1] = 0.0
    return w


def test_a_group_is_what_comes_into_a_unit_or_channel():
    # 3 and 4 into one unit, 1 and 1 into the other
    dense = torch.tensor([[3.0, 4.0], [1.0, -1.0]], dtype=torch.float64)
    assert ez.GroupLasso(1.0).value(dense).item() == pytest.approx(math.sqrt(2) * 5 + 2)
    # two channels of 18 weights: norms sqrt(18) and 2 sqrt(18), each times sqrt(18)
    kernel = torch.ones(2, 2, 3, 3, dtype=torch.float64)
    kernel[1] = -2.0
    assert ez.GroupLasso(1.0).value(kernel).item() == pytest.approx(18 + 36)


@pytest.mark.parametrize("shape", [(), (7,), (7, 1)])
def test_groups_of_one_weight_make_it_the_l1_norm(shape):
    w = torch.linspace(-1, 2, 7, dtype=torch.float64)[: math.prod(shape)].view(shape)
    group, l1 = (penalty(0.3, form="decoupled") for penalty in (ez.GroupLasso, ez.L1))
    assert group.value(w).item() == pytest.approx(l1.value(w).item())
    assert group.gradient(w).equal(l1.gradient(w))
    shrunk = w.clone()
    for penalty, weights in ((group, w), (l1, shrunk)):
        penalty.shrink_(weights, 1.5)
    torch.testing.assert_close(w, shrunk, rtol=1e-14, atol=1e-15)


def test_adds_up_over_the_units():
    w = rows(6, 5)
    penalty = ez.GroupLasso(0.4)
    parts = [penalty.value(part) for part in w.split([1, 2, 3])]
    torch.testing.assert_close(penalty.value(w), torch.stack(parts).sum(), rtol=1e-14, atol=0)


def test_the_pull_on_a_unit_does_not_hang_on_the_size_of_its_weights():
    gradient = ez.GroupLasso(0.5).gradient(rows(6, 9))
    # strength sqrt(9), whatever the norm, and nothing on the unit that has none
    pulls = gradient.norm(dim=1).tolist()
    assert pulls == pytest.approx([1.5, 0, 1.5, 1.5, 1.5, 1.5], rel=1e-14)


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 3, 3), (5, 1, 7)])
@given(seed=st.integers(0, 2**32), step=st.sampled_from([1e-3, 0.1, 1.0, 3.0, 30.0]))
def test_the_decoupled_step_is_the_proximal_one(shape, seed, step):
    # v minimizes 1/2 ||v - w||^2 + t sum ||v_g|| if and only if, for each group, w_g - v_g is
    # t v_g / ||v_g||, or of a norm of at most t where v_g is 0
    w, strength = rows(*shape, seed=seed), 0.3
    v = w.clone()
    ez.GroupLasso(strength, form="decoupled").shrink_(v, step)
    t = step * strength * math.sqrt(w[0].numel())
    for before, after in zip(w, v, strict=True):
        if after.count_nonzero():
            expected = t * after / after.norm()
            torch.testing.assert_close(before - after, expected, rtol=1e-9, atol=1e-12)
        else:
            assert before.norm() <= t


def test_no_random_move_beats_the_proximal_step():
    w, t = rows(4, 6), 1.1
    v = w.clone()
    ez.GroupLasso(t / math.sqrt(6), form="decoupled").shrink_(v, 1.0)

    def objective(candidate: torch.Tensor) -> float:
        return ((candidate - w).square().sum() / 2 + t * candidate.norm(dim=1).sum()).item()

    assert 0 < (v != 0).any(dim=1).sum() < 4
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(200):
            move = size * torch.randn(w.shape, generator=generator, dtype=w.dtype)
            assert objective(v + move) > objective(v)


@pytest.mark.parametrize("step", [0.01, 0.3])
def test_zeros_within_a_unit_stay(step):
    w = rows(6, 5)
    zeros = w == 0
    ez.GroupLasso(1.0, form="decoupled").shrink_(w, step)
    assert (w == 0)[zeros].all()
    gone = (w == 0).all(dim=1)
    assert (w != 0)[~gone].equal(~zeros[~gone]), "units become zero as a whole"


def test_a_step_with_the_learning_rate_of_plain_sgd():
    model = nn.Linear(4, 3, bias=False).double()
    fill(model.weight, [[1.0, -2.0, 2.0, 4.0], [0.0] * 4, [0.0, 0.6, 0.0, 0.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    regularizer = ez.Regularizer(model, ez.GroupLasso(2.0, form="decoupled"))
    assert regularizer.value().item() == pytest.approx(2 * 2 * (5 + 0.6))
    # 0.25 * 2 * sqrt(4) = 1 is taken off norms 5 and 0.6
    regularizer.step(optimizer)
    expected = [[0.8, -1.6, 1.6, 3.2], [0.0] * 4, [0.0] * 4]
    torch.testing.assert_close(model.weight.detach(), torch.tensor(expected).double())
    optimizer.param_groups[0]["lr"] = 0.5
    regularizer.step(optimizer)  # 2 off the norm 4
    torch.testing.assert_close(model.weight.detach(), torch.tensor(expected).double() / 2)


def test_a_kernel_of_channels_last_memory_stays_so():
    model: Any = nn.Conv2d(3, 4, 2, bias=False)
    model.to(memory_format=torch.channels_last)
    fill(model.weight, rows(4, 3, 2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    penalty = ez.GroupLasso(1.0, form="decoupled") + ez.GroupLasso(0.5)
    regularizer = ez.Regularizer(model, penalty)
    regularizer.add_gradient()
    regularizer.step(optimizer)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.weight[1].count_nonzero()
    assert model.weight.grad is not None
    # 0.5 sqrt(12) along each channel that is left
    pulls = model.weight.grad.flatten(1).norm(dim=1).tolist()
    assert pulls == pytest.approx([math.sqrt(3), 0, math.sqrt(3), math.sqrt(3)])


def test_a_recipe_trains_with_it_and_whole_units_go():
    told = recipe(
        train={"penalty": {"group_lasso": {"strength": 1.0, "form": "decoupled"}}},
        prune={"sparsity": 0.0},
        finetune={"epochs": 0},
    )
    assert told.train.penalty == ez.GroupLasso(1.0, form="decoupled")
    assert told.finetune.penalty is None, "fine-tuning drops what sparsifies"
    w = ez.compress(mlp(), classification(), told).model.get_parameter("0.weight")
    units = (w != 0).sum(dim=1)
    assert 0 < (units == 0).sum() < 16
    assert set(units.tolist()) <= {0, 6}
