"""Runs, opened again: what each of their parts is, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import ellzero as ez
from ellzero.errors import InputError
from small import blobs, classification, mlp, recipe, tensors_equal


def network():
    """What the recipe names; other weights than those of the run."""
    return mlp(seed=9)


def data():
    return classification()


def shifted():
    return ez.Data(blobs(60, 1), blobs(45, 2), preprocess=ez.Preprocess(2.0, 1.0))


def narrow():
    x, y = blobs(40, 1)
    return ez.Data((x[:, :5], y), (x[:, :5], y))


HERE = __name__


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, ez.Result]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    told = recipe(model=f"{HERE}:network", data=f"{HERE}:data")
    return folder, ez.compress(mlp(), classification(), told, folder=folder)


def test_a_run_has_all_that_it_left(made):
    folder, result = made
    run = ez.open_run(folder)
    assert (run.folder, run.file) == (folder, folder / "model.safetensors")
    assert run.recipe == ez.Recipe.read(folder / "recipe.toml")
    assert run.record == result.record
    assert tensors_equal(run.model, result.model)
    assert not run.model.training
    assert run.masks.state_dict().keys() == result.masks.state_dict().keys()
    assert run.masks.nonzeros == result.masks.nonzeros
    assert run.reference is not None
    assert tensors_equal(run.reference, ez.load(folder / "reference.safetensors", mlp()))
    x, _ = blobs(9, 5)
    assert torch.allclose(run.trace()(x), result.model(x), atol=1e-6)
    test = ez.evaluate(run.model, run.data(), "test")
    assert test == pytest.approx(result.record.compressed.test)


def test_what_costs_is_done_once_and_when_it_is_asked_for(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "run")
    run = ez.open_run(str(folder), trust=True)
    (folder / "record.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"damaged")
    for name, message in (("record", "is not JSON"), ("model", "truncated"), ("masks", "trunc")):
        with pytest.raises(InputError, match=message):
            getattr(run, name)
    whole = ez.open_run(made[0])
    for name in ("record", "model", "reference", "masks"):
        assert getattr(whole, name) is getattr(whole, name)


def test_a_file_of_a_run_is_a_run_too(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "run")
    run = ez.open_run(folder / "trained.safetensors", trust=True)
    assert run.folder == folder
    assert run.masks.nonzeros == run.masks.numel == 144
    for name in ("record.json", "reference.safetensors"):
        (folder / name).unlink()
    run = ez.open_run(folder)
    assert (run.record, run.reference) == (None, None)


def test_a_packed_file_in_a_run_and_alone(made, tmp_path):
    folder, result = shutil.copytree(made[0], tmp_path / "run"), made[1]
    ez.pack(result.trace(), folder / "net.ellz")
    run = ez.open_run(folder / "net.ellz", trust=True)
    assert (run.folder, run.record) == (folder, result.record)
    assert isinstance(run.model, ez.Network)
    assert run.masks.nonzeros == result.masks.nonzeros
    assert run.data().scores_accuracy
    alone = ez.open_run(shutil.copy(folder / "net.ellz", tmp_path))
    assert (alone.folder, alone.recipe, alone.record, alone.reference) == (None,) * 4
    assert alone.trace() is alone.model
    with pytest.raises(InputError, match="does not say what data it was made with"):
        alone.data()
    assert alone.data(f"{HERE}:data").scores_accuracy


def test_other_data_have_to_fit(made, tmp_path):
    run = ez.open_run(made[0])
    with pytest.raises(InputError, match="cannot take the data"):
        run.data(f"{HERE}:narrow")
    ez.pack(ez.trace(mlp(), torch.zeros(1, 6), preprocess=ez.Preprocess(5.0)), tmp_path / "a.ellz")
    with pytest.raises(
        InputError, match=r"preprocesses by .*scale=5\.0.* the data by .*scale=2\.0"
    ):
        ez.open_run(tmp_path / "a.ellz").data(f"{HERE}:shifted")


def test_data_are_preprocessed_as_the_run_was_trained(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "run")
    trained_by = {"scale": 2.0, "shift": 1.0}
    ez.save(mlp(), folder / "model.safetensors", metadata={"preprocess": trained_by})
    run = ez.open_run(folder, trust=True)
    assert run.data(f"{HERE}:shifted").preprocess == ez.Preprocess(2.0, 1.0)
    with pytest.raises(InputError, match=r"preprocesses by .*scale=2\.0.* the data by None"):
        run.data()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_shape", [0]), ("input_shape", ["6"]), ("input_shape", [2**20, 2**20]),
        ("input_shape", 6), ("classes", "abc"), ("classes", [1]), ("preprocess", [1]),
        ("preprocess", {"scale": "2"}), ("preprocess", {"scale": []}), ("preprocess", {"mean": 1}),
        ("preprocess", {"shift": [[1.0]]}),
    ],
)  # fmt: skip
def test_metadata_of_the_wrong_kind_are_named(key, value, made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "run")
    ez.save(mlp(), folder / "model.safetensors", metadata={"input_shape": [6], key: value})
    with pytest.raises(InputError, match=rf"has metadata that make no sense: {key}"):
        ez.open_run(folder, trust=True).trace()


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "missed"])
def test_a_run_that_is_not_done_is_open_but_for_its_network(status, made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "run")
    (folder / "model.safetensors").unlink()
    (folder / "record.json").write_text(json.dumps({"format": 1, "status": status}))
    run = ez.open_run(folder, trust=True)
    assert run.record is not None
    assert run.record.status == status
    assert run.recipe == ez.Recipe.read(folder / "recipe.toml")
    assert run.metrics == ez.open_run(made[0]).metrics
    for use in (lambda: run.model, lambda: run.masks, run.trace, run.data):
        with pytest.raises(InputError, match=rf"is {status} and .* run --resume {folder}`"):
            use()


def test_a_run_that_is_done_without_its_network_is_no_model(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "run")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model at .*model\.safetensors"):
        ez.open_run(folder)


def test_metrics_are_those_of_each_epoch(made, tmp_path):
    lines = (made[0] / "metrics.jsonl").read_text().splitlines()
    metrics = ez.open_run(made[0]).metrics
    assert len(metrics) > 0
    assert [epoch.to_table() for epoch in metrics] == list(map(json.loads, lines))
    ez.pack(mlp(), tmp_path / "a.ellz", torch.zeros(1, 6))
    assert ez.open_run(tmp_path / "a.ellz").metrics == ()


@pytest.mark.parametrize("name", ["recipe.toml", "record.json", "model.safetensors.gz"])
def test_a_file_of_a_run_that_holds_no_network(name, made):
    with pytest.raises(InputError, match=rf"{name} is no model file; expected a run folder"):
        ez.open_run(made[0] / name)


def test_a_recipe_without_a_network_says_how_to_load_the_weights(tmp_path):
    ez.compress(mlp(), classification(), recipe(), folder=tmp_path)
    run = ez.open_run(tmp_path)
    assert run.record is not None
    assert run.record.status == "done"
    with pytest.raises(InputError, match=r"names no network; .* ez\.load\('.*', model\)"):
        run.model  # noqa: B018


def test_paths_that_hold_no_run(tmp_path):
    with pytest.raises(InputError, match=r"no model at .*nowhere"):
        ez.open_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no model at .*model\.safetensors"):
        ez.open_run(tmp_path)
    (tmp_path / "a.ellz").write_bytes(b"FLLZ")
    with pytest.raises(InputError, match="is no packed file"):
        ez.open_run(tmp_path / "a.ellz")
    ez.save(mlp(), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"there is no recipe\.toml beside"):
        ez.open_run(tmp_path / "a.safetensors")


def test_nothing_is_unpickled(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "run")
    torch.save(mlp().state_dict(), folder / "model.safetensors")
    with pytest.raises(InputError, match="is a pickle"):
        ez.open_run(folder, trust=True).model  # noqa: B018
