"""The runner: all cells of a study, each an ordinary run, spread over worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ellzero.errors import InputError, warn
from ellzero.files import write_atomically
from ellzero.recipe import Recipe
from ellzero.run_folder import RECIPE, REFERENCE, TRAINED, RunFolder, locked
from ellzero.study.crew import LOG, Crew, Job, work_of
from ellzero.study.pool import Worker
from ellzero.study.process import LocalWorker
from ellzero.study.progress import StudyBar
from ellzero.study.ray_cluster import RayCluster, RayWorker
from ellzero.study.results import STUDY, Results, cell_folder, reference_folder
from ellzero.study.study import Cell, Study, Target, Training
from ellzero.training.identity import require_origin
from ellzero.trust import code_in
from ellzero.user_code import importing


def compare(
    study: Study,
    folder: str | Path,
    *,
    workers: int | None = None,
    cluster: RayCluster | None = None,
    progress: bool = True,
) -> Results:
    """Compare methods by a study: train, prune and fine-tune all its cells.

    The references come first, one a seed; then every method is tuned on the first seed; then the
    strengths that did best on its validation data go on to the other seeds. Each cell is an
    ordinary run in a folder of its own. Cells that are done are not run again, ones that were
    stopped go on, and ones that failed are tried anew; a cell that fails does not stop the others.

    Args:
        study: what to compare.
        folder: where everything is written; new, empty, or that of the same study.
        workers: how many cells are run side by side. Here by default one; the machine's threads are
            shared out between them. On a cluster by default as many as it has room for.
        cluster: where cells are run; left out, in processes of this machine.
        progress: show on standard error how far it is: a bar on a terminal, elsewhere a line
            every 30 seconds.

    Returns:
        The results, which `write_report` makes a page of; `failures()` tells what went wrong.

    Raises:
        InputError: a folder in other use; cells in it that were run by another recipe; fewer than
            one worker; no such cluster, or none with room for a cell.

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
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; expected at least 1")
    _take(study, folder)
    with locked(folder), StudyBar(progress) as shown, (folder / LOG).open("ab") as log:
        write_atomically(folder / STUDY, study.to_toml().encode())
        with (
            _hired(study, folder, workers, cluster, log) as (hired, threads),
            Crew(hired, threads, shown, study.stalled_minutes) as crew,
        ):
            first, *others = study.seeds
            later = len(others) * _most_work(study, folder)
            tuning = [
                group for t in study.tuning() for group in _groups(study, folder, t, study.targets)
            ]
            references = [[_reference(study, folder, seed)] for seed in study.seeds]
            crew.run("references", references, later=work_of(tuning) + later)
            if (reference_folder(folder, first) / REFERENCE).is_file():  # else nothing can be tuned
                crew.run("tuning", tuning, later=later)
                crew.run("seeds", list(_others(study, folder, others)))
    return Results.read(folder, study)


@contextmanager
def _hired(
    study: Study, folder: Path, count: int | None, cluster: RayCluster | None, log: IO[bytes]
) -> Iterator[tuple[Sequence[Worker], int]]:
    """The workers, and the threads that each may use."""
    if cluster is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        local = [LocalWorker(log.fileno()) for _ in range(count or 1)]
        yield local, max(1, (cores or 1) // len(local))
        return
    with cluster.connected(folder, sends_code=_needs_current_folder(study)):
        room = cluster.room()
        if room == 0:
            lacking = (
                f"no node of the Ray cluster {cluster.address!r} has room for a cell: {cluster}"
            )
            if count is None:
                raise InputError(f"{lacking}; ask for less, or name workers for nodes to come")
            warn(f"{lacking}; cells wait until one has")
        yield [RayWorker(cluster, log) for _ in range(count or room)], int(cluster.cpus)


def _needs_current_folder(study: Study) -> bool:
    """Whether cells name code that is not built in, or a file by a path that is relative."""
    trainings = {training.method: training for training in study.tuning()}.values()
    for training in trainings:
        recipe = study.cell_recipe(Cell(training, study.targets[0]))
        options = recipe.data.options.values() if recipe.data is not None else ()
        paths = [Path(option) for option in options if isinstance(option, str)]
        if any(code_in(recipe)) or any(x.exists() and not x.is_absolute() for x in paths):
            return True
    return False


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
            with importing(False):  # whatever it names: what it says is compared, nothing is run
                before = Recipe.read(cell / RECIPE)
        except InputError as error:
            if run.finished is None and not run.metrics:
                continue  # half written, so nothing was run by it
            raise InputError(
                f"nobody can tell by which recipe {cell} was run: {error}; name another folder, or "
                "move that cell away"
            ) from None
        if _essence(before, recipe).to_table() != _essence(recipe, recipe).to_table():
            raise InputError(
                f"{cell} was run by another recipe than this study's; name another folder, or "
                "move that cell away"
            )


def _essence(recipe: Recipe, of_study: Recipe) -> Recipe:
    """The recipe without what depends on where and how a cell was run.

    Files are left out where the study does not name them: then they are other cells'.
    """
    changes: dict[str, Any] = {"threads": None, "checkpoint_seconds": of_study.checkpoint_seconds}
    if of_study.precision == "auto":
        changes["precision"] = "auto"
    if recipe.name != f"reference-seed{recipe.seed}":
        changes["reference"] = recipe.reference.model_copy(update={"file": None})
    if of_study.train.file is None:
        changes["train"] = recipe.train.model_copy(update={"file": None})
    return recipe.model_copy(update=changes)


def _reference(study: Study, folder: Path, seed: int) -> Job:
    recipe = study.reference_recipe(seed)
    return Job(reference_folder(folder, seed), lambda: recipe, recipe.reference.length)


def _others(study: Study, folder: Path, seeds: Sequence[int]) -> Iterator[list[Job]]:
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
                yield from _groups(study, folder, training, chosen_for)


def _most_work(study: Study, folder: Path) -> int:
    """Epochs that a further seed takes at most: every target may have chosen another strength."""
    total = 0
    for name, method in study.methods.items():
        strengths = method.strengths or (None,)
        jobs = list(_jobs(study, folder, Training(name, strengths[0], 0), study.targets))
        trains = jobs[0].work - jobs[-1].work  # the others start from what the first one trained
        total += work_of([jobs]) + trains * (min(len(strengths), len(jobs)) - 1)
    return total


def _groups(
    study: Study, folder: Path, training: Training, targets: Iterable[Target]
) -> Iterator[list[Job]]:
    """The cells of one training, one after another; side by side where they share none of it."""
    jobs = list(_jobs(study, folder, training, targets))
    shares = study.cell_recipe(Cell(training, study.targets[0])).prune.gradual is None
    yield from [jobs] if shares else ([job] for job in jobs)


def _jobs(
    study: Study, folder: Path, training: Training, targets: Iterable[Target]
) -> Iterator[Job]:
    """The cells of one training: the first one trains, the others start from what it trained."""
    for number, target in enumerate(targets):
        cell = Cell(training, target)
        recipe = study.cell_recipe(cell)
        gradual = recipe.prune.gradual is not None
        trains = number == 0 or gradual
        work = recipe.finetune.length * recipe.prune.rounds + (recipe.train.length if trains else 0)

        def ready(cell: Cell = cell, recipe: Recipe = recipe) -> Recipe:
            return _ready(study, folder, cell, recipe)

        yield Job(cell_folder(folder, cell), ready, work)


def _ready(study: Study, folder: Path, cell: Cell, recipe: Recipe) -> Recipe:
    """The recipe with the files it starts from: the seed's reference, and a shared training."""
    reference = reference_folder(folder, cell.training.seed) / REFERENCE
    if not reference.is_file():
        raise InputError(
            f"the reference of seed {cell.training.seed} failed, see {reference.parent}"
        )
    require_origin(reference, f"reference-seed{cell.training.seed}", recipe)
    dense = recipe.reference.model_copy(update={"file": reference})
    train = recipe.train
    if recipe.prune.gradual is None:
        siblings = (cell_folder(folder, Cell(cell.training, t)) / TRAINED for t in study.targets)
        shared = next((file for file in siblings if file.is_file()), None)
        if shared is not None and shared.parent != cell_folder(folder, cell):
            require_origin(shared, shared.parent.name, recipe)
            train = train.model_copy(update={"file": shared})
    return recipe.model_copy(update={"reference": dense, "train": train})
