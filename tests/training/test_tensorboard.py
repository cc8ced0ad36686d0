"""TensorBoard: the lines of metrics.jsonl as scalars, each epoch once, however often it stopped."""

import sys
from pathlib import Path
from typing import Any

import pytest

import ellzero as ez
from ellzero.errors import InputError
from ellzero.record import EpochMetrics
from ellzero.run_folder import clear_folder
from small import classification, metrics_of, mlp, recipe, tensors_equal

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Points = dict[str, list[tuple[int, Any]]]


def told(**tables: Any) -> ez.Recipe:
    return recipe(**{"tensorboard": True, "prune": {"nonzeros": 30, "rounds": 2}, **tables})


def compress(folder: Path | None, **options: Any) -> ez.Result:
    return ez.compress(mlp(), classification(), told(), folder=folder, **options)


def scalars(folder: Path) -> dict[str, Points]:
    """By TensorBoard's runs and tags, the steps and values."""
    found = {}
    for path in (folder / "tensorboard").iterdir():
        events = EventAccumulator(str(path))
        events.Reload()
        found[path.name] = {
            tag: [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
    return found


def of_metrics(folder: Path) -> dict[str, Points]:
    """The same from metrics.jsonl."""
    found: dict[str, Points] = {}
    for line in metrics_of(folder):
        stage, round_, epoch = (line.pop(key) for key in ("stage", "round", "epoch"))
        points = found.setdefault(f"{stage}-{round_}" if round_ else stage, {})
        for name, figure in line.items():
            if figure is not None:
                points.setdefault(name, []).append((epoch, pytest.approx(figure)))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[ez.Result, Path]:
    """A run that nothing has stopped, and its folder."""
    folder = tmp_path_factory.mktemp("board") / "run"
    return compress(folder), folder


def test_every_figure_of_every_epoch_is_a_scalar(whole):
    _, folder = whole
    found = scalars(folder)
    assert found == of_metrics(folder)
    assert found.keys() == {"reference", "train", "finetune-1", "finetune-2"}
    assert [step for step, _ in found["train"]["validation_loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in found["finetune-2"]["nonzeros"]] == [0, 1, 2, 3]


def test_it_changes_nothing(whole):
    result, _ = whole
    silent = ez.compress(mlp(), classification(), told(tensorboard=False))
    assert tensors_equal(result.model, silent.model)


@pytest.mark.parametrize("stop", [("reference", 0, 2), ("train", 0, 4), ("finetune", 2, 1)])
def test_after_a_resume_no_epoch_is_there_twice(stop, whole, tmp_path):
    def stops(metrics: EpochMetrics) -> None:
        if (metrics.stage, metrics.round, metrics.epoch) == stop:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        compress(folder, callback=stops)
    resumed = compress(folder, resume=True)
    assert tensors_equal(resumed.model, whole[0].model)
    assert scalars(folder) == of_metrics(folder)


def test_it_may_be_switched_on_for_the_rest_of_a_run(tmp_path):
    def stops(metrics: EpochMetrics) -> None:
        if metrics.stage == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ez.compress(
            mlp(), classification(), told(tensorboard=False), folder=tmp_path, callback=stops
        )
    compress(tmp_path, resume=True)
    expected = of_metrics(tmp_path)
    del expected["reference"]
    assert scalars(tmp_path) == expected


def test_a_stage_that_begins_again_is_written_anew(tmp_path):
    def loss(outputs, targets):
        calls.append(1)
        value = (outputs - outputs.detach()).sum() + 1
        return value * float("nan") if len(calls) == 9 else value

    calls: list[int] = []
    data = classification(loss=loss, score=lambda outputs, _: outputs.sum() * 0)
    with pytest.warns(ez.EllzeroWarning, match="in epoch 2 of reference, which began again"):
        ez.compress(mlp(), data, told(on_divergence="retry"), folder=tmp_path)
    assert scalars(tmp_path) == of_metrics(tmp_path)


def test_without_a_folder_it_is_refused():
    with pytest.raises(InputError, match=r"tensorboard = true writes into .* give folder="):
        compress(None)


def test_without_the_package_it_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'ellzero\[tensorboard\]'"):
        compress(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_through_a_link(tmp_path):
    def stops(_: EpochMetrics) -> None:
        raise KeyboardInterrupt

    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(KeyboardInterrupt):
        ez.compress(mlp(), classification(), told(tensorboard=False), folder=folder, callback=stops)
    (folder / "tensorboard").symlink_to(elsewhere)
    with pytest.raises(InputError, match="is a link"):
        compress(folder, resume=True)
    assert not list(elsewhere.iterdir())


def test_a_folder_that_is_cleared_is_empty_but_for_other_files(tmp_path):
    folder = tmp_path / "run"
    compress(folder)
    note = folder / "tensorboard" / "train" / "note.txt"
    note.write_text("mine")
    clear_folder(folder)
    assert [path for path in folder.rglob("*") if path.is_file()] == [note]
    note.unlink()
    clear_folder(folder)
    assert not list(folder.iterdir())
