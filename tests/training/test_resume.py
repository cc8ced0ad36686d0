"""Resume: a run that was stopped, wherever, ends in the same bits as one that was not."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import InputError
from ellzero.optimizers import OPTIMIZERS
from ellzero.run_folder import read_record
from small import (
    Counted,
    accuracy,
    blobs,
    classification,
    convnet,
    dropout_mlp,
    images,
    metrics_of,
    mlp,
    recipe,
    tensors_equal,
)

SGD = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9}
BUDGET = {"budget": {"max_accuracy_drop": 10.0}, "rounds": 4}
LOSS_FORM = {
    "l0": {"strength": 1e-4, "form": "loss"},
    "l1": {"strength": 1e-3, "form": "decoupled"},
}

HARD_CONCRETE = {
    "penalty": {"l2": {"strength": 1e-5}},
    "gates": {"hard_concrete": {"strength": 0.003}},
}
PMMP = {"penalty": {}, "gates": {"pmmp": {"strength": 0.01, "rate": 2}}, "ramp": {"until": 0.5}}

CASES = {
    "one shot, Adam": (dropout_mlp, classification, {}),
    "gradual, momentum": (
        dropout_mlp,
        classification,
        {"train": SGD, "prune": {"nonzeros": 20, "gradual": {"after": 0.1, "until": 0.7}}},
    ),
    "rounds, AdamW": (
        dropout_mlp,
        classification,
        {
            "train": {"optimizer": "adamw", "weight_decay": 0.1, "penalty": LOSS_FORM},
            "prune": {"nonzeros": 20, "rounds": 3},
        },
    ),
    "budget": (dropout_mlp, classification, {"prune": BUDGET}),
    "channels last, Adam": (
        convnet,
        images,
        {"channels_last": True, "prune": {"sparsity": 0.6, "gradual": {"until": 0.8}}},
    ),
    "channels last, momentum, ramp": (
        convnet,
        images,
        {
            "channels_last": True,
            "train": {**SGD, "ramp": {"shape": "cosine"}, "layer_scale": "paper"},
            "prune": {"sparsity": 0.6, "rounds": 2},
        },
    ),
    "accumulation, clipping, groups": (
        dropout_mlp,
        classification,
        {
            "train": {
                "optimizer": {"name": "AdamW", "betas": [0.8, 0.9], "amsgrad": True},
                "weight_decay": 0.1,
                "no_decay": ["bias", "norm"],
                "gradient_accumulation_steps": 3,
                "clip_grad_norm": 0.5,
            },
            "prune": {"nonzeros": 20, "rounds": 2},
        },
    ),
    "average, gradual": (
        dropout_mlp,
        classification,
        {"train": {**SGD, "ema_decay": 0.9}, "prune": {"nonzeros": 20, "gradual": {"until": 0.7}}},
    ),
    "average, hard concrete": (
        convnet,
        images,
        {"train": {**HARD_CONCRETE, "ema_decay": 0.8}, "prune": {"nonzeros": 90, "rounds": 2}},
    ),
    "distillation": (
        dropout_mlp,
        classification,
        {"train": {"distillation": {"weight": 0.5, "temperature": 4}}, "prune": {"nonzeros": 30}},
    ),
    "steps": (
        dropout_mlp,
        classification,
        {
            "train": {"steps": 13, "batch_size": 8, "gradient_accumulation_steps": 3},
            "finetune": {"steps": 7},
            "prune": {"nonzeros": 20, "gradual": {"until": 0.8}},
        },
    ),
    "RMSprop": (
        dropout_mlp,
        classification,
        {"train": {"optimizer": {"name": "RMSprop", "centered": True}, "momentum": 0.9}},
    ),
    "bfloat16": (convnet, images, {"precision": "bfloat16"}),
    "hard concrete": (dropout_mlp, classification, {"train": HARD_CONCRETE}),
    "PMMP, momentum": (dropout_mlp, classification, {"train": {**SGD, **PMMP}}),
    "hard concrete, channels last": (
        convnet,
        images,
        {"channels_last": True, "train": HARD_CONCRETE, "prune": {"nonzeros": 90, "rounds": 2}},
    ),
}


class StopsAfter:
    """The accuracy, until it has been asked for this many times; then Ctrl-C."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, outputs, targets):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return accuracy(outputs, targets)


def assert_same(
    result: ez.Result, folder: Path, expected: ez.Result, whole: Path, *but_for: str
) -> None:
    assert tensors_equal(result.model, expected.model)
    stages = {m["stage"] for m in metrics_of(whole)}
    names = ["model.safetensors", "reference.safetensors"]
    assert lines_of(folder / "recipe.toml", but_for) == lines_of(whole / "recipe.toml", but_for)
    for name in [*names, *(["trained.safetensors"] if "train" in stages else [])]:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert metrics_of(folder, "seconds") == metrics_of(whole, "seconds")
    for key in ("outcomes", "compressed", "reference", "nonzeros", "trained"):
        assert getattr(result.record, key) == getattr(expected.record, key)
    assert result.record.status == "done"
    assert not list(folder.glob("*checkpoint*"))


def lines_of(file: Path, but_for: tuple[str, ...]) -> list[str]:
    return [line for line in file.read_text().splitlines() if not line.startswith(but_for)]


Whole = Callable[[str], tuple[ez.Result, Path]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    """The run of a case that nothing has stopped, and its folder; made once."""

    @cache
    def made(case: str) -> tuple[ez.Result, Path]:
        model, make, tables = CASES[case]
        folder = tmp_path_factory.mktemp("whole") / "run"
        return ez.compress(model(), make(), recipe(**tables), folder=folder), folder

    return made


STOPS = [(case, "due", 2 + 3 * i) for i, case in enumerate(CASES)]  # a different place in each
STOPS += [
    ("one shot, Adam", "Ctrl-C", 6),
    ("gradual, momentum", "killed", 5),
    ("hard concrete", "Ctrl-C", 5),
    ("budget", "killed", 12),
]
ALL_STOPS = [(case, how, None) for case in CASES for how in ("due", "killed")]


@pytest.mark.parametrize(
    ("case", "how", "at"),
    [*STOPS, *(pytest.param(*stop, marks=pytest.mark.slow) for stop in ALL_STOPS)],
)
def test_a_run_that_is_stopped_after_an_epoch(case, how, at, whole, tmp_path, monkeypatch):
    model, make, tables = CASES[case]
    expected, whole_folder = whole(case)
    told = recipe(**tables, checkpoint_seconds=0 if how == "due" else 120)
    count = len(metrics_of(whole_folder))
    for stop in range(1, count) if at is None else [1 + at % (count - 1)]:
        folder = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            if how == "killed":
                patch.setattr("ellzero.training.run.write_metrics", _copying(stop, folder))
                ez.compress(model(), make(), told, folder=tmp_path / f"{stop}-goes-on")
            else:
                patch.setattr("ellzero.training.run.write_metrics", _interrupting(stop))
                with pytest.raises(KeyboardInterrupt):
                    ez.compress(model(), make(), told, folder=folder)
        assert read_record(folder).status == ("running" if how == "killed" else "interrupted")
        result = ez.compress(model(), make(), recipe(**tables), folder=folder, resume=True)
        assert_same(result, folder, expected, whole_folder, "checkpoint_seconds")


def _interrupting(count: int):
    from ellzero.run_folder import write_metrics

    def write(folder, history):
        write_metrics(folder, history)
        if len(history) >= count:
            raise KeyboardInterrupt

    return write


def _copying(count: int, copy: Path):
    """What a kill would have left: the folder as it stands then, while the run goes on."""
    from ellzero.run_folder import write_metrics

    def write(folder, history):
        write_metrics(folder, history)
        if len(history) == count:
            shutil.copytree(folder, copy)

    return write


@pytest.mark.parametrize(
    "case",
    [
        "gradual, momentum",
        *(
            pytest.param(case, marks=pytest.mark.slow)
            for case in ("rounds, AdamW", "budget", "hard concrete", "PMMP, momentum")
        ),
    ],
)
def test_a_run_that_is_stopped_again_and_again_in_mid_epoch(case, tmp_path):
    model, _, tables = CASES[case]
    told = recipe(**tables, checkpoint_seconds=0)

    def data(stop_after=None):
        part = Counted(blobs(60, 1), stop_after=None)
        made = ez.Data(part, blobs(45, 2), blobs(30, 3))
        part.stop_after = stop_after
        return made

    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    expected = ez.compress(model(), data(), told, folder=whole)
    stops, result = 0, None
    while result is None:
        try:
            # the first look, the network's fit, one epoch of 60 and a part of the next
            again = data(stop_after=1 + 60 + 7 * (stops % 8) + 2)
            result = ez.compress(model(), again, told, folder=folder, resume=stops > 0)
        except KeyboardInterrupt:
            stops += 1
        assert stops < 60
    assert stops > 5
    assert_same(result, folder, expected, whole)


def test_a_run_with_a_given_reference_needs_it_no_more_when_resumed(tmp_path):
    told, given = recipe(prune={"nonzeros": 20, "rounds": 2}), mlp(seed=4)
    whole = ez.compress(mlp(), classification(), told, reference=given, folder=tmp_path / "whole")
    data = classification(score=StopsAfter(6))
    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), data, told, reference=given, folder=tmp_path / "run")
    result = ez.compress(mlp(), classification(), told, folder=tmp_path / "run", resume=True)
    assert_same(result, tmp_path / "run", whole, tmp_path / "whole")


@pytest.mark.parametrize(("gates", "epoch"), [(HARD_CONCRETE, 1), (HARD_CONCRETE, 4), (PMMP, 3)])
def test_gates_go_on_with_what_they_had_learned(gates, epoch, tmp_path, monkeypatch):
    told, given = recipe(train=gates, checkpoint_seconds=0), mlp(seed=4)
    whole = ez.compress(mlp(), classification(), told, reference=given, folder=tmp_path / "whole")
    monkeypatch.setattr("ellzero.training.run.write_metrics", _interrupting(epoch))
    for _ in range(2):  # stopped again where the first one was
        with pytest.raises(KeyboardInterrupt):
            ez.compress(
                mlp(),
                classification(),
                told,
                reference=given,
                folder=tmp_path / "run",
                resume=(tmp_path / "run").exists(),
            )
        assert len(metrics_of(tmp_path / "run")) in (epoch, epoch + 1)
        monkeypatch.setattr("ellzero.training.run.write_metrics", _interrupting(epoch + 1))
    monkeypatch.undo()
    result = ez.compress(mlp(), classification(), told, folder=tmp_path / "run", resume=True)
    assert_same(result, tmp_path / "run", whole, tmp_path / "whole")


@pytest.mark.parametrize("after", [3, 6])
def test_a_run_from_a_trained_file_needs_it_no_more_when_resumed(after, tmp_path):
    ez.compress(mlp(), classification(), recipe(), folder=tmp_path / "trained")
    file = tmp_path / "trained" / "trained.safetensors"
    told = recipe(train={"file": str(file)}, prune={"nonzeros": 20, "rounds": 2})
    whole = ez.compress(mlp(), classification(), told, folder=tmp_path / "whole")
    data = classification(score=StopsAfter(after))
    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), data, told, folder=tmp_path / "run")
    file.unlink()
    result = ez.compress(mlp(), classification(), told, folder=tmp_path / "run", resume=True)
    assert_same(result, tmp_path / "run", whole, tmp_path / "whole")


@pytest.mark.parametrize(
    ("start", "given", "after"),
    [("initial", True, 5), ("reference", False, 2), ("reference", False, 8)],
)
def test_a_training_that_starts_where_it_is_told(start, given, after, tmp_path):
    told, reference = recipe(train={"start": start}), mlp(seed=4) if given else None
    whole = ez.compress(
        mlp(), classification(), told, reference=reference, folder=tmp_path / "whole"
    )
    folder = tmp_path / "run"
    data = classification(score=StopsAfter(after))
    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), data, told, reference=reference, folder=folder)
    result = ez.compress(mlp(), classification(), told, folder=folder, resume=True)
    assert_same(result, folder, whole, tmp_path / "whole")


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("lbfgs", "sparseadam")])
def test_a_training_by_each_optimizer_of_torch(name, tmp_path):
    def network() -> nn.Module:  # Muon takes matrices alone
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 3, bias=False)) if name == "muon" else mlp()

    def stops(metrics: ez.EpochMetrics) -> None:
        if metrics.stage == "finetune" and metrics.epoch == 1:
            raise KeyboardInterrupt

    told = recipe(
        train={"epochs": 1, "optimizer": name},
        finetune={"epochs": 2},
        prune={"sparsity": 0.5},
        checkpoint_seconds=1000,
    )
    data = classification()
    options: dict[str, Any] = {"reference": network(), "folder": tmp_path / "whole"}
    whole = ez.compress(network(), data, told, **options).model
    options["folder"] = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ez.compress(network(), data, told, callback=stops, **options)
    resumed = ez.compress(network(), data, told, folder=tmp_path / "run", resume=True).model
    assert tensors_equal(resumed, whole)


def test_the_seconds_of_all_sessions_are_added(tmp_path):
    def slow(outputs, targets):
        time.sleep(0.03)
        return stop(outputs, targets)

    stop = StopsAfter(8)
    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), classification(score=slow), recipe(), folder=tmp_path)
    result = ez.compress(mlp(), classification(), recipe(), folder=tmp_path, resume=True)
    assert result.record.seconds >= 0.2


# what cannot be resumed


def stopped(folder: Path, after: int = 5) -> Path:
    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), classification(score=StopsAfter(after)), recipe(), folder=folder)
    return folder / "checkpoint.safetensors"


def resume(folder: Path, model: nn.Module | None = None, told: ez.Recipe | None = None):
    return ez.compress(
        model or mlp(), classification(), told or recipe(), folder=folder, resume=True
    )


def test_a_finished_run_is_not_resumed(tmp_path):
    ez.compress(mlp(), classification(), recipe(), folder=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="is done; there is nothing to resume"):
        resume(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("tables", "difference"),
    [
        ({"prune": {"sparsity": 0.5}}, r"prune\.sparsity = 0\.75, .*resume with 0\.5;"),
        ({"prune": {"nonzeros": 30}}, r"prune\.sparsity = 0\.75, .*resume with None;"),
        ({"train": {"epochs": 12}}, r"train\.epochs = 4, .* 12;"),
        ({"train": {"penalty": {}}}, r"train\.penalty\.l0\.strength = 0\.0001, .* None;"),
        ({"seed": 1}, r"seed = 0, .* 1;"),
    ],
)
def test_another_recipe_is_refused(tables, difference, tmp_path):
    checkpoint = stopped(tmp_path)
    before = checkpoint.read_bytes()
    with pytest.raises(InputError, match=rf"recipe\.toml has {difference} give the same recipe"):
        ez.compress(mlp(), classification(), recipe(**tables), folder=tmp_path, resume=True)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("epochs", [4, 5])
def test_a_penalty_of_a_class_that_no_import_finds(epochs, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Local(ez.L1):
        """As in a notebook's function."""

    def told(epochs: int) -> ez.Recipe:
        return recipe(train={"penalty": Local(1e-3), "epochs": epochs})

    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), classification(score=StopsAfter(5)), told(4), folder=tmp_path)
    if epochs == 4:
        assert resume(tmp_path, told=told(4)).record.status == "done"
    else:
        with pytest.raises(InputError, match=r"train\.epochs = 4, .* 5; give the same recipe"):
            resume(tmp_path, told=told(5))


def test_the_name_the_threads_and_where_files_are_may_be_others(tmp_path):
    told = recipe(data={"name": "d", "data_root": "a"})
    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), classification(score=StopsAfter(5)), told, folder=tmp_path)
    elsewhere = {"data": {"name": "d", "data_root": "b"}, "reference": {"file": "gone"}}
    free = {"name": "other", "device": "auto", "checkpoint_seconds": 0, "threads": 1}
    changed = recipe(**free, **elsewhere)
    result = ez.compress(mlp(), classification(), changed, folder=tmp_path, resume=True)
    assert result.record.status == "done"


def test_a_checkpoint_of_another_network(tmp_path):
    stopped(tmp_path)
    for other in (nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))):
        with pytest.raises(InputError, match="does not fit this recipe or network"):
            resume(tmp_path, other)


def test_a_resume_that_fails_leaves_the_checkpoint(tmp_path):
    checkpoint = stopped(tmp_path)
    before = checkpoint.read_bytes()
    with pytest.raises(InputError):
        resume(tmp_path, nn.Linear(6, 3))
    assert checkpoint.read_bytes() == before
    assert read_record(tmp_path).status == "interrupted"


# really killed

PROJECT = """
import torch
from torch import nn
import ellzero as ez

def network():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))

def data():
    parts = []
    for seed, count in ((1, 3000), (2, 300), (3, 300)):
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(count) % 3
        parts.append((torch.eye(6)[:3][y] + 0.6 * torch.randn(count, 6, generator=generator), y))
    return ez.Data(*parts)
"""

RECIPE = """
model = "killed:network"
data = "killed:data"
device = "cpu"
threads = 1
checkpoint_seconds = 0
reference.epochs = 6
train = {epochs = 20, batch_size = 16, penalty.l0 = {strength = 1e-4}}
prune = {sparsity = 0.8, gradual = {after = 0.1, until = 0.6}}
finetune.epochs = 6
"""


@pytest.mark.slow
def test_a_process_that_is_killed_is_resumed_to_the_same_bits(tmp_path):
    (tmp_path / "killed.py").write_text(PROJECT)
    (tmp_path / "mine.toml").write_text(RECIPE)

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ellzero", "run", *arguments, "--json"]
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(process: subprocess.Popen[str]) -> dict:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return json.loads(out)

    whole = finish(start("mine.toml", "--output", "whole"))
    arguments = ("mine.toml", "--output", "killed")
    for lines in (3, 11, 24):
        process = start(*arguments)
        metrics = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or len(metrics.read_text().splitlines()) < lines:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        arguments = ("--resume", "killed")
    killed = finish(start(*arguments))
    for name in ("model.safetensors", "reference.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert metrics_of(tmp_path / "killed", "seconds") == metrics_of(tmp_path / "whole", "seconds")
    assert killed["compressed"] == whole["compressed"]
