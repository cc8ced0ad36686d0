"""Runs that find the disk full: each says so in one line, keeps what it has, and can go on.

`python benchmarks/faults/full_disk.py [--count N] [--minutes M] [--seed S] [--folder F]
[KIND ...]`: `stays` lets the disk be full from a change to files on, for every change that a run
makes; `once` lets that change alone fail. With a count, so many of them are drawn by chance. Then
there is room again, and the run must come to the same bits.
"""

import errno
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kills import whole_run
from trials import (
    SHORT,
    Ended,
    Trials,
    Writes,
    begin,
    ellzero_in,
    finish_run,
    make_project,
    options,
)

KINDS = ("stays", "once")


def fill(at: int, stays: bool, number: int, kind: str, half: Callable[[], object]) -> None:
    """Fail a change for want of room; a removal needs none."""
    if (number == at or (stays and number > at)) and kind != "unlink":
        half()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def require_sentence(ended: Ended, run: Path) -> None:
    """Make sure that a run says which file had no room, and how to go on.

    Raises:
        AssertionError: it does not.
    """
    assert ended.code == 1, f"it ended with {ended.code}"
    assert len(ended.lines) == 1, ended.lines
    (line,) = ended.lines
    assert line.startswith("ellzero: cannot "), line
    assert run.name in line.partition(": No space left on device")[0], line
    ways = (f"`ellzero run --resume {run.name}`", "nothing was saved yet in", "is done")
    has_begun = run.is_dir() and any(run.iterdir())
    assert not has_begun or any(way in line for way in ways), line


def full_disks(trials: Trials, folder: Path, stays: bool, numbers: list[int], whole: Any) -> None:
    """Let the disk be full at each of these changes."""
    kind = "disk stays full" if stays else "disk is full once"
    for number in trials.numbers(kind, numbers):
        run = folder / f"{'stays' if stays else 'once'}-{number}"
        with trials.trial(kind, run.name):
            writes = Writes(partial(fill, number, stays))
            ended = ellzero_in(folder, *begin(run.name, SHORT), first=writes.install)
            if ended.code != 0:
                require_sentence(ended, run)
            finish_run(run, SHORT, whole)


def main() -> None:
    """Print what came of the runs."""
    chosen = options(__doc__, 10_000, "full-disk", KINDS)
    make_project(chosen.folder)
    trials = Trials(chosen.minutes)
    whole, _ = whole_run(chosen.folder, SHORT)
    counted = Writes(lambda *_: None)
    ellzero_in(chosen.folder, *begin("counted", SHORT), first=counted.install)
    numbers = list(range(1, counted.count.value + 1))
    if chosen.count < len(numbers):
        numbers = sorted(random.Random(chosen.seed).sample(numbers, chosen.count))
    print(
        f"{len(numbers)} of the {counted.count.value} changes that a run makes to files", flush=True
    )
    for kind in chosen.kinds:
        full_disks(trials, chosen.folder, kind == "stays", numbers, whole)
    trials.finish()


if __name__ == "__main__":
    main()
