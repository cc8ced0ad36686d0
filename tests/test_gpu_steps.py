"""Steps on a GPU: all weights at once, in bounded memory, and without a wait for the device."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import PENALTY_CASES, small_network
from ellzero import chunks
from ellzero.training import loop
from ellzero.training.plan import Step
from ellzero.training.state import State
from on_gpu import GPU, GRADIENT, MARKS, each_gradient, gradients, network, without_waiting
from small import convnet, images, recipe

pytestmark = MARKS
EVERY = sum((case.others[0] for case in PENALTY_CASES.values()), ez.L1(0.3))

# all weights at once, and compiled


@each_gradient
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_joined_weights_get_the_bits_that_they_get_one_by_one(penalty, dtype, monkeypatch):
    decoupled = ez.L0(0.1, form="decoupled") + ez.L1(0.1, form="decoupled")
    found = []
    for small in (chunks.SMALL, -1):
        monkeypatch.setattr(chunks, "SMALL", small)
        model = network(dtype).to(GPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        regularizer = ez.Regularizer(model, penalty + decoupled)
        regularizer.add_gradient()
        regularizer.step(optimizer)
        found.append([t for w in model.parameters() for t in (w.detach(), w.grad)])
    torch.testing.assert_close(*found, rtol=2**-23 if dtype == torch.float32 else 2**-7, atol=0)


@pytest.mark.parametrize(
    ("ramp", "dtype"),
    [
        (None, torch.float32),
        (None, torch.bfloat16),
        (ez.Schedule(0.5, 1.0), torch.float32),
    ],
    ids=["float32", "bfloat16", "ramp"],
)
@pytest.mark.parametrize("penalty", [GRADIENT["l0 + l2"], EVERY], ids=["l0 + l2", "every"])
def test_the_compiled_gradient_is_the_plain_one(penalty, ramp, dtype):
    plain, compiled = network(dtype).to(GPU), network(dtype).to(GPU)
    before = gradients(plain)
    for model, is_compiled in ((plain, False), (compiled, True)):
        regularizer = ez.Regularizer(
            model, penalty, layer_scale="paper", ramp=ramp, compile=is_compiled
        )
        regularizer.progress = 0.3
        regularizer.add_gradient()
    expected = gradients(plain)
    rtol = 2e-5 if dtype == torch.float32 else 2**-7
    for name, found in gradients(compiled).items():
        scale = before[name].abs() + (expected[name] - before[name]).abs()
        assert ((found - expected[name]).abs() <= rtol * scale).all(), name


@pytest.mark.parametrize("form", ["gradient", "decoupled", "compiled", "masks"])
@pytest.mark.parametrize("layers", [(1, 6000), (100, 200)], ids=["one large", "many small"])
def test_a_step_takes_bounded_memory(form, layers):
    count, width = layers
    with torch.device(GPU):
        model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(count)])
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    decoupled = ez.L0(0.01, form="decoupled")
    penalty = decoupled if form == "decoupled" else GRADIENT["l0 + l2"]
    regularizer = ez.Regularizer(model, penalty, compile=form == "compiled")
    masks = ez.prune(model, sparsity=0.9)

    def step() -> None:
        if form == "masks":
            masks.bits.apply(masks.weights.values())
        elif form == "decoupled":
            regularizer.step(optimizer)
        else:
            regularizer.add_gradient()

    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    added = torch.cuda.max_memory_allocated() - before
    # a few intermediates of a chunk; where all is in place, next to nothing
    chunks_made = 5 if form in ("gradient", "decoupled") else 0
    assert added <= chunks_made * 4 * chunks.LARGEST + 2**20


def test_pruning_makes_little_beside_the_masks():
    model = nn.Linear(6000, 6000, bias=False, device=GPU)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    masks = ez.prune(model, sparsity=0.9)
    assert masks.nonzeros == 3_600_000
    added = torch.cuda.max_memory_allocated() - before
    assert added <= masks.numel + 5 * 8 * chunks.LARGEST


# nothing waits


def test_what_waits_is_seen():
    with without_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(3, device=GPU).sum().item()


FORMS = {
    "gradient": ez.L0(0.05) + ez.L1(0.01) + ez.L2(0.01) + ez.GroupLasso(0.01) + ez.HoyerSquare(1.0),
    "loss": ez.L0(0.05, form="loss") + ez.L1(0.01, form="loss"),
    "decoupled": ez.L0(0.05, form="decoupled")
    + ez.L1(0.01, form="decoupled")
    + ez.GroupLasso(0.01, form="decoupled"),
    "compiled": ez.L0(0.05, beta=ez.Schedule(1.0, 9.0)) + ez.L2(0.01),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_step_does_not_wait(form, dtype):
    model = small_network(dtype=dtype).to(GPU, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=dtype == torch.float32)
    ramp = ez.Schedule(0, 1, "cubic")
    regularizer = ez.Regularizer(model, FORMS[form], ramp=ramp, compile=form == "compiled")
    masks = ez.prune(model, sparsity=0.5)
    x = torch.randn(6, 2, 5, 5, dtype=dtype, device=GPU)
    with masks.hold(optimizer):
        for step in range(4):
            regularizer.progress = step / 4
            with without_waiting() if step else nullcontext():
                optimizer.zero_grad()
                (model(x).square().mean() + regularizer.loss()).backward()
                regularizer.add_gradient()
                optimizer.step()
                regularizer.step(optimizer, masks=masks if step == 3 else None)


@pytest.mark.parametrize("gates", [ez.PMMP(1e-3), ez.HardConcrete(1e-2)], ids=str)
def test_gates_do_not_wait(gates):
    model = small_network(dtype=torch.float32).to(GPU)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    regularizer = ez.Regularizer(model, ez.L2(1e-4), gates=gates)
    x = torch.randn(6, 2, 5, 5, device=GPU)
    for step in range(3):
        with without_waiting() if step else nullcontext():
            optimizer.zero_grad()
            with regularizer.before_forward():
                model(x).square().mean().backward()
            regularizer.add_gradient()
            optimizer.step()
            regularizer.step(optimizer)


TRAININGS: dict[str, dict[str, Any]] = {
    "gradient": {"penalty": {"l0": {"strength": 1e-3}, "l2": {"strength": 1e-4}}},
    "decoupled, clip, ema": {
        "penalty": {"l0": {"strength": 1e-2, "form": "decoupled"}},
        "clip_grad_norm": 0.1,
        "ema_decay": 0.9,
    },
    "mixup, accumulation": {"mixup": 0.2, "gradient_accumulation_steps": 2},
    "hard concrete, ramp": {
        "gates": {"hard_concrete": {"strength": 1e-3}},
        "ramp": {"shape": "linear"},
    },
}


@pytest.mark.parametrize("train", TRAININGS.values(), ids=list(TRAININGS))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_epoch_of_the_loop_does_not_wait(train, precision):
    model = convnet().to(GPU)
    told = recipe(
        device=GPU,
        precision=precision,
        channels_last=precision == "bfloat16",
        train={"penalty": {}, **train, "batch_size": 4, "epochs": 1},
    )
    state = State(model, ez.select(model), start={}, step=Step("train", epochs=1))
    if "gates" not in train:
        state.masks = ez.prune(model, sparsity=0.5)
    state.equip(told)
    ticks = []

    def tick() -> None:
        ticks.append(1)  # of ten batches; the first makes what stays, and the last ends the epoch
        if len(ticks) == 2:
            torch.cuda.set_sync_debug_mode("error")
        if len(ticks) == 10:
            torch.cuda.set_sync_debug_mode("default")

    try:
        ((metrics, _),) = loop.epochs(state, told, images(), tick=tick)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(ticks) == 10
    assert metrics.train_loss is not None
    assert math.isfinite(metrics.train_loss)
