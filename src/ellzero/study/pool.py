"""What runs the cells of a study: workers, here or elsewhere, and how they are ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ellzero.recipe import Recipe
from ellzero.study.watch import Watch

POLL_SECONDS = 0.5
"""After so long a wait it is looked whether there is still something to wait for."""

CLOSE_SECONDS = 20.0
"""A process whose input has closed may take so long to write its checkpoint; then SIGTERM comes."""

TERMINATE_SECONDS = 5.0
"""So long after SIGTERM comes SIGKILL, which ends stopped processes, too."""

KILL_SECONDS = 5.0
"""So long the operating system may take; a process that it cannot end is waited for no longer."""


class WorkerDied(Exception):
    """The process ended in the midst of a cell; the text says how."""


class Worker(Protocol):
    """Runs cells; a thread of the runner's gives it orders, the main thread watches and ends it."""

    watch: Watch | None
    """Of the cell that it runs at the moment."""

    def run(self, folder: Path, recipe: Recipe) -> str | None:
        """Run one cell, or what comes before the worker is closed; what there is to warn of.

        Raises:
            WorkerDied: it was not closed and did not come to the cell's end.
        """
        ...

    def rest(self) -> None:
        """There is nothing to run for now; what others may use in the meantime is given back."""
        ...

    def close(self) -> None:
        """Let it end: at once if it is idle, else as an interrupted run."""
        ...

    def terminate(self) -> None:
        """Ask it to end in another way."""
        ...

    def kill(self, because: str) -> None:
        """End it, and what it has started, without asking."""
        ...

    def wait(self, seconds: float) -> bool:
        """Whether it ends within this time."""
        ...

    def release(self) -> None:
        """Close what led to a worker that has ended."""
        ...


def end(workers: Sequence[Worker]) -> None:
    """End all of them: by closing their input, by SIGTERM, by SIGKILL; an interrupt kills at once.

    Takes at most the sum of the three waits.
    """
    try:
        for worker in workers:  # all of them are told before any is waited for
            worker.close()
        if not ended(workers, CLOSE_SECONDS):
            for worker in workers:
                worker.terminate()
            ended(workers, TERMINATE_SECONDS)
    finally:
        for worker in workers:
            worker.kill("it did not end")
        ended(workers, KILL_SECONDS)


def ended(workers: Sequence[Worker], seconds: float) -> bool:
    """Whether all of them end within this time."""
    deadline = time.monotonic() + seconds
    return all(worker.wait(max(0.0, deadline - time.monotonic())) for worker in workers)
