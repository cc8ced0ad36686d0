"""Masks x optimizers: zeros stay zero, and what is kept moves as if it were all there was."""

import copy

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from cases import OPTIMIZER_CASES, small_network
from in_training import backward, data, revived, started, step_without_gradient

STEPS = 5
each_optimizer = pytest.mark.parametrize("case", OPTIMIZER_CASES.values(), ids=OPTIMIZER_CASES)
reviving = pytest.mark.parametrize(
    "case", [pytest.param(c, id=name) for name, c in OPTIMIZER_CASES.items() if c.revives]
)


@each_optimizer
def test_pruned_weights_are_zero_after_every_step(case):
    model, optimizer = started(case)
    masks = ez.prune(model, sparsity=0.6)
    kept = {n: model.get_parameter(n).detach().clone() for n in masks}
    with masks.hold(optimizer):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            assert revived(model, masks) == 0
    for name, mask in masks.items():
        moved = model.get_parameter(name).detach() != kept[name]
        assert moved.equal(mask), "every kept weight moves, and no other"


@each_optimizer
def test_kept_weights_move_as_if_they_were_the_only_ones(case):
    # The reference knows no masks: the kept weights are packed into vectors, which an optimizer of
    # the same kind trains; every forward pass scatters them into tensors of zeros.
    model = small_network()
    masks = ez.prune(model, sparsity=0.6)
    reference = copy.deepcopy(model)
    packed = {
        name: nn.Parameter(p.detach()[masks[name]] if name in masks else p.detach().clone())
        for name, p in reference.named_parameters()
    }
    reference_optimizer = case(packed.values())
    optimizer = case(model.parameters())
    with masks.hold(optimizer):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
            reference_optimizer.zero_grad()
            whole = {
                name: torch.zeros_like(masks[name], dtype=p.dtype).masked_scatter(masks[name], p)
                if name in masks
                else p
                for name, p in packed.items()
            }
            x, y = data(step)
            logits = torch.func.functional_call(reference, whole, (x,))
            nn.functional.cross_entropy(logits, y).backward()
            reference_optimizer.step()
    for name, p in model.named_parameters():
        got = p.detach()[masks[name]] if name in masks else p.detach()
        torch.testing.assert_close(got, packed[name].detach(), rtol=1e-9, atol=1e-12)


@each_optimizer
def test_nothing_is_revived_after_the_hold(case):
    model, optimizer = started(case)
    masks = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        for step in range(STEPS):
            backward(model, step)
            optimizer.step()
    for _ in range(3):
        step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0


@reviving
def test_without_a_hold_momentum_does_revive(case):
    # the negative control of the test above: masks applied by hand after each step
    model, optimizer = started(case)
    masks = ez.prune(model, sparsity=0.6)
    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
        masks.apply()
    assert revived(model, masks) == 0
    step_without_gradient(model, optimizer)
    assert revived(model, masks) > 0


@reviving
def test_the_momentum_of_kept_weights_stays(case):
    model, optimizer = started(case)
    masks = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        backward(model, 0)
        optimizer.step()
        before = copy.deepcopy(optimizer.state_dict()["state"])
    after = optimizer.state_dict()["state"]
    names = [name for name, _ in model.named_parameters()]
    cleared = 0
    for index, name in enumerate(names):
        for key, value in before[index].items():
            if not isinstance(value, Tensor) or value.shape != model.get_parameter(name).shape:
                assert after[index][key] == value  # the count of steps
            elif name in masks:
                assert after[index][key].equal(value * masks[name])
                cleared += int((value * ~masks[name]).count_nonzero())
            else:
                assert after[index][key].equal(value)
    assert cleared > 0


def test_other_parameters_move_on():
    model, optimizer = started(OPTIMIZER_CASES["adamw-foreach"])
    masks = ez.prune(model, sparsity=0.6)
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n not in masks}
    with masks.hold(optimizer):
        backward(model, 0)
        optimizer.step()
    assert others
    assert all(not model.get_parameter(n).equal(old) for n, old in others.items())


def test_a_hold_puts_stray_weights_back_at_once():
    model, optimizer = started(OPTIMIZER_CASES["sgd-loop"])
    masks = ez.prune(model, sparsity=0.6)
    optimizer.step()  # without a hold
    assert revived(model, masks) > 0
    with masks.hold(optimizer):
        assert revived(model, masks) == 0


def test_a_weight_that_no_group_owns_is_named():
    model = small_network()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    masks = ez.prune(model, sparsity=0.5)
    with pytest.raises(ez.EllzeroError, match=r"4\.weight is in no parameter group"):
        masks.hold(optimizer)
    backward(model, 0)
    optimizer.step()
    assert revived(model, masks) > 0, "no half of a hold is left on the optimizer"


def _step_and_raise(optimizer: torch.optim.Optimizer, error: type[BaseException]) -> None:
    optimizer.step()
    raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_ends_the_hold(error):
    model, optimizer = started(OPTIMIZER_CASES["sgd-momentum-foreach"])
    masks = ez.prune(model, sparsity=0.6)
    backward(model, 0)
    with pytest.raises(error), masks.hold(optimizer):
        _step_and_raise(optimizer, error)
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0, "its momentum is cleared"
    backward(model, 1)
    optimizer.step()
    assert revived(model, masks) > 0, "its hook is gone"


def test_release_ends_a_hold_without_a_with():
    model, optimizer = started(OPTIMIZER_CASES["adam-fused"])
    masks = ez.prune(model, sparsity=0.6)
    hold = masks.hold(optimizer)
    backward(model, 0)
    optimizer.step()
    assert revived(model, masks) == 0
    hold.release()
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0
    backward(model, 1)
    optimizer.step()
    assert revived(model, masks) > 0


def test_a_hold_that_saw_no_step():
    model = small_network()
    optimizer = torch.optim.Adam(model.parameters())
    masks = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        pass
    assert not optimizer.state
    assert revived(model, masks) == 0


def test_survives_an_optimizer_that_is_loaded_within():
    model, optimizer = started(OPTIMIZER_CASES["adam-foreach"])
    saved = copy.deepcopy(optimizer.state_dict())  # full of momentum
    masks = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        optimizer.load_state_dict(saved)
        backward(model, 0)
        optimizer.step()
        assert revived(model, masks) == 0
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gradient_scaler_that_skips_a_step(dtype):
    model = nn.Linear(8, 8).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks = ez.prune(model, sparsity=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with masks.hold(optimizer):
        for x in (1.0, torch.inf, 1.0):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((2, 8), x, dtype=dtype)).float().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            assert revived(model, masks) == 0
            assert model.weight.dtype == dtype
            assert model.weight.isfinite().all()


def test_weights_in_channels_last_order():
    model = small_network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    masks = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        for step in range(2):
            backward(model, step)
            optimizer.step()
            assert revived(model, masks) == 0
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0
    assert not model[0].weight.is_contiguous()


def test_each_of_several_optimizers_holds_its_own_weights():
    model = small_network()
    masks = ez.prune(model, sparsity=0.6)
    groups = [[model[0].weight, model[0].bias], [model[4].weight], [model[6].weight]]
    held = [ez.Masks.of(ez.select(model, include=[f"{i}.weight"])) for i in (0, 4, 6)]
    optimizers = [torch.optim.SGD(group, lr=0.1, momentum=0.9) for group in groups]
    holds = [m.hold(o) for m, o in zip(held, optimizers, strict=True)]
    backward(model, 0)
    for optimizer in optimizers:
        optimizer.step()
    assert revived(model, masks) == 0
    for hold in holds:
        hold.release()
    assert not any(o._optimizer_step_post_hooks for o in optimizers)
