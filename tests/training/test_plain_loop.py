"""The recipe's loop against the loop that anyone would write in PyTorch, bit for bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero.optimizers import OPTIMIZERS
from ellzero.training.seeds import seed_epoch
from small import blobs, classification, dropout_mlp, mlp, recipe, tensors_equal

RATE, EPOCHS, BATCH = 0.02, 3, 8  # 60 examples: 7 batches of 8, and one of 4
CONSTANT = {"warmup": 0.0, "decay": "constant", "learning_rate": RATE}

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=RATE, fused=True)


def trained(model: nn.Module, **train: Any) -> nn.Module:
    """The network after the recipe's training, without any pruning."""
    length = {} if "steps" in train else {"epochs": EPOCHS}
    told = recipe(
        train={**length, "batch_size": BATCH, **CONSTANT, "penalty": {}, **train},
        prune={"sparsity": 0.0},
        finetune={"epochs": 0},
    )
    return ez.compress(model, classification(), told, reference=model).model


def plain(
    model: nn.Module,
    make: MakeOptimizer = adam,
    *,
    accumulate: int = 1,
    clip: Callable[[list[nn.Parameter]], Any] = lambda _: None,
    penalty: ez.Penalty | None = None,
    steps: int = 10**6,
) -> nn.Module:
    """The network after the same by hand."""
    x, y = blobs(60, 1)
    optimizer = make(model)
    regularizer = penalty and ez.Regularizer(model, penalty)
    model.train()
    taken = 0
    for epoch in range(EPOCHS):
        seed_epoch(0, "train", 0, epoch)
        batches = list(torch.randperm(60).split(BATCH))
        for first in range(0, len(batches), accumulate):
            if taken == steps:
                return model
            taken += 1
            group = batches[first : first + accumulate]
            count = sum(map(len, group))
            optimizer.zero_grad()
            for batch in group:
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                (loss * (len(batch) / count)).backward()
            if regularizer is not None:
                regularizer.add_gradient()
            clip(list(model.parameters()))
            optimizer.step()
    return model


def clip_norm(parameters: list[nn.Parameter]) -> None:
    nn.utils.clip_grad_norm_(parameters, 0.1)


def clip_value(parameters: list[nn.Parameter]) -> None:
    nn.utils.clip_grad_value_(parameters, 0.01)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("lbfgs", "sparseadam")])
def test_each_optimizer_of_torch(name):
    def network() -> nn.Module:  # Muon takes matrices alone
        return mlp() if name != "muon" else nn.Sequential(nn.Linear(6, 3, bias=False))

    cls: Any = OPTIMIZERS[name]
    given = {"momentum": 0.9} if name == "sgd" else {}
    if name in ("adam", "adamw", "adagrad", "sgd"):
        given["fused"] = True
    if name in ("adamw", "muon"):
        given["weight_decay"] = 0.0
    torch.manual_seed(0)
    model = network()
    by_hand = plain(copy.deepcopy(model), lambda m: cls(m.parameters(), lr=RATE, **given))
    found = trained(model, optimizer=cls.__name__)
    assert tensors_equal(found, by_hand)
    assert not tensors_equal(found, model)


def grouped(model: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=RATE, weight_decay=0.5, betas=(0.8, 0.98), eps=1e-6, fused=True
    )


GROUPED = {
    "optimizer": {"name": "AdamW", "betas": [0.8, 0.98], "eps": 1e-6},
    "weight_decay": 0.5,
    "no_decay": ["bias", "norm"],
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as it is": ({}, {}),
    "groups": (GROUPED, {"make": grouped}),
    "clip norm": ({"clip_grad_norm": 0.1}, {"clip": clip_norm}),
    "clip value": ({"clip_grad_value": 0.01}, {"clip": clip_value}),
    "accumulate": ({"gradient_accumulation_steps": 3}, {"accumulate": 3}),
    "steps": ({"steps": 11}, {"steps": 11}),
    "steps that end with an epoch": ({"steps": 16}, {"steps": 16}),
    "fewer steps than an epoch": ({"steps": 2}, {"steps": 2}),
    "all": (
        {**GROUPED, "steps": 7, "gradient_accumulation_steps": 3, "clip_grad_norm": 0.1},
        {"make": grouped, "accumulate": 3, "clip": clip_norm, "steps": 7},
    ),
}


@pytest.mark.parametrize("penalty", [None, 0.1], ids=["plain", "penalty"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_weights(case, penalty):
    keys, by_hand = CASES[case]
    if penalty is not None:
        keys = {**keys, "penalty": {"l2": {"strength": penalty}}}
    expected = plain(dropout_mlp(), penalty=penalty and ez.L2(penalty), **by_hand)
    found = trained(dropout_mlp(), **keys)
    assert tensors_equal(found, expected)
    assert case == "as it is" or not tensors_equal(found, trained(dropout_mlp()))


@pytest.mark.parametrize("form", ["gradient", "loss"])
def test_a_step_of_several_batches_is_one_of_all_their_examples(form):
    # 60 examples: a step of 4 batches of 8, and one of 3 batches of 8 and one of 4
    keys = {"optimizer": "sgd", "penalty": {"l2": {"strength": 0.1, "form": form}}}
    whole = trained(mlp(), batch_size=32, **keys)
    parts = trained(mlp(), batch_size=8, gradient_accumulation_steps=4, **keys)
    assert not tensors_equal(parts, trained(mlp(), batch_size=8, **keys))
    for p, q in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_the_penalty_comes_before_the_clipping():
    # its gradient alone has a norm of thousands, but no weight moves further than the rate
    before = mlp()
    keys = {"optimizer": "sgd", "momentum": 0.0, "epochs": 1, "batch_size": 60}
    after = trained(mlp(), penalty={"l2": {"strength": 1e3}}, clip_grad_norm=1.0, **keys)
    moved = torch.cat([(p - q).flatten() for p, q in parameters_of(after, before)])
    assert moved.norm().item() == pytest.approx(RATE, rel=1e-3)


def parameters_of(*models: nn.Module) -> list[tuple[Tensor, ...]]:
    return list(zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize("gates", ["hard_concrete", "pmmp"])
def test_gates_are_drawn_once_for_the_batches_of_a_step(gates):
    keys = {"optimizer": "sgd", "gates": {gates: {"strength": 1e-3}}}
    whole = trained(mlp(), batch_size=60, **keys)
    parts = trained(mlp(), batch_size=20, gradient_accumulation_steps=3, **keys)
    for p, q in parameters_of(parts, whole):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def lines_of(**train: Any) -> list[ez.EpochMetrics]:
    """The metrics of a training with a rate that falls from 3 to 0."""
    falling = {"learning_rate": 3.0, "warmup": 0.0, "decay": "linear", "optimizer": "sgd"}
    lines: list[ez.EpochMetrics] = []
    told = recipe(train={"batch_size": 8, **falling, **train})
    ez.compress(mlp(), classification(), told, reference=mlp(), callback=lines.append)
    return [line for line in lines if line.stage == "train"]


def test_schedules_go_by_the_steps_of_the_optimizer():
    # 8 batches are 3 steps an epoch: the last one of the only epoch is at progress 2/3
    (line,) = lines_of(epochs=1, gradient_accumulation_steps=3)
    assert line.learning_rate == pytest.approx(1.0)
    # of 12 steps, 8 an epoch: the last ones of the two epochs are at 7/12 and 11/12
    lines = lines_of(steps=12)
    assert [line.learning_rate for line in lines] == pytest.approx([3 * 5 / 12, 3 / 12])


def test_the_training_loss_of_a_last_epoch_of_a_few_steps_is_over_their_examples():
    # one batch of 8, before any step: the mean over it alone
    (line,) = lines_of(steps=1)
    seed_epoch(0, "train", 0, 0)
    x, y = blobs(60, 1)
    chosen = torch.randperm(60)[:8]
    with torch.no_grad():
        expected = nn.functional.cross_entropy(mlp()(x[chosen]), y[chosen]).item()
    assert line.train_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_gradual_pruning_by_steps_ends_where_it_should(steps):
    # at 4 steps an epoch: within the first epoch, at its end, within the third
    told = recipe(
        train={"steps": steps, "batch_size": 16}, prune={"nonzeros": 20, "gradual": {"until": 1.0}}
    )
    result = ez.compress(mlp(), classification(), told)
    assert [o.epochs for o in result.record.outcomes] == [3, -(-steps // 4), 3]
    assert result.record.outcomes[1].nonzeros == result.masks.nonzeros == 20
