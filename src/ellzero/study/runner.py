"""The runner: all cells of a study, each an ordinary run, spread over worker processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ellzero.errors import InputError
from ellzero.files import write_atomically
from ellzero.recipe import Recipe
from ellzero.run_folder import RECIPE, REFERENCE, TRAINED, RunFolder, fail, locked
from ellzero.study.progress import StudyBar
from ellzero.study.results import STUDY, Results, cell_folder, reference_folder
from ellzero.study.study import Cell, Study, Target, Training

LOG = "workers.log"


def compare(
    study: Study, folder: str | Path, *, workers: int = 1, progress: bool | None = None
) -> Results:
    """Compare methods by a study: train, prune and fine-tune all its cells.

    The references come first, one a seed; then every method is tuned on the first seed; then the
    strengths that did best on its validation data go on to the other seeds. Each cell is an
    ordinary run in a folder of its own. Cells that are done are not run again, ones that were
    stopped go on, and ones that failed are tried anew; a cell that fails does not stop the others.

    Args:
        study: what to compare.
        folder: where everything is written; new, empty, or that of the same study.
        workers: processes that run cells side by side; the machine's threads are shared out
            between them.
        progress: show a bar on standard error; by default if that is a terminal.

    Returns:
        The results, which `write_report` makes a page of; `failures()` tells what went wrong.

    Raises:
        InputError: a folder in other use; cells in it that were run by another recipe; fewer than
            one worker.

    Example:
        >>> import ellzero as ez
        >>> study = ez.Study.parse(
        ...     {
        ...         "seeds": [0],
        ...         "sparsities": [0.9],
        ...         "recipe": {"model": "lenet-300-100", "data": "mnist-5k"},
        ...         "methods": {"magnitude": {}, "l1": {"strengths": [1e-5, 1e-4]}},
        ...     }
        ... )
        >>> results = ez.compare(study, "runs/l1-study", workers=2)  # doctest: +SKIP
    """
    folder = Path(folder)
    if workers < 1:
        raise InputError(f"workers is {workers}; expected at least 1")
    _take(study, folder)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, (cores or 1) // workers)
    with locked(folder), StudyBar(progress) as shown:
        write_atomically(folder / STUDY, study.to_toml().encode())
        with _Crew(workers, threads, folder / LOG, shown) as crew:
            first, *others = study.seeds
            later = len(others) * _most_work(study, folder)
            tuning = [list(_jobs(study, folder, t, study.targets)) for t in study.tuning()]
            references = [[_reference(study, folder, seed)] for seed in study.seeds]
            crew.run("references", references, later=_work(tuning) + later)
            if (reference_folder(folder, first) / REFERENCE).is_file():  # else nothing can be tuned
                crew.run("tuning", tuning, later=later)
                crew.run("seeds", list(_others(study, folder, others)))
    return Results.read(folder, study)


@dataclass(frozen=True)
class _Job:
    """A run to be made; its recipe is asked for when its turn comes, as files may then be there."""

    folder: Path
    recipe: Callable[[], Recipe]
    work: int
    """In epochs."""


def _take(study: Study, folder: Path) -> None:
    """Make the folder, or make sure that what it holds are cells of this very study."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make study folder {folder}: {error.strerror}") from None
    if any(folder.iterdir()) and not (folder / STUDY).is_file():
        raise InputError(f"folder {folder} is in use and holds no study; name another one")
    known = [
        *((reference_folder(folder, s), study.reference_recipe(s)) for s in study.seeds),
        *((cell_folder(folder, cell), study.cell_recipe(cell)) for cell in study.cells()),
    ]
    for cell, recipe in known:
        run = RunFolder.at(cell)
        if run.status == "unreadable" or not (cell / RECIPE).is_file():
            continue
        try:
            before = Recipe.read(cell / RECIPE)
        except InputError as error:
            if run.finished is None and not run.metrics:
                continue  # half written, so nothing was run by it
            raise InputError(
                f"nobody can tell by which recipe {cell} was run: {error}; name another folder, or "
                "move that cell away"
            ) from None
        if _essence(before, recipe) != _essence(recipe, recipe):
            raise InputError(
                f"{cell} was run by another recipe than this study's; name another folder, or "
                "move that cell away"
            )


def _essence(recipe: Recipe, of_study: Recipe) -> Recipe:
    """The recipe without what depends on where and how a cell was run.

    Files are left out where the study does not name them: then they are other cells'.
    """
    changes: dict[str, Any] = {"threads": None}
    if of_study.precision == "auto":
        changes["precision"] = "auto"
    if recipe.name != f"reference-seed{recipe.seed}":
        changes["reference"] = recipe.reference.model_copy(update={"file": None})
    if of_study.train.file is None:
        changes["train"] = recipe.train.model_copy(update={"file": None})
    return recipe.model_copy(update=changes)


def _reference(study: Study, folder: Path, seed: int) -> _Job:
    recipe = study.reference_recipe(seed)
    return _Job(reference_folder(folder, seed), lambda: recipe, recipe.reference.epochs)


def _others(study: Study, folder: Path, seeds: Sequence[int]) -> Iterator[list[_Job]]:
    """On each other seed the strengths that were chosen, each for the targets it was chosen for."""
    results = Results.read(folder, study)
    for seed in seeds:
        for method in study.methods:
            targets: dict[float | None, list[Target]] = {}
            for target in study.targets:
                chosen = results.chosen(method, target)
                if chosen is not None:
                    targets.setdefault(chosen.strength, []).append(target)
            for strength, chosen_for in targets.items():
                training = Training(method, strength, seed)
                yield list(_jobs(study, folder, training, chosen_for))


def _work(groups: Iterable[list[_Job]]) -> int:
    return sum(job.work for group in groups for job in group)


def _most_work(study: Study, folder: Path) -> int:
    """Epochs that a further seed takes at most: every target may have chosen another strength."""
    total = 0
    for name, method in study.methods.items():
        strengths = method.strengths or (None,)
        jobs = list(_jobs(study, folder, Training(name, strengths[0], 0), study.targets))
        trains = jobs[0].work - jobs[-1].work  # the others start from what the first one trained
        total += _work([jobs]) + trains * (min(len(strengths), len(jobs)) - 1)
    return total


def _jobs(
    study: Study, folder: Path, training: Training, targets: Iterable[Target]
) -> Iterator[_Job]:
    """The cells of one training: the first one trains, the others start from what it trained."""
    for number, target in enumerate(targets):
        cell = Cell(training, target)
        recipe = study.cell_recipe(cell)
        gradual = recipe.prune.gradual is not None
        trains = number == 0 or gradual
        work = recipe.finetune.epochs * recipe.prune.rounds + (recipe.train.epochs if trains else 0)

        def ready(cell: Cell = cell, recipe: Recipe = recipe) -> Recipe:
            return _ready(study, folder, cell, recipe)

        yield _Job(cell_folder(folder, cell), ready, work)


def _ready(study: Study, folder: Path, cell: Cell, recipe: Recipe) -> Recipe:
    """The recipe with the files it starts from: the seed's reference, and a shared training."""
    reference = reference_folder(folder, cell.training.seed) / REFERENCE
    if not reference.is_file():
        raise InputError(
            f"the reference of seed {cell.training.seed} failed, see {reference.parent}"
        )
    dense = recipe.reference.model_copy(update={"file": reference})
    train = recipe.train
    if recipe.prune.gradual is None:
        siblings = (cell_folder(folder, Cell(cell.training, t)) / TRAINED for t in study.targets)
        shared = next((file for file in siblings if file.is_file()), None)
        if shared is not None and shared.parent != cell_folder(folder, cell):
            train = train.model_copy(update={"file": shared})
    return recipe.model_copy(update={"reference": dense, "train": train})


class _Crew:
    """Worker processes, each with a thread that gives it one job after another."""

    def __init__(self, workers: int, threads: int, log: Path, shown: StudyBar) -> None:
        self._threads = threads
        self._shown = shown
        self._log = log.open("ab")
        self._stopped = False
        self._workers = [_Worker(self._log.fileno()) for _ in range(workers)]

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for worker in self._workers:
            worker.release()
        self._log.close()

    def run(self, stage: str, groups: list[list[_Job]], *, later: int = 0) -> None:
        """Run all jobs; those of a group one after another, in one worker.

        Args:
            stage: what to call this on the display.
            groups: the jobs.
            later: epochs to come after these.
        """
        self._shown.expect(stage, _work(groups) + later)
        left = iter(groups)  # every worker draws its next group from the same iterator

        def work(worker: _Worker) -> None:
            for group in left:
                for job in group:
                    if not self._stopped:
                        self._one(worker, job)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            futures = [pool.submit(work, worker) for worker in self._workers]
            try:
                while wait(futures, timeout=0.5).not_done:
                    self._shown.refresh()
            except BaseException:
                self._stop()
                raise
            self._shown.refresh()
            for future in futures:
                future.result()

    def _stop(self) -> None:
        self._stopped = True
        for worker in self._workers:  # all of them are told before any is waited for
            worker.close()
        for worker in self._workers:
            worker.wait()

    def _one(self, worker: _Worker, job: _Job) -> None:
        if RunFolder.at(job.folder).status not in ("done", "missed", "unreadable"):
            self._shown.begin(job.folder, job.work)
            try:
                recipe = job.recipe()
            except InputError as error:
                fail(job.folder, str(error))
            else:
                threads = min(recipe.threads or self._threads, self._threads)
                worker.run(job.folder, recipe.model_copy(update={"threads": threads}))
        self._shown.end(job.folder, job.work, failed=not RunFolder.at(job.folder).finished)


class _Worker:
    """One worker process; a new one is started where one has died of a cell."""

    def __init__(self, log: int) -> None:
        self._log = log
        self._closed = False
        self._lock = threading.Lock()  # no process is started after `close`
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ellzero.study.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # modules of the user's are found wherever the caller finds them
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C reaches the runner alone, which closes their input
        )

    def run(self, folder: Path, recipe: Recipe) -> None:
        """Run one cell; a death of the process is written into the cell's record."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        order = {"folder": str(folder), "recipe": recipe.to_table()}
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it is gone, as reading will show
        if stdout.readline() or self._closed:
            return
        code = self._process.wait()
        fail(folder, f"its process ended with exit code {code}; {LOG} may tell why")
        self.release()
        with self._lock:
            if not self._closed:
                self._process = self._start()

    def close(self) -> None:
        """Let the process end: at once if it is idle, else as an interrupted run."""
        with self._lock:
            self._closed = True
        _close(self._process.stdin)

    def wait(self) -> None:
        """Wait until the process has ended."""
        self._process.wait()

    def release(self) -> None:
        """Close what led to a process that has ended."""
        _close(self._process.stdin)
        _close(self._process.stdout)


def _close(pipe: IO[str] | None) -> None:
    assert pipe is not None
    with suppress(BrokenPipeError):  # an order that a dead process never read
        pipe.close()
