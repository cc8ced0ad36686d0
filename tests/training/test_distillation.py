"""Distillation from the reference: by hand, and against the same loop in plain PyTorch."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero.errors import InputError
from ellzero.training.distillation import soft_divergence
from ellzero.training.seeds import seed_epoch
from small import blobs, classification, dropout_mlp, mlp, recipe, regression, tensors_equal

RATE = 0.05
TRAIN: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": RATE,
    "warmup": 0.0,
    "decay": "constant",
    "penalty": {},
    "epochs": 2,
}


# the distance


def test_the_divergence_by_hand():
    student = torch.zeros(1, 2)
    teacher = torch.tensor([[math.log(3), 0.0]])  # 3/4 and 1/4
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert soft_divergence(student, teacher, 1.0).tolist() == pytest.approx([expected])
    # at T = 1/2 the odds are squared, 9 to 1
    expected = 0.25 * (0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert soft_divergence(student, teacher, 0.5).tolist() == pytest.approx([expected])


def test_at_a_high_temperature_logits_are_matched():
    # Hinton et al., equation 4: the gradient is (z - v) / C for logits of mean zero
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    z, v = z - z.mean(1, keepdim=True), v - v.mean(1, keepdim=True)
    z.requires_grad_()
    soft_divergence(z, v, 1e4).sum().backward()
    torch.testing.assert_close(z.grad, ((z - v) / 4).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("class_dim", [1, -1])
def test_there_is_one_of_each_target(class_dim):
    student, teacher = torch.randn(2, 3, 5, 4, 6)
    found = soft_divergence(student, teacher, 2.0, class_dim)
    assert found.shape == ((3, 4, 6) if class_dim == 1 else (3, 5, 4))
    assert (found > 0).all()


# in a run


def trained(model: nn.Module, reference: nn.Module, **train: Any) -> tuple[nn.Module, list[Any]]:
    """The network after the training, and its lines of metrics."""
    lines: list[ez.EpochMetrics] = []
    told = recipe(train={**TRAIN, **train}, prune={"sparsity": 0.0}, finetune={"epochs": 0})
    model = ez.compress(
        model, classification(), told, reference=reference, callback=lines.append
    ).model
    return model, [line for line in lines if line.stage == "train"]


def by_hand(model: nn.Module, teacher: nn.Module, weight: float, t: float) -> nn.Module:
    x, y = blobs(60, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, fused=True)
    teacher.eval()
    for epoch in range(2):
        seed_epoch(0, "train", 0, epoch)
        for batch in torch.randperm(60).split(16):
            optimizer.zero_grad()
            z = model(x[batch])
            with torch.no_grad():
                p = torch.softmax(teacher(x[batch]) / t, 1)
            soft = (p * (p.log() - torch.log_softmax(z / t, 1))).sum(1).mean()
            loss = nn.functional.cross_entropy(z, y[batch])
            ((1 - weight) * loss + weight * t**2 * soft).backward()
            optimizer.step()
    return model


def assert_close(found: nn.Module, expected: nn.Module) -> None:
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "weight", "temperature"),
    [(0.4, 0.4, 2.0), ({"weight": 0.7, "temperature": 5}, 0.7, 5.0), (1, 1.0, 2.0)],
)
def test_it_is_the_loop_that_anyone_would_write(key, weight, temperature):
    # with dropout, which the teacher does not have
    found, _ = trained(dropout_mlp(), dropout_mlp(seed=5), start="initial", distillation=key)
    expected = by_hand(dropout_mlp(), dropout_mlp(seed=5), weight, temperature)
    assert_close(found, expected)


def test_a_network_that_begins_as_its_teacher_has_nothing_to_learn_from_it():
    reference = mlp(seed=5)
    found, lines = trained(mlp(), reference, start="reference", distillation=1)
    assert [line.train_loss for line in lines] == pytest.approx([0, 0], abs=1e-6)
    assert_close(found, reference)


def test_of_numbers_the_distance_is_the_mean_square():
    def loss(model: nn.Module, weight: float) -> float:
        keys = {"epochs": 1, "batch_size": 60, "start": "initial", "distillation": weight}
        told = recipe(train={**TRAIN, **keys}, finetune={"epochs": 0})
        lines: list[ez.EpochMetrics] = []
        ez.compress(model, regression(), told, reference=mlp(1, seed=5), callback=lines.append)
        assert lines[0].train_loss is not None
        return lines[0].train_loss

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 6, generator=generator)
    y = 2 * x[:, :1] - x[:, 1:2] + 0.1 * torch.randn(60, 1, generator=generator)
    with torch.no_grad():
        outputs, taught = mlp(1)(x), mlp(1, seed=5)(x)
    by_targets, by_teacher = ((outputs - t).square().mean().item() for t in (y, taught))
    assert loss(mlp(1), 0.0) == pytest.approx(by_targets, rel=1e-5)
    assert loss(mlp(1), 0.25) == pytest.approx(0.75 * by_targets + 0.25 * by_teacher, rel=1e-5)


def losses(**tables: Any) -> list[tuple[str, float | None]]:
    """The stage and the training loss of each epoch."""
    found: list[tuple[str, float | None]] = []

    def note(metrics: ez.EpochMetrics) -> None:
        found.append((metrics.stage, metrics.train_loss))

    ez.compress(mlp(), classification(), recipe(**tables), callback=note)
    return found


@pytest.mark.parametrize(
    ("tables", "stages"),
    [
        ({"train": {"distillation": 0.5}}, {"train", "finetune"}),
        ({"finetune": {"distillation": 0.5}}, {"finetune"}),
    ],
)
def test_the_stages_that_learn_from_it(tables, stages):
    pairs = zip(losses(**tables), losses(), strict=True)
    assert {one[0] for one, other in pairs if one != other} == stages


def test_the_fine_tuning_takes_it_over_and_a_weight_of_0_is_none():
    told = recipe(train={"distillation": {"weight": 0.5, "temperature": 4}})
    assert told.finetune.distillation == told.train.distillation
    assert ez.Recipe.parse(told.to_table()) == told
    off = recipe(train={"distillation": 0.5}, finetune={"distillation": 0})
    assert off.finetune.distillation is not None
    assert off.finetune.distillation.weight == 0
    assert off.train.distillation is not None
    assert off.train.distillation.temperature == 2.0


def test_a_weight_of_0_asks_nothing_of_the_data():
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    data = classification(loss=loss, task=None, score="loss")
    models = [
        ez.compress(mlp(), data, recipe(train=table)).model for table in ({}, {"distillation": 0})
    ]
    assert tensors_equal(*models)


def test_a_loss_of_the_user_s_own_is_refused_before_anything_is_trained(tmp_path):
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    told = recipe(train={"distillation": 0.5})
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="distillation compares outputs"):
        ez.compress(mlp(), classification(loss=loss, task=None, score="loss"), told, folder=folder)
    assert not folder.exists()
