"""A loss that becomes NaN: said where, with which strength; what was good before is kept."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import DivergenceError, InputError
from ellzero.run_folder import read_record
from small import (
    blobs,
    classification,
    metrics_of,
    mlp,
    nonzero_weights,
    recipe,
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


@pytest.mark.parametrize("every_epoch", [True, False])
def test_the_last_good_state_is_kept_and_can_be_gone_on_with(every_epoch, tmp_path, monkeypatch):
    if every_epoch:
        monkeypatch.setattr("ellzero.training.run.CHECKPOINT_SECONDS", 0)
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
