"""Progress: a bar on a terminal, nothing anywhere else, and the same result either way."""

import errno
import io
import os
import re
import sys

import pytest

import ellzero as ez
import hand_made
from ellzero.training.plan import Step
from ellzero.training.progress import Bar
from small import classification, mlp, recipe, tensors_equal


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("wanted", [None, False])
def test_it_is_silent_where_there_is_no_terminal(wanted, capfd):
    ez.compress(mlp(), classification(), recipe(), progress=wanted)
    assert capfd.readouterr() == ("", "")


def test_it_is_a_bar_on_a_terminal_unless_told_otherwise(monkeypatch):
    def is_shown(progress):
        bar = Bar(recipe(), classification(), has_reference=False, progress=progress)
        return not bar._bar.disable

    assert not is_shown(None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert is_shown(None)
    assert not is_shown(False)


class Gone(Terminal):
    """A terminal that has hung up, as one of a connection that was cut."""

    def write(self, text):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def flush(self):
        self.write("")


def test_a_terminal_that_has_gone_ends_no_run(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Gone())
    made = ez.compress(mlp(), classification(), recipe(), progress=True)
    monkeypatch.undo()
    silent = ez.compress(mlp(), classification(), recipe(), progress=False)
    assert tensors_equal(made.model, silent.model)


@pytest.mark.parametrize(
    "prune", [{"nonzeros": 20}, {"nonzeros": 20, "gradual": {}}, {"nonzeros": 20, "rounds": 2}]
)
@pytest.mark.parametrize("given", [False, True])
def test_the_bar_shows_every_stage_and_changes_nothing(prune, given, capfd, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    told, reference = recipe(prune=prune), mlp(seed=5) if given else None
    shown = ez.compress(mlp(), classification(), told, reference=reference, progress=True)
    monkeypatch.undo()
    silent = ez.compress(mlp(), classification(), told, reference=reference, progress=False)
    assert tensors_equal(shown.model, silent.model)
    assert capfd.readouterr().out == ""
    assert "finetune" in stream.getvalue()


def position(bar: Bar) -> float:
    return bar._bar.tasks[0].completed


def test_the_bar_counts_batches_and_ends_at_its_end():
    # 60 examples in batches of 16: 4 batches; epochs 3 + 4 + 2 rounds of 3
    told = recipe(prune={"nonzeros": 20, "rounds": 2})
    bar = Bar(told, classification(), has_reference=False)
    assert bar._bar.tasks[0].total == 4 * (3 + 4 + 2 * 3)
    for step, epoch, at in [
        (Step("reference", epochs=3), 0, 0),
        (Step("train", epochs=4), 0, 12),
        (Step("train", epochs=4), 3, 24),  # resumed after three epochs
        (Step("finetune", 1, 3), 0, 28),
        (Step("finetune", 2, 3), 2, 48),
    ]:
        bar.begin(step, epoch)
        assert position(bar) == at
    for _ in range(4):
        bar.tick()
    assert position(bar) == 52
    bar.epoch(hand_made.metrics("finetune", epoch=3, validation_score=0.5, nonzeros=1234))
    assert re.search("finetune round 2 3/3", bar._bar.tasks[0].description)
    assert "0.5000, 1,234 nonzeros" in bar._bar.tasks[0].fields["note"]


def test_the_bar_counts_the_batches_of_steps():
    # 4 batches are 2 steps an epoch: 5 steps are 2 epochs of 4 batches, and 2 batches
    told = recipe(train={"steps": 5, "gradient_accumulation_steps": 2}, prune={"nonzeros": 20})
    bar = Bar(told, classification(), has_reference=False)
    assert bar._bar.tasks[0].total == 4 * 3 + 10 + 4 * 3
    bar.begin(Step("train", epochs=3), 2)
    assert position(bar) == 12 + 8
    bar.begin(Step("finetune", 1, 3), 0)
    assert position(bar) == 12 + 10


@pytest.mark.parametrize(("given", "total"), [(False, 4 * (3 + 2 * 3)), (True, 4 * 2 * 3)])
def test_a_given_training_takes_no_part_of_the_bar(given, total):
    told = recipe(train={"file": "trained.safetensors"}, prune={"nonzeros": 20, "rounds": 2})
    bar = Bar(told, classification(), has_reference=given)
    assert bar._bar.tasks[0].total == total
    bar.begin(Step("finetune", 1, 3), 0)
    assert position(bar) == total - 4 * 2 * 3
    bar.begin(Step("finetune", 2, 3), 3)
    assert position(bar) == total


def test_the_bar_of_a_given_training_shows_the_stages_there_are(tmp_path, monkeypatch):
    ez.compress(mlp(), classification(), recipe(), folder=tmp_path / "run")
    told = recipe(train={"file": str(tmp_path / "run" / "trained.safetensors")})
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    shown = ez.compress(mlp(), classification(), told, progress=True)
    monkeypatch.undo()
    silent = ez.compress(mlp(), classification(), told, progress=False)
    assert tensors_equal(shown.model, silent.model)
    assert "finetune" in stream.getvalue()
    assert "train" not in stream.getvalue()


def test_a_given_reference_takes_no_part_of_the_bar():
    bar = Bar(recipe(), classification(), has_reference=True)
    assert bar._bar.tasks[0].total == 4 * (4 + 3)
    bar.begin(Step("train", epochs=4), 0)
    assert position(bar) == 0
