"""A loss that becomes NaN: said where, with which strength; what was good before is kept."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import DivergenceError, EllzeroWarning, InputError
from ellzero.run_folder import read_record
from small import (
    blobs,
    classification,
    metrics_of,
    mlp,
    nonzero_weights,
    recipe,
    regression,
    tensors_equal,
)


class FailsLater:
    """Cross-entropy that becomes NaN in training, from this batch on."""

    def __init__(self, batch: int, bad: float = math.nan) -> None:
        self.left, self.bad = batch, bad

    def __call__(self, outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left < 0:
                return loss * self.bad
        return loss


# 60 examples in batches of 16: four batches an epoch; epochs 1 to 3 are the reference
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("batch", "where"),
    [
        (0, r"epoch 1 of reference \(L2 strength 1e-05"),
        (9, r"epoch 3 of reference \("),
        (12, r"epoch 1 of train \(L0 strength 0\.0001, L2 strength 1e-05"),
        (27, r"epoch 4 of train \("),
        (28, r"epoch 1 of finetune \(L2 strength 1e-05"),
        (44, r"epoch 2 of finetune round 2 \("),
    ],
)
def test_the_error_says_epoch_and_strength(batch, where, bad, tmp_path):
    told = recipe(prune={"nonzeros": 20, "rounds": 2})
    message = rf"train_loss became (nan|inf|-inf) in {where}.*learning rate 0\.02\)"
    with pytest.raises(DivergenceError, match=message):
        ez.compress(
            mlp(), classification(loss=FailsLater(batch, bad)), told, folder=tmp_path / "run"
        )
    assert read_record(tmp_path / "run").status == "failed"


def test_a_real_divergence_by_too_large_a_learning_rate():
    data = ez.Data(*(((x, x[:, :1]) for x, _ in (blobs(60, 1), blobs(45, 2)))))
    told = recipe(train={"optimizer": "sgd", "learning_rate": 1e6, "momentum": 0.0})
    with pytest.raises(DivergenceError, match=r"became (nan|inf).*learning rate 1e\+06"):
        ez.compress(mlp(1), data, told)


def test_a_penalty_that_is_too_strong():
    l2 = {"l2": {"strength": 1e30}}
    told = recipe(
        train={"optimizer": "sgd", "learning_rate": 1.0, "penalty": l2}, reference={"penalty": {}}
    )
    with pytest.raises(DivergenceError, match=r"of train \(L2 strength 1e\+30"):
        ez.compress(mlp(), classification(), told)


def test_the_last_good_state_is_kept_and_can_be_gone_on_with(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(DivergenceError, match=r"checkpoint\.safetensors holds the last good"):
        ez.compress(mlp(), classification(loss=FailsLater(20)), recipe(), folder=folder)
    # only good epochs were recorded: three of the reference, two of the training
    lines = metrics_of(folder)
    assert [(m["stage"], m["epoch"]) for m in lines][3:] == [("train", 1), ("train", 2)]
    assert all(math.isfinite(m["train_loss"]) for m in lines)
    whole = ez.compress(mlp(), classification(), recipe())
    result = ez.compress(mlp(), classification(), recipe(), folder=folder, resume=True)
    assert tensors_equal(result.model, whole.model)


def test_without_a_folder_no_file_is_promised():
    with pytest.raises(DivergenceError) as caught:
        ez.compress(mlp(), classification(loss=FailsLater(0)), recipe())
    assert "checkpoint" not in str(caught.value)
    assert str(Path.cwd()) not in str(caught.value)


def test_nan_in_a_dataset_that_was_not_looked_through():
    x, y = blobs(60, 1)
    x[40, 2] = math.nan
    data = ez.Data(torch.utils.data.TensorDataset(x, y), blobs(45, 2))
    with pytest.raises(InputError, match="train inputs hold NaN"):
        ez.compress(mlp(), data, recipe())


def test_nan_in_the_test_data_costs_nothing_but_the_figures(tmp_path):
    x, y = blobs(30, 3)
    x[20, 2] = math.nan
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 10)
    data = ez.Data(blobs(60, 1), blobs(45, 2), loader)
    with pytest.raises(InputError, match="test inputs hold NaN"):
        ez.compress(mlp(), data, recipe(), folder=tmp_path)
    assert read_record(tmp_path).status == "failed"
    assert nonzero_weights(ez.load(tmp_path / "model.safetensors", mlp())) == 36
    clean = ez.Data(blobs(60, 1), blobs(45, 2), blobs(30, 3))
    again = ez.compress(mlp(), clean, recipe(), folder=tmp_path, resume=True)
    assert again.record.status == "done"


def test_a_score_of_ones_own_that_is_nan():
    data = classification(score=lambda outputs, targets: outputs.new_tensor(math.nan))
    with pytest.raises(DivergenceError, match="validation_score became nan in epoch 1"):
        ez.compress(mlp(), data, recipe())


# on_divergence = "retry"

PLAIN = {
    "epochs": 6,
    "batch_size": 20,
    "optimizer": "sgd",
    "momentum": 0.0,
    "warmup": 0.0,
    "decay": "constant",
    "penalty": {},
}


def steep(rates: dict[str, float], **tables: Any) -> ez.Recipe:
    """Plain steps of a regression by fourth powers, which overflow soon or not at all."""
    stages = {
        stage: {**PLAIN, "learning_rate": rates.get(stage, 0.001)}
        for stage in ("reference", "train", "finetune")
    }
    return recipe(**stages, prune={"nonzeros": 3}, **tables)


def fit(told: ez.Recipe, **options: Any) -> ez.Result:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 1)
    data = regression(
        loss=lambda outputs, targets: (outputs - targets).pow(4).mean(),
        score=lambda outputs, targets: -(outputs - targets).abs().mean(),
    )
    return ez.compress(model, data, told, **options)


AGAIN = "ignore:.*began again"


@pytest.mark.filterwarnings(AGAIN)
@pytest.mark.parametrize(
    ("stage", "rate", "times"),
    [("reference", 0.064, 2), ("train", 0.032, 1), ("train", 0.128, 3), ("finetune", 0.512, 3)],
)
def test_a_stage_that_overflows_begins_again_with_half_the_rate(stage, rate, times, tmp_path):
    expected = fit(steep({stage: rate * 0.5**times}))
    result = fit(steep({stage: rate}, on_divergence="retry"), folder=tmp_path)
    assert tensors_equal(result.model, expected.model)
    retries = result.record.retries
    assert [(r.stage, r.round, r.factor) for r in retries] == [
        (stage, int(stage == "finetune"), 0.5**n) for n in range(1, times + 1)
    ]
    assert all(r.figure in ("train_loss", "validation_loss") for r in retries)
    assert read_record(tmp_path).retries == retries
    assert set(result.record.warnings) >= {r.sentence for r in retries}
    epochs = [(m["stage"], m["epoch"]) for m in metrics_of(tmp_path)]  # of the last try alone
    assert len(set(epochs)) == len(epochs) == 6 + 6 + 7


def test_a_divergence_is_told_when_it_happens():
    told = steep({"train": 0.032}, on_divergence="retry")
    said = r"^train_loss became NaN .* epoch 2 of train, which began again with 0\.5 times its lea"
    with pytest.warns(EllzeroWarning, match=said) as warnings:
        fit(told)
    assert len([w for w in warnings if "began again" in str(w.message)]) == 1


@pytest.mark.filterwarnings(AGAIN)
def test_after_three_times_it_is_an_error(tmp_path):
    said = r"of train \(no penalty, learning rate 0\.032 after 3 retries\)"
    with pytest.raises(DivergenceError, match=said):
        fit(steep({"train": 0.256}, on_divergence="retry"), folder=tmp_path)
    record = read_record(tmp_path)
    assert record.status == "failed"
    assert [retry.factor for retry in record.retries] == [0.5, 0.25, 0.125]


@pytest.mark.filterwarnings(AGAIN)
def test_the_three_times_are_those_of_the_whole_run():
    rates = {"reference": 0.064, "train": 0.064}  # each needs two
    said = r"of train \(no penalty, learning rate 0\.032 after 3 retries\)"
    with pytest.raises(DivergenceError, match=said):
        fit(steep(rates, on_divergence="retry"))


def test_what_no_learning_rate_changes_is_not_tried_again():
    def score(outputs, targets):
        seen.append(1)
        return outputs.new_tensor(math.nan if len(seen) > 7 else 1.0)

    seen: list[int] = []  # three epochs of the reference, four of the training, then the pruning
    with pytest.raises(DivergenceError, match="validation_score became nan in epoch 0 of finetune"):
        ez.compress(mlp(), classification(score=score), recipe(on_divergence="retry"))


@pytest.mark.filterwarnings(AGAIN)
@pytest.mark.parametrize("stop", [7, 9, 20])
def test_a_run_that_began_a_stage_again_is_resumed_to_the_same_bits(stop, tmp_path):
    # six epochs of the reference; one that is lost, six of the training; seven of the fine-tuning
    def stopping(metrics):
        epochs.append(metrics)
        if len(epochs) == stop:
            raise KeyboardInterrupt

    epochs: list[ez.EpochMetrics] = []
    told = steep({"train": 0.032}, on_divergence="retry")
    whole = fit(told, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(told, folder=tmp_path / "run", callback=stopping)
    result = fit(told, folder=tmp_path / "run", resume=True)
    assert tensors_equal(result.model, whole.model)
    assert len(result.record.retries) == 1
    assert result.record.retries == whole.record.retries
    assert metrics_of(tmp_path / "run", "seconds") == metrics_of(tmp_path / "whole", "seconds")


class FailsOnce(FailsLater):
    """Cross-entropy that is NaN in this batch of the training alone."""

    def __call__(self, outputs, targets):
        loss = super().__call__(outputs, targets)
        return nn.functional.cross_entropy(outputs, targets) if self.left < -1 else loss


GATES = {"penalty": {}, "gates": {"hard_concrete": {"strength": 0.003}}}
GRADUAL = {"nonzeros": 20, "gradual": {"after": 0.1, "until": 0.7}}


@pytest.mark.filterwarnings(AGAIN)
@pytest.mark.parametrize(("train", "prune"), [(GATES, {"nonzeros": 20}), ({}, GRADUAL)])
def test_gates_and_a_gradual_pruning_begin_again_as_well(train, prune):
    others = {stage: {"learning_rate": 0.02} for stage in ("reference", "finetune")}
    slower = recipe(train={**train, "learning_rate": 0.01}, prune=prune, **others)
    expected = ez.compress(mlp(), classification(), slower)
    told = recipe(train=train, prune=prune, on_divergence="retry")
    # 60 examples in batches of 16, three epochs of the reference: the third of the training
    result = ez.compress(mlp(), classification(loss=FailsOnce(21)), told)
    assert [retry.epoch for retry in result.record.retries] == [3]
    assert tensors_equal(result.model, expected.model)
