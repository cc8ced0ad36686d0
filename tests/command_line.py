"""A project of a user's: a folder with a module and a recipe, and the command line in it."""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ellzero.cli.app import main

MODULE = """
import torch
from torch import nn
import ellzero as ez

def network(hidden=16):
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))

def data(wrong="", test=True):
    parts = []
    for seed, count in ((1, 60), (2, 45), (3, 30)):
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(count) % 3
        x = torch.eye(6)[:3][y] + 0.6 * torch.randn(count, 6, generator=generator)
        if wrong == "nan":
            x[5, 5] = torch.nan
        if wrong == "label":
            y[5] = 3
        if wrong == "empty":
            x, y = x[:0], y[:0]
        if wrong == "width":
            x = x[:, :5]
        parts.append((x, y))
    loss = diverging if wrong == "loss" else None
    return ez.Data(*parts[:3 if test else 2], loss=loss, task="classification")

def diverging(outputs, targets):
    return outputs.sum() * torch.nan

def fails():
    raise RuntimeError("the user's own mistake")
"""

RECIPE = """
model = "own_project:network"
data = "own_project:data"
device = "cpu"
reference.epochs = 2
train = {epochs = 2, batch_size = 16, learning_rate = 0.02, penalty.l0 = {strength = 1e-4}}
prune.sparsity = 0.75
finetune.epochs = 2
"""


@dataclass
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str

    def says(self) -> str:
        """The one line of a failure, which must be all there is."""
        assert self.code != 0, self.out
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("ellzero: ")
        assert len(lines[0]) < 600
        return lines[0]


Command = Callable[..., Done]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's module and recipe in it."""
    (tmp_path / "own_project.py").write_text(MODULE)
    (tmp_path / "mine.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in ("own_project", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def ellzero(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs the command line in this process."""
    # no lines of progress among what a test reads, however slow the machine
    monkeypatch.setattr("ellzero.progress.LINE_SECONDS", math.inf)

    def command(*arguments: Any) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        code = caught.value.code
        return Done(code if isinstance(code, int) else 1, streams.out, streams.err)

    return command
