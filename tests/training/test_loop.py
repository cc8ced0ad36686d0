"""The loop: one step, or two, on all examples at once, against the same by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from small import blobs, classification, metrics_of, mlp, recipe

RATE, STRENGTH = 0.1, 0.3


def trained(tmp_path, epochs: int, **train: Any) -> dict[str, Tensor]:
    """The weights after full-batch steps of plain gradient descent, and no pruning."""
    plain = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": RATE, "batch_size": 60}
    told = recipe(
        train={**plain, "warmup": 0.0, "decay": "constant", "epochs": epochs, **train},
        prune={"sparsity": 0.0},
        finetune={"epochs": 0},
    )
    result = ez.compress(mlp(), classification(), told, reference=mlp(), folder=tmp_path)
    return dict(result.model.named_parameters())


def descended(model: nn.Module, *, l2: float) -> nn.Module:
    """The network after one step on loss + l2 * (sum of the squared weights), by autograd."""
    x, y = blobs(60, 1)
    loss = nn.functional.cross_entropy(model(x), y)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            loss = loss + l2 * (parameter**2).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= RATE * gradient
    return model


def assert_close(found: dict[str, Tensor], expected: nn.Module) -> None:
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["gradient", "loss"])
def test_a_penalty_adds_its_gradient_in_either_form(form, tmp_path):
    penalty = {"l2": {"strength": STRENGTH, "form": form}}
    assert_close(trained(tmp_path, 1, penalty=penalty), descended(mlp(), l2=STRENGTH))


def test_the_decoupled_form_shrinks_after_the_step(tmp_path):
    penalty = {"l1": {"strength": STRENGTH, "form": "decoupled"}}
    found = trained(tmp_path, 1, penalty=penalty)
    expected = descended(mlp(), l2=0.0)
    with torch.no_grad():
        for parameter in expected.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.sign() * (parameter.abs() - RATE * STRENGTH).relu())
    assert_close(found, expected)
    assert int((found["0.weight"] == 0).sum()) > 0


def test_a_ramp_follows_the_progress_of_the_training(tmp_path):
    penalty = {"l2": {"strength": STRENGTH}}
    found = trained(tmp_path, 2, penalty=penalty, ramp={"shape": "linear"})
    # the first of two steps is at progress 0, the second at 1/2
    assert_close(found, descended(descended(mlp(), l2=0.0), l2=STRENGTH / 2))


def test_warmup_and_decay_set_the_rate_of_every_step(tmp_path):
    trained(tmp_path, 4, warmup=0.5, decay="linear")
    rates = [m["learning_rate"] for m in metrics_of(tmp_path) if m["stage"] == "train"]
    # progress 0, 1/4, 1/2, 3/4: up to the peak half way, and down again
    assert rates == pytest.approx([0.0, RATE / 2, RATE, RATE / 2])


def test_the_training_loss_is_the_mean_over_all_examples_without_the_penalty(tmp_path):
    trained(tmp_path, 1, penalty={"l2": {"strength": STRENGTH}})
    x, y = blobs(60, 1)
    (line,) = [m for m in metrics_of(tmp_path) if m["stage"] == "train"]
    with torch.no_grad():
        expected = nn.functional.cross_entropy(mlp()(x), y).item()
    assert line["train_loss"] == pytest.approx(expected, rel=1e-5)
