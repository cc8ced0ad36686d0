"""Masks that the regularizer's step applies, too, before its decoupled step."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import OPTIMIZER_CASES
from in_training import backward, revived, started, step_without_gradient

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here

STEPS = 4
OPTIMIZERS = {
    name: OPTIMIZER_CASES[name]
    for name in (
        "sgd-loop",
        "sgd-momentum-foreach",
        "sgd-nesterov-fused",
        "adam-loop",
        "adamw-foreach",
        "adamw-fused",
    )
}
DECOUPLED = {
    "l0": ez.L0(0.05, beta=6, form="decoupled"),
    "l1": ez.L1(0.1, form="decoupled"),
    "group-lasso": ez.GroupLasso(0.05, form="decoupled"),
    "all": ez.L0(0.05, form="decoupled")
    + ez.L1(0.05, form="decoupled")
    + ez.GroupLasso(0.02, form="decoupled")
    + ez.L2(0.01),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
each_penalty = pytest.mark.parametrize("penalty", DECOUPLED.values(), ids=DECOUPLED)


def whole_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    regularizer: ez.Regularizer,
    step: int,
    masks: ez.Masks | None,
) -> None:
    backward(model, step)
    regularizer.add_gradient()
    optimizer.step()
    regularizer.step(optimizer, masks=masks)


# the same as by hook


@each_optimizer
@each_penalty
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_together_is_the_same_as_by_hook(make, penalty, order):
    ends = []
    for together in (True, False):
        model, optimizer = started(make)
        model.to(memory_format=order)
        masks = ez.prune(model, sparsity=0.6)
        before = [model.get_parameter(name).detach().clone() for name in masks]
        regularizer = ez.Regularizer(model, penalty, layer_scale="paper")
        with masks.hold(optimizer):
            for step in range(STEPS):
                whole_step(model, optimizer, regularizer, step, masks if together else None)
                assert revived(model, masks) == 0
        moved = [model.get_parameter(name) != old for name, old in zip(masks, before, strict=True)]
        assert all(m.equal(mask) for m, mask in zip(moved, masks.values(), strict=True))
        ends.append((model.state_dict(), optimizer.state_dict()["state"]))
    (left, left_state), (right, right_state) = ends
    for name, end in left.items():
        torch.testing.assert_close(end, right[name], rtol=1e-12, atol=1e-15)
    assert left_state.keys() == right_state.keys()
    for index, state in left_state.items():
        for key, value in state.items():
            torch.testing.assert_close(value, right_state[index][key], rtol=1e-10, atol=1e-15)


def test_the_masks_come_before_the_decoupled_step():
    # the optimizer puts (0, 4) at (2, 4); the norm that shrinks is that under the mask, 4 not 4.47
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 4.0]]))
    masks = ez.Masks.of(ez.select(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    regularizer = ez.Regularizer(model, ez.GroupLasso(1 / 2**0.5, form="decoupled"))
    model.weight.grad = torch.tensor([[-4.0, 0.0]], dtype=torch.float64)
    optimizer.step()
    assert model.weight.tolist() == [[2.0, 4.0]]
    regularizer.step(optimizer, masks=masks)
    # a group of two: rate * strength * sqrt(2) = 1/2 off the norm
    assert model.weight[0, 0].item() == 0
    assert model.weight[0, 1].item() == pytest.approx(3.5, rel=1e-14)


# pruned weights are zero


REGULARIZERS: dict[str, Callable[[nn.Module], ez.Regularizer]] = {
    "none-decoupled": lambda m: ez.Regularizer(m, ez.L0(0.05) + ez.L2(0.01)),
    "by-loss": lambda m: ez.Regularizer(m, ez.L1(0.05, form="loss")),
    "other-weights": lambda m: ez.Regularizer(
        m, DECOUPLED["l1"], weights=ez.select(m, include=["4.weight", "6.bias"])
    ),
    "none-of-the-masked": lambda m: ez.Regularizer(
        m, DECOUPLED["l1"], weights=ez.select(m, include=["*.bias"])
    ),
    "ramp-at-zero": lambda m: at_progress(
        ez.Regularizer(m, DECOUPLED["all"], ramp=ez.Schedule(0, 1, "linear")), 0.0
    ),
    "strength-zero": lambda m: ez.Regularizer(m, ez.L0(0.0, form="decoupled")),
}


def at_progress(regularizer: ez.Regularizer, progress: float) -> ez.Regularizer:
    regularizer.progress = progress
    return regularizer


@each_optimizer
@pytest.mark.parametrize("bind", REGULARIZERS.values(), ids=REGULARIZERS)
def test_pruned_weights_are_zero_whatever_the_regularizer_acts_on(make, bind):
    model, optimizer = started(make)
    masks = ez.prune(model, sparsity=0.6)
    kept = {name: model.get_parameter(name).detach().clone() for name in masks}
    regularizer = bind(model)
    with masks.hold(optimizer):
        for step in range(STEPS):
            whole_step(model, optimizer, regularizer, step, masks)
            assert revived(model, masks) == 0
    for name, mask in masks.items():
        assert (model.get_parameter(name) != kept[name]).equal(mask), "all others move"


def test_a_regularizer_of_more_weights_than_are_masked():
    model, optimizer = started(OPTIMIZERS["adamw-fused"])
    masks = ez.prune(model, sparsity=0.6, weights=ez.select(model, include=["4.weight"]))
    regularizer = ez.Regularizer(model, ez.L1(1.0, form="decoupled"))
    others = [model[0].weight.detach().clone(), model[6].weight.detach().clone()]
    with masks.hold(optimizer):
        optimizer.zero_grad()  # nothing moves but by the decoupled step
        regularizer.step(optimizer, masks=masks)
    assert revived(model, masks) == 0
    for w, before in zip((model[0].weight, model[6].weight), others, strict=True):
        expected = before.sign() * (before.abs() - 0.01).relu()  # the rate is 0.01
        torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=1e-15)


@each_penalty
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_in_lower_precision_and_channels_last(penalty, dtype):
    model, optimizer = started(OPTIMIZERS["adamw-foreach"], dtype=dtype)
    model.to(memory_format=torch.channels_last)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, penalty)
    with masks.hold(optimizer):
        for step in range(STEPS):
            whole_step(model, optimizer, regularizer, step, masks)
            assert revived(model, masks) == 0
    assert model[0].weight.dtype == dtype
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].weight.isfinite().all()


@each_optimizer
def test_a_frozen_weight_keeps_its_values_and_its_zeros(make):
    model, optimizer = started(make)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, DECOUPLED["l1"])
    model[4].weight.requires_grad_(False)
    model[4].weight.grad = None
    before = model[4].weight.detach().clone()
    with masks.hold(optimizer):
        for step in range(STEPS):
            whole_step(model, optimizer, regularizer, step, masks)
            assert revived(model, masks) == 0
            assert model[4].weight.equal(before)
    assert not model[0].weight.equal(before)


@pytest.mark.parametrize("masks", [True, {"4.weight": torch.ones(8, 36, dtype=torch.bool)}])
def test_masks_that_are_none_are_refused(masks):
    model, optimizer = started(OPTIMIZERS["sgd-loop"])
    regularizer = ez.Regularizer(model, DECOUPLED["l1"])
    with pytest.raises(ez.InputError, match=r"masks is (bool|dict); expected the Masks of ez\.pr"):
        regularizer.step(optimizer, masks=masks)


# the end of the hold


@each_optimizer
def test_release_clears_the_state_and_lets_go(make):
    model, optimizer = started(make)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, ez.L1(1e-6, form="decoupled"))
    hold = masks.hold(optimizer)
    for step in range(2):
        whole_step(model, optimizer, regularizer, step, masks)
    assert revived(model, masks) == 0
    hold.release()
    for name, w in masks.weights.items():
        for value in optimizer.state[w].values():
            if isinstance(value, torch.Tensor) and value.shape == w.shape:
                assert int(value[~masks[name]].count_nonzero()) == 0
                assert int(value[masks[name]].count_nonzero()) > 0
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0, "no momentum revives a weight"
    whole_step(model, optimizer, regularizer, 5, None)
    assert revived(model, masks) > 0, "the regularizer's step masks no more"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_lets_go_too(error):
    model, optimizer = started(OPTIMIZERS["sgd-momentum-foreach"])
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, ez.L1(1e-6, form="decoupled"))

    def step_and_raise() -> None:
        whole_step(model, optimizer, regularizer, 0, masks)
        backward(model, 1)
        optimizer.step()
        raise error

    with pytest.raises(error), masks.hold(optimizer):
        step_and_raise()
    assert revived(model, masks) == 0, "half of a step is put right"
    step_without_gradient(model, optimizer)
    assert revived(model, masks) == 0
    whole_step(model, optimizer, regularizer, 2, None)
    assert revived(model, masks) > 0


def test_no_hook_is_left_on_the_optimizer():
    model, optimizer = started(OPTIMIZERS["sgd-loop"])
    masks = ez.prune(model, sparsity=0.6)
    with masks.hold(optimizer):
        assert optimizer._optimizer_step_pre_hooks
        assert optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_second_release_leaves_a_later_hold_alone():
    model, optimizer = started(OPTIMIZERS["sgd-momentum-foreach"])
    regularizer = ez.Regularizer(model, ez.L1(0.1, form="decoupled"))
    masks = ez.prune(model, sparsity=0.5)
    first = masks.hold(optimizer)
    first.release()
    with masks.hold(optimizer):
        whole_step(model, optimizer, regularizer, 0, masks)
        first.release()
        backward(model, 1)
        optimizer.step()
        assert revived(model, masks) == 0


def test_one_hold_after_another():
    # as in a gradual pruning: other masks every epoch
    model, optimizer = started(OPTIMIZERS["adamw-fused"])
    regularizer = ez.Regularizer(model, DECOUPLED["l0"])
    for epoch, sparsity in enumerate((0.3, 0.6, 0.8)):
        masks = ez.prune(model, sparsity=sparsity)
        with masks.hold(optimizer):
            for step in range(2):
                whole_step(model, optimizer, regularizer, 2 * epoch + step, masks)
                assert revived(model, masks) == 0
        assert masks.sparsity == pytest.approx(sparsity, abs=0.01)


# mixed precision, and compiled


@pytest.mark.parametrize("way", ["hook", "together"])
@pytest.mark.parametrize("name", ["sgd-momentum", "adam", "adamw"])
@pytest.mark.parametrize("kind", ["fused", "foreach"])
def test_masks_hold_inside_autocast(name, kind, way):
    model, optimizer = started(OPTIMIZER_CASES[f"{name}-{kind}"], dtype=torch.float32)
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, DECOUPLED["all"])
    given = masks if way == "together" else None
    with masks.hold(optimizer), torch.autocast("cpu", torch.bfloat16):
        for step in range(STEPS):
            before = model[4].weight.detach().clone()
            whole_step(model, optimizer, regularizer, step, given)  # all of it
            assert revived(model, masks) == 0
            assert not model[4].weight.equal(before)
    assert {w.dtype for w in model.parameters()} == {torch.float32}


@each_penalty
def test_the_regularizers_own_arithmetic_is_not_cast(penalty):
    ends = []
    for inside in (torch.autocast("cpu", torch.bfloat16), nullcontext()):
        model, optimizer = started(OPTIMIZERS["sgd-loop"], dtype=torch.float32)
        masks = ez.prune(model, sparsity=0.6)
        regularizer = ez.Regularizer(model, penalty)
        with masks.hold(optimizer), inside:
            model.zero_grad()
            regularizer.add_gradient()
            regularizer.step(optimizer, masks=masks)
        ends.append([*model.parameters(), *(w.grad for w in masks.weights.values())])
    assert all(a is b is None or a.equal(b) for a, b in zip(*ends, strict=True))


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler for torch.compile"
)


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("way", ["hook", "together"])
def test_masks_hold_under_a_compiled_network(way):
    torch.compiler.reset()
    ends = []
    for compiled in (True, False):
        model, optimizer = started(OPTIMIZERS["sgd-nesterov-fused"], dtype=torch.float32)
        forward: Any = torch.compile(model) if compiled else model
        masks = ez.prune(model, sparsity=0.6)
        regularizer = ez.Regularizer(model, DECOUPLED["all"])
        with masks.hold(optimizer):
            for step in range(STEPS):
                whole_step(
                    forward, optimizer, regularizer, step, masks if way == "together" else None
                )
                assert revived(model, masks) == 0
        ends.append(model)
    for name, w in ends[0].named_parameters():
        torch.testing.assert_close(w, ends[1].get_parameter(name), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("kind", ["fused", "foreach"])
@pytest.mark.parametrize("way", ["hook", "together"])
def test_masks_hold_when_the_optimizers_step_is_compiled(way, kind):
    torch.compiler.reset()
    model, optimizer = started(OPTIMIZER_CASES[f"adamw-{kind}"], dtype=torch.float32)
    compiled = torch.compile(lambda: optimizer.step())
    masks = ez.prune(model, sparsity=0.6)
    regularizer = ez.Regularizer(model, DECOUPLED["l0"])
    with masks.hold(optimizer):
        for step in range(STEPS):
            before = model[4].weight.detach().clone()
            backward(model, step)
            compiled()
            if way == "together":
                regularizer.step(optimizer, masks=masks)
            assert revived(model, masks) == 0
            assert not model[4].weight.equal(before)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    compiled()
    assert revived(model, masks) == 0
    backward(model, STEPS)
    compiled()
    assert revived(model, masks) > 0, "after the hold nothing masks, compiled in or not"
