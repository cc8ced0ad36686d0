"""The decoupled step on weights in half precision: as in float32, and rounded once."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from cases import fill

HALF = [torch.bfloat16, torch.float16]
PENALTIES = {
    "l0": ez.L0(1.0, beta=5.0, form="decoupled"),
    "l1": ez.L1(0.5, form="decoupled"),
    "group-lasso": ez.GroupLasso(0.2, form="decoupled"),
    "l0 + group-lasso": ez.L0(1.0, form="decoupled") + ez.GroupLasso(0.1, form="decoupled"),
}
RATE = 1e-5  # a step of half a unit in the last place of bfloat16 would take one of 1e-3
STEPS, FEW = 2000, 200

each_penalty = pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
each_dtype = pytest.mark.parametrize("dtype", HALF, ids=str)


def layer(dtype: torch.dtype, *, inputs: int = 40) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(inputs, 9, dtype=torch.float32)
    fill(made.weight, torch.randn(9, inputs).clamp(-1, 1))
    with torch.no_grad():
        made.weight[0, 0] = 0.3008
        made.weight[1, :3] = 0
    return made.to(dtype)


def steps(model: nn.Module, penalty: Any, count: int) -> ez.Regularizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    regularizer = ez.Regularizer(model, penalty)
    for _ in range(count):
        regularizer.step(optimizer)
    return regularizer


@pytest.mark.parametrize(
    ("penalty", "dtype"),
    [
        *((penalty, torch.bfloat16) for penalty in PENALTIES.values()),
        (PENALTIES["l0 + group-lasso"], torch.float16),
    ],
    ids=str,
)
def test_two_thousand_small_steps_are_those_of_float32_rounded_once(penalty, dtype):
    model = layer(dtype)
    exact = copy.deepcopy(model).float()
    before = model.weight.detach().clone()
    steps(model, penalty, STEPS)
    steps(exact, penalty, STEPS)
    assert model.weight.detach().equal(exact.weight.detach().to(dtype))
    assert (model.weight != before).sum() > model.weight.numel() / 2
    assert int((model.weight[1, :3] != 0).sum()) == 0


def test_the_number_of_the_issue_moves():
    # 0.3008 under l1 loses 2,000 x 1e-5 x 0.5 = 0.01
    model = layer(torch.bfloat16)
    steps(model, PENALTIES["l1"], STEPS)
    assert model.weight[0, 0].item() == pytest.approx(0.3008 - 0.01, abs=2**-10)


@each_dtype
def test_large_weights_go_in_blocks_of_memory_as_small_ones(dtype, monkeypatch):
    monkeypatch.setattr("ellzero.chunks.CACHED", 64)
    model = layer(dtype, inputs=500)
    exact = copy.deepcopy(model).float()
    steps(model, PENALTIES["l0"], 50)
    steps(exact, PENALTIES["l0"], 50)
    assert model.weight.detach().equal(exact.weight.detach().to(dtype))


def neighbour(w: Tensor, up: bool) -> Tensor:
    """The next number of the dtype, by its bits; for positive ones."""
    return (w.view(torch.int16) + (1 if up else -1)).view(w.dtype)


@each_dtype
def test_what_is_owed_survives_an_optimizer_that_moves_the_weights(dtype):
    # an optimizer that goes up and down by one number of the dtype, a thousand times
    model = nn.Linear(4, 2, bias=False, dtype=dtype)
    fill(model.weight, [0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.55, 0.45])
    before = model.weight.detach().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    regularizer = ez.Regularizer(model, ez.L1(0.5, form="decoupled"))
    for step in range(STEPS):
        with torch.no_grad():
            model.weight.copy_(neighbour(model.weight, up=step % 2 == 0))
        regularizer.step(optimizer)
    # 2,000 x 1e-5 x 0.5 = 0.01; up and down are not the same where a weight has moved in between
    lost = before - model.weight.detach().double()
    assert lost == pytest.approx(torch.full((2, 4), 0.01).double(), abs=0.006)


@each_dtype
@each_penalty
def test_pruned_weights_and_new_values_owe_nothing(penalty, dtype):
    model = layer(dtype)
    regularizer = steps(model, penalty, 100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    masks = ez.prune(model, sparsity=0.7)
    regularizer.step(optimizer)
    for name, mask in masks.items():
        assert int(model.get_parameter(name)[~mask].count_nonzero()) == 0
    fill(model.weight, torch.linspace(-2e-3, 2e-3, model.weight.numel()))
    given = model.weight.detach().clone()
    regularizer.step(optimizer)  # a rate of 0: whatever moves was owed
    assert model.weight.detach().equal(given)


@each_dtype
@each_penalty
def test_a_hold_together_with_it(penalty, dtype):
    model = layer(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    masks = ez.prune(model, sparsity=0.5)
    exact = copy.deepcopy(model).float()
    regularizer = ez.Regularizer(model, penalty)
    with masks.hold(optimizer):
        for _ in range(FEW):
            with torch.no_grad():
                model.weight[~masks["weight"]] = 0.25
            regularizer.step(optimizer, masks=masks)
    steps(exact, penalty, FEW)
    assert model.weight.detach().equal(exact.weight.detach().to(dtype))


@each_dtype
@each_penalty
def test_the_state_goes_from_one_regularizer_to_another(penalty, dtype):
    model, whole = layer(dtype), layer(dtype)
    steps(whole, penalty, FEW)
    state = copy.deepcopy(steps(model, penalty, FEW // 2).state_dict())
    assert list(state["remainders"]) == ["weight"]
    assert state["remainders"]["weight"].dtype == torch.float32
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    regularizer = ez.Regularizer(model, penalty)
    regularizer.load_state_dict(state)
    for _ in range(FEW // 2):
        regularizer.step(optimizer)
    assert model.weight.equal(whole.weight)
    with pytest.raises(
        ez.InputError, match=r"a remainder of weight \(9, 40\); expected one of 0\.w"
    ):
        ez.Regularizer(nn.Sequential(nn.Linear(3, 2)), penalty).load_state_dict(state)


def test_float32_owes_nothing():
    assert steps(layer(torch.float32), PENALTIES["l1"], 3).state_dict() == {
        "remainders": {},
        "gates": None,
    }
