"""All that the library does, over and over in one process: nothing may grow.

`python benchmarks/faults/soak.py [--count N] [--minutes M] [--seed S] [--folder F]`: trains,
prunes, compacts, quantizes, packs, loads, evaluates and reports in rounds, by default for half an
hour. In every tenth round a run in another process is killed and gone on with. Memory, file
descriptors and threads are noted after each round; the last third is compared with the one before.
"""

import gc
import os
import random
import shutil
import statistics
import sys
import time
import warnings
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from trials import SHORT, Command, Trials, begin, ellzero_in, finish_run, make_project, options
from trials import bits as bits_of

import ellzero as ez
from ellzero.factories import build_data, build_model

ROUNDS = sys.maxsize
MINUTES = 30.0
KILL_EVERY = 10

GROWTH = 0.5
"""MiB that a round may leave behind; torch keeps 0.1 of every network that it exports."""


@dataclass(frozen=True)
class Use:
    """What this process holds."""

    mebibytes: float
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> "Use":
        """At this moment."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        mebibytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        counts = (sum(1 for _ in Path("/proc/self", name).iterdir()) for name in ("fd", "task"))
        return cls(mebibytes, *counts)


def work(folder: Path, seed: int) -> None:
    """One round of everything."""
    settings = [f"{key}={value}" for key, value in SHORT.items()]
    path = f"data.path={folder / 'noise.npz'}"
    recipe = ez.Recipe.read(folder / "trial.toml", [*settings, path, f"seed={seed}"])
    data = build_data(recipe.data)
    run = folder / "round"
    result = ez.compress(build_model(recipe.model, seed), data, recipe, folder=run, progress=False)
    model = build_model(recipe.model, seed)
    ez.prune(model, sparsity=0.9)
    small = ez.compact(result.trace()).model
    ez.quantize(small, bits=4)
    ez.pack(small, run / "small.ellz")
    loaded = ez.load(run / "small.ellz")
    inputs = torch.rand(4, *data.train.example[0].shape[1:])
    assert torch.equal(loaded(inputs), small.eval()(inputs)), "the packed network answers otherwise"
    ez.evaluate(ez.open_run(run).model, data, "test")
    ez.write_report(run)
    shutil.rmtree(run)


def killed_and_resumed(folder: Path, whole: dict, moment: float) -> None:
    """A run in a process of its own that is killed, and gone on with."""
    run = folder / "killed"
    Command(folder, *begin(run.name, SHORT)).kill_after(moment)
    finish_run(run, SHORT, whole)


def main() -> None:
    """Print what this process held, and whether it grew."""
    chosen = options(__doc__, ROUNDS, "soak", minutes=MINUTES)
    warnings.simplefilter("ignore")
    make_project(chosen.folder)
    assert ellzero_in(chosen.folder, *begin("whole", SHORT)).code == 0
    whole = bits_of(chosen.folder / "whole")
    trials, rng = Trials(chosen.minutes), random.Random(chosen.seed)
    uses = []
    said = 0.0
    for number in trials.numbers("rounds", range(chosen.count)):
        with trials.trial("round", f"round {number}"):
            work(chosen.folder, number)
        if number % KILL_EVERY == 0:
            with trials.trial("kill and resume", f"round {number}"):
                killed_and_resumed(chosen.folder, whole, rng.uniform(0, 1.5))
        uses.append(Use.now())
        if time.monotonic() > said + 60:
            said = time.monotonic()
            print(f"round {number}: {uses[-1]}", flush=True)
    third = max(1, len(uses) // 3)
    before, after = (
        Use(*map(statistics.median, zip(*map(astuple, part), strict=True)))
        for part in (uses[third : 2 * third], uses[2 * third :])
    )
    with trials.trial("flat", "memory, descriptors, threads"):
        growth = (after.mebibytes - before.mebibytes) / third
        print(f"medians of the second third: {before}; of the last: {after}; first: {uses[0]}")
        print(f"{len(uses)} rounds; memory grew by {growth:.3f} MiB a round")
        assert growth <= GROWTH, "memory grew"
        assert after.descriptors <= before.descriptors, "descriptors stay open"
        assert after.threads <= before.threads, "threads go on"
    trials.finish()


if __name__ == "__main__":
    main()
