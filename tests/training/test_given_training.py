"""A training that is given as a file, and where a training starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import InputError
from ellzero.run_folder import read_record
from small import (
    classification,
    convnet,
    dropout_mlp,
    images,
    metrics_of,
    mlp,
    nonzero_weights,
    recipe,
    tensors_equal,
)

TRAININGS = {
    "l0": {},
    "hard concrete": {"penalty": {}, "gates": {"hard_concrete": {"strength": 0.003}}},
    "PMMP": {"penalty": {}, "gates": {"pmmp": {"strength": 0.003}}},
    "decoupled": {"penalty": {"l0": {"strength": 1.0, "form": "decoupled"}}},
}


def compress(folder: Path, model: nn.Module | None = None, **tables: Any) -> ez.Result:
    model = dropout_mlp() if model is None else model
    return ez.compress(model, classification(), recipe(**tables), folder=folder)


def lines(folder: Path, *stages: str) -> list[dict[str, Any]]:
    return [m for m in metrics_of(folder, "seconds") if m["stage"] in stages]


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> ez.Result:
    """The run of the short recipe; its files are those of a training that is given."""
    return compress(tmp_path_factory.mktemp("full") / "run")


def files_of(result: ez.Result) -> Path:
    """Where a run has left its files."""
    assert result.folder is not None
    return result.folder


# train.file


@pytest.mark.parametrize("training", TRAININGS)
def test_the_same_settings_give_the_same_bits(training, tmp_path):
    table = TRAININGS[training]
    full = compress(tmp_path / "full", train=table)
    file = str(tmp_path / "full" / "trained.safetensors")
    again = compress(tmp_path / "again", train={**table, "file": file})
    assert tensors_equal(again.model, full.model)
    for name in ("model.safetensors", "reference.safetensors", "answers.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "full" / name).read_bytes()
    for key in ("nonzeros", "compressed", "reference", "layers", "trained", "test_error_percent"):
        assert getattr(again.record, key) == getattr(full.record, key)


@pytest.mark.parametrize(
    ("prune", "given"),
    [
        ({"sparsity": 0.9}, False),
        ({"nonzeros": 20, "rounds": 3}, True),
        ({"sparsity": 0.6, "scope": "layer"}, True),
        ({"budget": {"max_loss_increase": 1.0}, "rounds": 3}, False),
    ],
)
def test_another_pruning_is_that_of_a_full_run(prune, given, full, tmp_path):
    first, full = files_of(full), compress(tmp_path / "full", prune=prune)
    train = {"file": str(first / "trained.safetensors")}
    # the reference is trained as it would have been, or is that of the run that trained
    reference = {"file": str(first / "reference.safetensors")} if given else {}
    pruned = compress(tmp_path / "pruned", train=train, reference=reference, prune=prune)
    assert tensors_equal(pruned.model, full.model)
    assert nonzero_weights(pruned.model) == full.record.nonzeros
    assert pruned.record.reference == full.record.reference
    stages = {m["stage"] for m in metrics_of(tmp_path / "pruned")}
    assert stages == ({"finetune"} if given else {"reference", "finetune"})
    assert lines(tmp_path / "pruned", *stages) == lines(tmp_path / "full", *stages)
    expected = tuple(o for o in full.record.outcomes if o.stage in stages)
    assert pruned.record.outcomes == expected


def test_the_record_has_the_histogram_of_the_given_weights(tmp_path):
    given = mlp(seed=6)
    with torch.no_grad():
        given.get_parameter("0.weight")[:5] = 0
    ez.save(given, tmp_path / "given.safetensors")
    train = {"file": str(tmp_path / "given.safetensors")}
    result = compress(tmp_path / "run", mlp(), train=train)
    weights = [given.get_parameter(n).detach().numpy().ravel() for n in ("0.weight", "2.weight")]
    magnitudes = np.abs(np.concatenate(weights))
    counts, _ = np.histogram(np.log10(magnitudes[magnitudes > 0]), np.linspace(-8, 2, 101))
    assert read_record(tmp_path / "run") == result.record
    assert result.record.trained is not None
    found = result.record.trained.magnitudes
    assert (found.zeros, list(found.counts)) == (30, counts.tolist())


@pytest.mark.parametrize(
    ("how", "start"),
    [("trained here", None), ("trained here", "reference"), ("given", "initial")],
)
def test_the_given_training_is_what_is_pruned_whatever_else_is_told(how, start, tmp_path):
    given = mlp(seed=6)
    ez.save(given, tmp_path / "given.safetensors")
    table = {"file": str(tmp_path / "given.safetensors")}
    if start is not None:
        table["start"] = start
    told = recipe(train=table, prune={"nonzeros": 30}, finetune={"epochs": 0})
    reference = mlp(seed=7) if how == "given" else None
    result = ez.compress(mlp(), classification(), told, reference=reference)
    for name, parameter in result.model.named_parameters():
        kept = parameter != 0
        assert torch.equal(parameter[kept], given.get_parameter(name)[kept])
    assert nonzero_weights(result.model) == 30
    if reference is None:
        full = ez.compress(mlp(), classification(), recipe())
        assert result.record.reference == full.record.reference


def test_buffers_and_channels_last_go_with_the_file(tmp_path):
    full = ez.compress(convnet(), images(), recipe(channels_last=True), folder=tmp_path / "full")
    file = str(tmp_path / "full" / "trained.safetensors")
    told = recipe(channels_last=True, train={"file": file})
    assert tensors_equal(ez.compress(convnet(), images(), told).model, full.model)


def test_a_run_from_a_file_keeps_the_given_reference_as_it_is(tmp_path):
    ez.save(mlp(seed=6), tmp_path / "given.safetensors")
    for start in ("initial", "reference"):
        table = {"file": str(tmp_path / "given.safetensors"), "start": start}
        folder = tmp_path / start
        told = recipe(train=table)
        ez.compress(mlp(), classification(), told, reference=mlp(seed=7), folder=folder)
        saved = ez.load(folder / "reference.safetensors", mlp())
        assert tensors_equal(saved, mlp(seed=7))


def broken(folder: Path, how: str) -> Path:
    path = folder / "trained.safetensors"
    if how == "another network":
        ez.save(nn.Linear(6, 3), path)
    elif how == "pickle":
        torch.save(mlp().state_dict(), path)
    elif how == "NaN":
        model = mlp()
        model.get_parameter("0.weight").data[0, 0] = float("nan")
        ez.save(model, path)
    return path


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("missing", "no model file at .*trained.safetensors"),
        ("another network", "trained.safetensors is of another network than Sequential"),
        ("pickle", "is a pickle"),
        ("NaN", "the trained network gives NaN or inf on validation data"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_no_folder(how, expected, tmp_path):
    told = recipe(train={"file": str(broken(tmp_path, how))})
    with pytest.raises(InputError, match=expected) as caught:
        ez.compress(mlp(), classification(), told, folder=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# train.start


def test_a_training_can_start_from_the_initial_weights_though_the_reference_is_given(
    full, tmp_path
):
    reference = {"file": str(files_of(full) / "reference.safetensors")}
    again = compress(tmp_path / "again", reference=reference, train={"start": "initial"})
    assert tensors_equal(again.model, full.model)
    assert lines(tmp_path / "again", "train") == lines(files_of(full), "train")
    assert again.record.reference == full.record.reference
    for name in ("trained.safetensors", "reference.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (files_of(full) / name).read_bytes()


def test_a_training_can_start_from_the_reference_that_is_trained_here(tmp_path):
    here = compress(tmp_path / "here", train={"start": "reference"})
    reference = {"file": str(tmp_path / "here" / "reference.safetensors")}
    given = compress(tmp_path / "given", reference=reference)
    assert tensors_equal(here.model, given.model)
    assert lines(tmp_path / "here", "train") == lines(tmp_path / "given", "train")


def test_it_starts_from_the_best_epoch_of_the_reference(tmp_path):
    wild = {"epochs": 8, "learning_rate": 0.5, "decay": "constant"}
    told: dict[str, Any] = {"reference": wild, "prune": {"sparsity": 0.0}}
    told["finetune"] = {"epochs": 0}
    result = compress(tmp_path, train={"epochs": 0, "start": "reference"}, **told)
    scores = [m["validation_score"] for m in lines(tmp_path, "reference")]
    assert scores[-1] < max(scores), "choose a rate with which the last is not the best"
    assert result.record.validation_score == max(scores)
    assert tensors_equal(
        result.model, ez.load(tmp_path / "reference.safetensors", dropout_mlp(seed=8))
    )


def test_by_default_it_starts_from_a_given_reference_and_else_from_the_beginning(tmp_path):
    once = {"reference": {"epochs": 1}, "finetune": {"epochs": 0}}
    for given in (False, True):
        trained = {}
        for start in (None, "initial", "reference"):
            table = {"epochs": 1} | ({} if start is None else {"start": start})
            reference = mlp(seed=4) if given else None
            told, folder = recipe(train=table, **once), tmp_path / f"{given}-{start}"
            ez.compress(mlp(), classification(), told, reference=reference, folder=folder)
            trained[start] = (folder / "trained.safetensors").read_bytes()
        assert trained[None] == trained["reference" if given else "initial"]
        assert trained["initial"] != trained["reference"]
