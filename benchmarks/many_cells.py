"""What a study of many cells costs besides the cells: seconds and memory at 1,000 and at 10,000.

`python benchmarks/many_cells.py`: for each number a process of its own plans a study, schedules it
with a worker that has nothing to do but to write the files of a run that is done, and makes the
report. The run is a small network's, with two figures drawn anew for each cell.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import ellzero as ez
from ellzero.recipe import Recipe
from ellzero.run_folder import RECORD, REFERENCE
from ellzero.study import runner
from ellzero.study.worker import run_cell

SEEDS, TARGETS = 20, 10

NETWORK = """
import torch, ellzero as ez

def network():
    return torch.nn.Linear(8, 3)

def data():
    x, y = torch.eye(8).repeat(12, 1), torch.arange(96) % 3
    return ez.Data((x, y), (x, y), (x, y))
"""


class Writer:
    """A worker that trains the references; all other cells get the files of one, and are done."""

    watch = None

    def __init__(self, log: int) -> None:
        self._files: dict[str, bytes] = {}
        self._random = random.Random(0)

    def run(self, folder: Path, recipe: Recipe) -> str | None:
        """Run a cell, or write its files."""
        if folder.name.startswith("reference"):
            error = run_cell(folder, recipe.to_table())
            assert error is None, error
            self._files = {path.name: path.read_bytes() for path in folder.iterdir()}
            return None
        folder.mkdir(parents=True)
        for name in self._files.keys() - {RECORD, REFERENCE}:
            (folder / name).write_bytes(self._files[name])
        record = {**json.loads(self._files[RECORD]), "folder": str(folder)}
        record["recipe"] = recipe.to_table()
        record["validation_score"] = record["test_error_percent"] = self._random.random()
        (folder / RECORD).write_text(json.dumps(record))
        return None

    def _nothing(self, *_: Any) -> bool:
        return True

    rest = close = terminate = kill = wait = release = _nothing


def study(cells: int) -> dict[str, Any]:
    """One of so many cells, all of which are run."""
    count = cells // (SEEDS * TARGETS)
    methods = {
        f"l1-{number}": {
            "train": {"penalty": {"l1": {"strength": 1e-6 * (number + 1)}}},
            "prune": {"gradual": {}},  # cells that share no training
        }
        for number in range(count)
    }
    return {
        "seeds": list(range(SEEDS)),
        "sparsities": [0.5 + 0.04 * i for i in range(TARGETS)],
        "recipe": {"model": "own:network", "data": "own:data", "train": {"epochs": 1}},
        "methods": methods,
    }


def measure(cells: int) -> None:
    """Print the seconds of each part and the memory of all, as JSON."""
    seconds = {}

    def lap(what: str, began: float) -> None:
        seconds[what] = round(time.process_time() - began, 1)

    began = time.process_time()
    planned = ez.Study.parse(study(cells))
    assert len(list(planned.cells())) == cells
    lap("plan", began)
    runner.LocalWorker = Writer
    began = time.process_time()
    results = ez.compare(planned, "study", progress=False)
    lap("schedule", began)
    began = time.process_time()
    assert not results.failures(), results.failures()[0]
    assert not results.unfinished()
    lap("list", began)
    del results
    began = time.process_time()
    page = ez.write_report(["study"])
    lap("report", began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kib = page.stat().st_size / 1024
    print(json.dumps({"cells": cells, **seconds, "MiB": round(memory), "page_KiB": round(kib)}))


def main() -> None:
    """Each number of cells in a process of its own."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.here:
        warnings.simplefilter("ignore", ez.EllzeroWarning)
        sys.path.insert(0, "")
        measure(chosen.here)
        return
    for cells in chosen.cells:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "own.py").write_text(NETWORK)
            command = [sys.executable, str(Path(__file__).resolve()), "--here", str(cells)]
            subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    main()
