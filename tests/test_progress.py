"""Progress: a bar on a terminal, lines of text elsewhere, and the same result either way."""

import errno
import io
import os
import re
import sys

import pytest
import torch

import ellzero as ez
import hand_made
from ellzero.progress import Lines, waiting
from ellzero.training.plan import Step
from ellzero.training.progress import Bar
from small import classification, mlp, recipe, tensors_equal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def compressed(**more):
    return ez.compress(mlp(), classification(), recipe(), **more)


def test_a_short_run_without_a_terminal_says_nothing(capfd):
    compressed()
    assert capfd.readouterr() == ("", "")


def test_a_run_without_a_terminal_says_how_far_it_is(capfd, monkeypatch):
    monkeypatch.setattr("ellzero.progress.LINE_SECONDS", 0.0)  # so every batch has its line
    compressed()
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    # 60 examples in batches of 16, epochs of the reference, training and fine-tuning: 3 + 4 + 3
    wanted = r"train 2/4: 50 %, 0:00:0\d left; score [01]\.\d{4}, [\d,]+ nonzeros"
    assert any(re.fullmatch(wanted, line) for line in lines), err
    assert {line.split()[0] for line in lines} >= {"reference", "train", "finetune"}
    capfd.readouterr()
    compressed(progress=False)
    assert capfd.readouterr() == ("", "")


def test_lines_come_every_thirty_seconds_with_the_time_left():
    clock, written = [0.0], []
    lines = Lines(written.append, clock=lambda: clock[0])
    task = lines.add_task("train", total=1000, note="score 0.5")
    for second in range(1, 91):
        clock[0] = second
        lines.advance(task, 2)  # 2 in a second: 1000 take 500 s
    assert written == [
        "train: 6 %, 0:07:50 left; score 0.5\n",
        "train: 12 %, 0:07:20 left; score 0.5\n",
        "train: 18 %, 0:06:50 left; score 0.5\n",
    ]


def test_what_was_done_before_a_stop_counts_as_done_but_not_as_speed():
    clock, written = [0.0], []
    lines = Lines(written.append, clock=lambda: clock[0])
    task = lines.add_task("train", total=1000, note="")
    lines.update(task, completed=900)  # resumed
    for second in range(1, 41):
        clock[0] = second
        lines.advance(task)
    assert written == ["train: 93 %, 0:01:10 left\n"]


def test_a_line_without_an_end_in_sight_or_with_controls_is_plain():
    clock, written = [0.0], []
    lines = Lines(written.append, clock=lambda: clock[0])
    task = lines.add_task("a\x1b[31mb", total=None, note="")
    clock[0] = 31.0
    lines.update(task, note="c\nd")
    assert written == ["a\\x1b[31mb: c d\n"]


@pytest.mark.parametrize("wanted", [True, False])
def test_what_cannot_tell_how_far_it_is_is_named_on_a_terminal(wanted, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with waiting("tracing", shown=wanted):
        pass
    assert ("tracing" in stream.getvalue()) == wanted


def test_packing_says_how_far_it_is(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("ellzero.progress.LINE_SECONDS", 0.0)
    ez.pack(mlp(), tmp_path / "net.ellz", torch.zeros(1, 6))
    assert "packing: 100 %" in capfd.readouterr().err.splitlines()[-1]
    ez.pack(mlp(), tmp_path / "net.ellz", torch.zeros(1, 6), progress=False)
    assert capfd.readouterr().err == ""


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
