"""Checkpoints: whole to the last bit, of this very run, or not gone on with."""

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import EllzeroWarning, InputError, WriteError
from ellzero.files import digest, read_tensors, write_tensors
from ellzero.run_folder import read_record
from ellzero.selection import select
from ellzero.training import checkpoint
from ellzero.training.state import State
from small import classification, dropout_mlp, metrics_of, recipe, tensors_equal

CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"


class Stops:
    """A callback that stops the run after so many epochs; then Ctrl-C."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def __call__(self, metrics: ez.EpochMetrics) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def stop(folder: Path, epochs: int = 5, **tables: Any) -> Path:
    with pytest.raises(KeyboardInterrupt):
        compress(folder, callback=Stops(epochs), **tables)
    return folder / CHECKPOINT


def compress(
    folder: Path | None, *, resume: bool = False, callback: Any = None, **tables: Any
) -> ez.Result:
    return ez.compress(
        dropout_mlp(),
        classification(),
        recipe(**tables),
        folder=folder,
        resume=resume,
        callback=callback,
    )


@pytest.fixture(scope="module")
def whole() -> ez.Result:
    """The run that nothing has stopped."""
    return compress(None)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The folder of a run that was stopped after two epochs of its training; not to be changed."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop(folder)
    return folder


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


# whole to the last bit


def fresh() -> State:
    model = dropout_mlp()
    return State(model, select(model), start={})


def accepted_flips(folder: Path, count: int) -> list[int]:
    """Which of so many bits, when flipped, leave a checkpoint that loads."""
    path, told, state = folder / CHECKPOINT, recipe(), fresh()
    (folder / PREVIOUS).unlink()
    checkpoint.load(state, folder, told)
    content = bytearray(path.read_bytes())
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    chosen = random.Random(0)
    accepted = []
    for flip in range(count):
        bit = chosen.randrange(header) if flip % 2 else chosen.randrange(header, 8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            checkpoint.load(state, folder, told)
        except InputError:
            pass
        else:
            accepted.append(bit)
        content[bit // 8] ^= 1 << bit % 8
    return accepted


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_never_accepted(count, run):
    assert accepted_flips(run, count) == []


def test_a_document_in_other_letters_is_not_accepted_either(run):
    # the same value in JSON, so no digest of values sees it
    path = run / CHECKPOINT
    (run / PREVIOUS).unlink()
    content = path.read_bytes()
    assert content.count(b"1e-05") > 0
    path.write_bytes(content.replace(b"1e-05", b"1E-05", 1))
    with pytest.raises(InputError, match="is damaged"):
        compress(run, resume=True)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, run, whole):
    path = run / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    said = {"flipped": "is damaged", "truncated": "is truncated", "missing": "no model file"}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:500])
    with pytest.warns(EllzeroWarning, match=rf"{said[damage]}.*goes on from .*{PREVIOUS}"):
        result = compress(run, resume=True)
    assert tensors_equal(result.model, whole.model)
    assert not list(run.glob("checkpoint*"))


def test_the_damaged_one_does_not_push_out_the_good_one(run, whole):
    path = run / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(EllzeroWarning, match="truncated"), pytest.raises(KeyboardInterrupt):
        compress(run, resume=True, callback=Stops(1))
    path.write_bytes(path.read_bytes()[:-1])  # once more: the one before is the one fallen back to
    with pytest.warns(EllzeroWarning, match="truncated"):
        result = compress(run, resume=True)
    assert tensors_equal(result.model, whole.model)


def test_where_neither_is_whole_both_are_named_and_nothing_changes(run):
    for name in (CHECKPOINT, PREVIOUS):
        content = bytearray((run / name).read_bytes())
        content[-1] ^= 1
        (run / name).write_bytes(content)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(InputError, match=rf"{CHECKPOINT} is damaged.*; .*{PREVIOUS} is damaged"):
        compress(run, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_truncated_checkpoint_is_an_error_at_any_length(run):
    (run / PREVIOUS).unlink()
    path = run / CHECKPOINT
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="truncated or not a safetensors file"):
            compress(run, resume=True)


def test_another_kind_of_file(run):
    path = run / CHECKPOINT
    (run / PREVIOUS).unlink()
    ez.save(dropout_mlp(), path)
    with pytest.raises(InputError, match="is no checkpoint of a run"):
        compress(run, resume=True)
    torch.save(dropout_mlp().state_dict(), path)
    with pytest.raises(InputError, match="is a pickle"):
        compress(run, resume=True)


def test_a_write_that_fails_leaves_the_checkpoint_before(run, monkeypatch):
    before = (run / CHECKPOINT).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ellzero.training.checkpoint.write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        compress(run, resume=True, callback=Stops(1))
    assert (run / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("fails", ["the first", "all"])
def test_a_rename_that_fails_is_named_and_loses_nothing(fails, run, monkeypatch, whole):
    replace = os.replace
    names = []

    def full(source: Path, target: Path) -> None:
        if source.name in (CHECKPOINT, PREVIOUS):
            names.append((source.name, target.name))
            if fails == "all" or len(names) == 1:
                raise OSError(28, "No space left on device")
        elif names and fails == "all":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        named = rf"^cannot rename \S*{CHECKPOINT} to {PREVIOUS}: No space left on device$"
        with pytest.raises(WriteError, match=named):
            compress(run, resume=True)
    assert names[0] == (CHECKPOINT, PREVIOUS)
    assert tensors_equal(compress(run, resume=True).model, whole.model)


def test_one_that_cannot_be_put_back_is_gone_on_with_from_beside(run, monkeypatch, whole):
    replace = os.replace
    full = False

    def filling(source: Path, target: Path) -> None:
        nonlocal full
        full = full or (source.name.startswith(".") and target.name == CHECKPOINT)
        if full:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", filling)
        with pytest.raises(WriteError, match=rf"^cannot write \S*{CHECKPOINT}: No space"):
            compress(run, resume=True)
    assert not (run / CHECKPOINT).exists()
    with pytest.warns(EllzeroWarning, match=rf"no model file .* goes on from .*{PREVIOUS}"):
        assert tensors_equal(compress(run, resume=True).model, whole.model)


# of this very run


def as_before(path: Path) -> None:
    """Make a checkpoint as it was written before it had a digest and said whose it is."""
    tensors, document = read_tensors(path)
    for key in ("digest", "recipe", "threads", "started", "retries"):
        del document[key]
    write_tensors(path, tensors, document)


def test_one_from_before_digests_is_gone_on_with(run, whole):
    started = read_record(run).started
    as_before(run / CHECKPOINT)
    with pytest.warns(EllzeroWarning, match="of an older ellzero and has no digest"):
        result = compress(run, resume=True)
    assert tensors_equal(result.model, whole.model)
    assert result.record.started == started


def without_keys(path: Path, *keys: str) -> None:
    """Make a checkpoint of an older version that did not know these keys of a stage."""
    tensors, document = read_tensors(path)
    for stage in ("reference", "train", "finetune"):
        for key in keys:
            del document["recipe"][f"{stage}.{key}"]
    del document["digest"]
    document["digest"] = digest(tensors, document)
    write_tensors(path, tensors, document)


NEWER = (
    "gradient_accumulation_steps",
    "clip_grad_norm",
    "clip_grad_value",
    "no_decay",
    "ema_decay",
)


def test_one_that_is_older_than_a_key_is_gone_on_with(run, whole):
    without_keys(run / CHECKPOINT, *NEWER)
    assert tensors_equal(compress(run, resume=True).model, whole.model)


def test_but_not_with_another_value_of_that_key(tmp_path):
    path = stop(tmp_path / "run", train={"clip_grad_norm": 1.0})
    without_keys(path, *NEWER)
    with pytest.raises(InputError, match=r"train\.clip_grad_norm = 0\.0, .* 1\.0"):
        compress(path.parent, resume=True, train={"clip_grad_norm": 1.0})


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"seed": 1}, "seed = 1, .* 0"),
        ({"prune": {"sparsity": 0.5}}, r"prune\.sparsity = 0\.5, .* 0\.75"),
        (
            {"train": {"penalty": {"l0": {"strength": 1e-3}, "l2": {"strength": 1e-5}}}},
            r"train\.penalty\.l0\.strength = 0\.001, .* 0\.0001",
        ),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tables, said, run, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(stop(tmp_path / "other", **tables), run / CHECKPOINT)
    with pytest.raises(InputError, match=rf"{CHECKPOINT} has {said}; resume with the recipe"):
        compress(run, resume=True)


def test_a_recipe_that_was_edited_is_refused(run):
    path = run / "recipe.toml"
    path.write_text(path.read_text().replace("sparsity = 0.75", "sparsity = 0.5"))
    with pytest.raises(InputError, match=r"prune\.sparsity = 0\.75, .* 0\.5"):
        compress(run, resume=True, prune={"sparsity": 0.5})


def test_another_number_of_threads_is_told(run):
    with pytest.warns(EllzeroWarning, match="written by 1 CPU threads and .* on with 2"):
        result = compress(run, resume=True, threads=2)
    assert result.record.threads == 2


def test_the_record_says_how_many_threads_it_was_where_the_recipe_leaves_them_out(whole):
    assert "threads" not in whole.record.recipe
    assert whole.record.threads == 1


@pytest.mark.parametrize("claimed", [-3594.8, float("nan"), float("inf")])
def test_what_a_checkpoint_claims_of_the_time_is_looked_at(claimed, run):
    tensors, document = read_tensors(run / CHECKPOINT)
    state = fresh()
    checkpoint.put_back(
        checkpoint.Checkpoint(tensors, {**document, "seconds": claimed}), state, recipe()
    )
    assert state.seconds == 0


def test_a_clock_that_is_moved_back_makes_no_time_negative(tmp_path, monkeypatch):
    for clock in ("monotonic", "perf_counter"):
        now = iter(range(10**6, 0, -60))
        monkeypatch.setattr(time, clock, lambda now=now: float(next(now)))
    result = compress(tmp_path / "run")
    assert result.record.seconds == 0
    assert {line["seconds"] for line in metrics_of(tmp_path / "run")} == {0.0}


# nothing is a dead end


@pytest.mark.parametrize("left", ["recipe.toml", "recipe.toml and record.json", "metrics too"])
def test_a_run_that_saved_nothing_yet_begins_anew(left, run, whole):
    for path in run.iterdir():
        if path.name not in left and not (left == "metrics too" and "checkpoint" not in path.name):
            path.unlink()
    with pytest.warns(EllzeroWarning, match=rf"no {CHECKPOINT} yet, so the run begins anew by"):
        result = compress(run, resume=True)
    assert tensors_equal(result.model, whole.model)
    assert len(metrics_of(run)) == 11


def test_it_begins_anew_from_the_files_that_its_recipe_names(tmp_path):
    ez.save(dropout_mlp(seed=7), tmp_path / "given.safetensors")
    given = {"file": str(tmp_path / "given.safetensors")}
    expected = compress(None, reference=given)
    stop(tmp_path / "run", reference=given)
    for name in (CHECKPOINT, PREVIOUS):
        (tmp_path / "run" / name).unlink()
    with pytest.warns(EllzeroWarning, match="begins anew"):
        result = compress(tmp_path / "run", resume=True, reference=given)
    assert tensors_equal(result.model, expected.model)


def test_a_network_that_may_be_a_result_is_not_overwritten(run):
    for name in (CHECKPOINT, PREVIOUS, "record.json"):
        (run / name).unlink()
    (run / "model.safetensors").write_bytes(b"all that is left of a run that was done")
    with pytest.raises(InputError, match=r"its model\.safetensors would be lost"):
        compress(run, resume=True)


@pytest.mark.parametrize("record", [None, "", "[[[", '{"format": 1, "status": "odd"}'])
def test_a_record_is_not_needed(record, run, whole):
    started = read_record(run).started
    (run / "record.json").unlink()
    if record is not None:
        (run / "record.json").write_text(record)
    result = compress(run, resume=True)
    assert tensors_equal(result.model, whole.model)
    assert read_record(run).status == "done"
    assert result.record.started == started


def test_without_a_recipe_or_a_folder_nothing_can_be_done(run, tmp_path):
    (run / "recipe.toml").unlink()
    with pytest.raises(InputError, match=r"there is no recipe\.toml in it"):
        compress(run, resume=True)
    with pytest.raises(InputError, match=r"no folder .* to resume"):
        compress(tmp_path / "none", resume=True)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_reference_that_was_lost_is_written_again(damaged, run):
    path = run / "reference.safetensors"
    before = path.read_bytes()
    path.unlink()
    if damaged:
        path.write_bytes(before[:-1])
    compress(run, resume=True)
    assert path.read_bytes() == before


def test_what_was_half_written_is_removed_by_a_resume(run):
    for name in (f".{CHECKPOINT}.0a1b2c3d", f".{PREVIOUS}.ffffffff", ".record.json.01234567"):
        (run / name).write_bytes(b"half")
    (run / ".mine").write_bytes(b"the user's")
    compress(run, resume=True)
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".mine"]


def test_a_folder_in_which_nothing_whole_was_written_is_free(tmp_path, whole):
    (tmp_path / ".recipe.toml.0a1b2c3d").write_bytes(b"seed = ")
    (tmp_path / ".lock").touch()
    result = compress(tmp_path)
    assert tensors_equal(result.model, whole.model)
    assert not list(tmp_path.glob(".recipe*"))


# stopping


class Interrupted(nn.CrossEntropyLoss):
    """The loss, until so many batches were trained; then Ctrl-C in the middle of an epoch."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return super().forward(input, target)


def test_an_interrupt_in_mid_epoch_saves_the_epoch_before(tmp_path, whole):
    # four batches an epoch: three epochs of the reference, two of the training, half of the third
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ez.compress(dropout_mlp(), classification(loss=Interrupted(22)), recipe(), folder=folder)
    _, document = read_tensors(folder / CHECKPOINT)
    assert (document["step"]["stage"], document["epoch"]) == ("train", 2)
    assert len(document["history"]) == 5
    result = compress(folder, resume=True)
    assert tensors_equal(result.model, whole.model)


def test_an_interrupt_while_the_result_is_measured_saves_the_last_epoch(
    tmp_path, whole, monkeypatch
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ellzero.scheme.conclude", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path)
    monkeypatch.undo()
    _, document = read_tensors(tmp_path / CHECKPOINT)
    assert (document["step"]["stage"], document["epoch"]) == ("finetune", 3)
    assert tensors_equal(compress(tmp_path, resume=True).model, whole.model)


@pytest.mark.parametrize(("seconds", "count"), [(0, 3 + 10), (3600, 3 + 1)])
def test_a_checkpoint_is_written_when_it_is_due(seconds, count, tmp_path, monkeypatch):
    # at the beginning of each of the three steps; after each of ten epochs, or after the last
    written = []
    write = checkpoint.write
    monkeypatch.setattr(
        checkpoint, "write", lambda taken, *rest: (written.append(taken), write(taken, *rest))
    )
    compress(tmp_path, checkpoint_seconds=seconds)
    assert len(written) == count


def test_what_was_taken_stays_as_the_training_goes_on(stopped):
    taken = checkpoint.Checkpoint(*read_tensors(stopped / CHECKPOINT))
    document = json.dumps(taken.document)
    tensors = {name: tensor.clone() for name, tensor in taken.tensors.items()}
    state, told = fresh(), recipe()
    checkpoint.put_back(taken, state, told)
    again = checkpoint.take(state)
    assert state.optimizer is not None
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    for one in (taken, again):
        assert one.tensors.keys() == tensors.keys()
        assert all(torch.equal(one.tensors[name], tensors[name]) for name in tensors)
    assert json.dumps(taken.document) == document
