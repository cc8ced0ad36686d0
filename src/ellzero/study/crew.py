"""The crew: workers that run the jobs of a study side by side, whatever becomes of one of them."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from ellzero.errors import InputError, warn
from ellzero.recipe import Recipe
from ellzero.run_folder import RunFolder, fail
from ellzero.study.pool import POLL_SECONDS, Worker, WorkerDied, end
from ellzero.study.progress import StudyBar

LOG = "workers.log"

REST_SECONDS = 30.0
"""So long a worker without a job keeps its place, for the next stage may come any moment."""

SETTLED = ("done", "missed", "unreadable")
"""Cells that are not run: they would miss their budget again, or nobody knows what they hold."""


@dataclass(frozen=True)
class Job:
    """A run to be made; its recipe is asked for when its turn comes, as files may then be there."""

    folder: Path
    recipe: Callable[[], Recipe]
    work: int
    """In epochs, of stages that count optimizer steps in these."""


class Crew:
    """Workers, each with a thread that gives it one job after another.

    Args:
        workers: what runs the jobs; they are ended with the crew.
        threads: what each of them may use.
        shown: where it is counted what is done.
        stalled_minutes: after so long without progress a cell is warned of, after twice as long
            its worker is killed; 0 for never.
    """

    def __init__(
        self, workers: Sequence[Worker], threads: int, shown: StudyBar, stalled_minutes: float
    ) -> None:
        self._threads = threads
        self._shown = shown
        self._stalled_minutes = stalled_minutes
        self._stopped = False
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()  # for the main thread to give
        self._workers = workers

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._stopped:
            self._stop()
        for worker in self._workers:
            worker.release()

    def run(self, stage: str, groups: list[list[Job]], *, later: int = 0) -> None:
        """Run all jobs; those of a group one after another, in one worker.

        Args:
            stage: what to call this on the display.
            groups: the jobs.
            later: epochs to come after these.
        """
        self._shown.expect(stage, work_of(groups) + later)
        left = iter(groups)  # every worker draws its next group from the same iterator
        idle: dict[Worker, float] = {}  # since when

        def work(worker: Worker) -> None:
            for group in left:
                for job in group:
                    if not self._stopped:
                        self._one(worker, job)
            idle[worker] = time.monotonic()

        with ThreadPoolExecutor(len(self._workers)) as pool:
            futures = [pool.submit(work, worker) for worker in self._workers]
            try:
                while wait(futures, timeout=POLL_SECONDS).not_done:
                    self._look()
                    self._rest(idle)
            except BaseException:
                self._stop()
                raise
        self._look()
        for future in futures:
            future.result()

    def _stop(self) -> None:
        self._stopped = True
        end(self._workers)

    def _look(self) -> None:
        """Show how far the workers are, and see to those that have stopped moving."""
        self._shown.refresh()
        for worker in self._workers:
            if self._stalled_minutes > 0:
                self._require_progress(worker)
        while not self._warnings.empty():
            warn(self._warnings.get())

    def _rest(self, idle: dict[Worker, float]) -> None:
        """Let workers rest that have been idle for long, while others are still at work."""
        for worker, since in list(idle.items()):
            if time.monotonic() - since >= REST_SECONDS:
                del idle[worker]
                worker.rest()

    def _require_progress(self, worker: Worker) -> None:
        watch, limit = worker.watch, self._stalled_minutes
        if watch is None:
            return
        minutes = watch.look(time.monotonic()) / 60
        if minutes >= 2 * limit:
            worker.kill(f"its process made no progress for {2 * limit:g} minutes and was killed")
        elif minutes >= limit and not watch.is_known_to_stall:
            watch.is_known_to_stall = True
            self._warnings.put(
                f"{watch.folder} has made no progress for {limit:g} minutes; after as long again "
                "its process is killed (stalled_minutes in the study sets the limit)"
            )

    def _one(self, worker: Worker, job: Job) -> None:
        if RunFolder.at(job.folder).status not in SETTLED:
            self._shown.begin(job.folder, job.work)
            try:
                recipe = job.recipe()
            except InputError as error:
                self._fail(job.folder, str(error))
            else:
                threads = min(recipe.threads or self._threads, self._threads)
                self._try(worker, job.folder, recipe.model_copy(update={"threads": threads}))
        self._shown.end(job.folder, job.work, failed=not RunFolder.at(job.folder).finished)

    def _try(self, worker: Worker, folder: Path, recipe: Recipe) -> None:
        """Run a cell; once more if its worker dies, which may have nothing to do with the cell."""
        for is_last in (False, True):
            try:
                warning = worker.run(folder, recipe)
            except WorkerDied as death:
                if self._stopped:
                    return
                if is_last:
                    self._fail(folder, f"{death}, at the second try; {LOG} may tell why")
                else:
                    self._warnings.put(f"{folder}: {death}; it is tried once more")
            else:
                if warning is not None:
                    self._warnings.put(warning)
                return

    def _fail(self, folder: Path, error: str) -> None:
        try:
            fail(folder, error)
        except (InputError, OSError) as reason:
            self._warnings.put(f"{folder} failed: {error}; its record does not say so: {reason}")


def work_of(groups: Iterable[list[Job]]) -> int:
    """The epochs of all jobs together."""
    return sum(job.work for group in groups for job in group)
