"""A user's project to compare methods in: a module of theirs, and studies of a few seconds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ellzero as ez
from ellzero.study.results import Results
from ellzero.study.study import merged

MODULE = """
import os
import time
from pathlib import Path

import torch
from torch import nn
import ellzero as ez

print("the user's module is imported")

BROKEN = Path("broken").exists()  # in the current folder, and so that it can be mended

class Network(nn.Sequential):
    def forward(self, x):
        if self.training:
            time.sleep(float(os.environ.get("OWN_PAUSE", "0")))
            if BROKEN and len(x) == 7:  # a method can be told by its batch size
                raise RuntimeError("a batch of seven")
            if BROKEN and len(x) == 11:
                os._exit(7)
        return super().forward(x)

def network(bad_seed=-1):
    if BROKEN and torch.initial_seed() == bad_seed:
        raise ArithmeticError("a seed I do not like")
    return Network(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

def loss(outputs, targets):
    found = nn.functional.cross_entropy(outputs, targets)
    return found * torch.nan if BROKEN and len(outputs) == 13 else found

def data():
    parts = []
    for seed, count in ((1, 60), (2, 45), (3, 30)):
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(count) % 3
        x = torch.eye(6)[:3][y] + 0.6 * torch.randn(count, 6, generator=generator)
        parts.append((x, y))
    return ez.Data(*parts, loss=loss, task="classification")
"""

RECIPE: dict[str, Any] = {
    "model": "own_project:network",
    "data": "own_project:data",
    "device": "cpu",
    "reference": {"epochs": 2},
    "train": {"epochs": 2, "batch_size": 16, "learning_rate": 0.02},
    "finetune": {"epochs": 1},
}


@contextmanager
def project_in(folder: Path) -> Iterator[Path]:
    """The folder with the user's module in it, as the current one."""
    (folder / "own_project.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [p for p in sys.path if p])
        # a study is as fast as its workers can start, and the machine may be busy
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OMP_WAIT_POLICY", "passive")  # threads that have nothing to do sleep
        yield folder
    sys.modules.pop("own_project", None)


def a_study(recipe: dict[str, Any] | None = None, **keys: Any) -> ez.Study:
    """A study of the user's network; some keys of the recipe on top of those above."""
    return ez.Study.parse({**keys, "recipe": merged(RECIPE, recipe or {})})


def records(folder: Path) -> dict[str, dict[str, Any]]:
    paths = (folder / "cells").glob("*/record.json")
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def stamps(folder: Path) -> dict[Path, int]:
    """When each file of the cells was last written."""
    files = (path for path in (folder / "cells").rglob("*") if path.is_file())
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in files}


def figures(results: Results) -> dict[str, Any]:
    """All that a study has found out, without times, folders and versions."""
    dropped = ("seconds", "started", "folder", "versions", "recipe", "threads")
    cells = {
        name: {k: v for k, v in cell.record.to_table().items() if k not in dropped}
        for name, cell in results.cells.items()
        if cell.record is not None
    }
    rows = [
        (r.method, r.target, r.strength, r.at_edge, r.seeds, [c.folder.name for c in r.cells])
        for r in results.rows()
    ]
    return {"cells": cells, "rows": rows}


def networks(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {p.parent.name: load_file(p) for p in (folder / "cells").glob("*/model.safetensors")}


def assert_equal_networks(left: Path, right: Path) -> None:
    ours, theirs = networks(left), networks(right)
    assert ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        assert tensors.keys() == theirs[name].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, theirs[name][key]), (name, key)


def trained_in(folder: Path) -> list[str]:
    """Cells that trained, which their metrics show."""
    lines = {p.parent.name: p.read_text() for p in (folder / "cells").glob("*/metrics.jsonl")}
    return sorted(name for name, text in lines.items() if '"stage": "train"' in text)
