"""Results of a study: read from the records of its cells, chosen on validation data, tabulated."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from ellzero.errors import InputError
from ellzero.record import FinishedRecord
from ellzero.run_folder import RunFolder
from ellzero.study.study import Cell, Study, Target, Training
from ellzero.user_code import importing

STUDY = "study.toml"
CELLS = "cells"

FIGURE = re.compile(
    r"(no example of class.*|for every input: .*)"  # what follows is named by its number
    r"|(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w|\.\w)"
)
"""A figure in a sentence; a number within a name, such as `0.weight`, is none."""

FAILED = ("failed", "missed", "unreadable")


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the seeds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of the values that are there; None where there are none."""
        known = [value for value in values if value is not None]
        return cls(median(known), min(known), max(known)) if known else None


@dataclass(frozen=True, eq=False)
class Row:
    """A method at a target: the strength that was chosen for it, and what it reached."""

    method: str
    label: str
    target: Target
    strength: float | None
    at_edge: bool
    """Whether the chosen strength is the lowest or highest of those tried."""
    cells: tuple[RunFolder, ...]
    """The runs with that strength, one a seed, that are done."""
    seeds: int
    """How many there should be."""

    @property
    def merit(self) -> float:
        """By what methods are ranked at a target: validation data only."""
        if "budget" in self.target.prune:
            nonzeros = self.spread(lambda record: record.nonzeros)
            return -nonzeros.median if nonzeros else -math.inf
        score = self.spread(lambda record: record.compressed.validation.score)
        return score.median if score else -math.inf

    def spread(self, figure: Callable[[FinishedRecord], float | None]) -> Spread | None:
        """Median and range over the seeds of a figure of the records."""
        return Spread.of(figure(cell.finished) for cell in self.cells if cell.finished)


@dataclass(frozen=True)
class Effort:
    """What a method cost: trainings, cells that are done, epochs and seconds of all cells."""

    method: str
    label: str
    strengths: int
    trainings: int
    cells: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Results:
    """A study as far as it has come.

    Example:
        >>> import tempfile, ellzero as ez
        >>> study = ez.Study.parse({"sparsities": [0.9], "methods": {"magnitude": {}}})
        >>> results = ez.Results.read(tempfile.mkdtemp(), study)
        >>> list(results.cells)[0], results.failures()
        ('magnitude-seed0-sparsity-0.9', [])
    """

    study: Study
    folder: Path
    cells: Mapping[str, RunFolder]
    """What there is of every cell that the study may run, by name."""
    references: tuple[RunFolder, ...]

    @classmethod
    def read(cls, folder: str | Path, study: Study | None = None) -> Results:
        """The results in the folder of a study, whose own code is not imported.

        Raises:
            InputError: the folder holds no study.
        """
        folder = Path(folder)
        if study is None:
            if not (folder / STUDY).is_file():
                raise InputError(f"{folder} holds no study: there is no {STUDY} in it")
            with importing(False):
                study = Study.read(folder / STUDY)
        cells = {cell.name: _run_in(cell_folder(folder, cell)) for cell in study.cells()}
        references = tuple(_run_in(reference_folder(folder, seed)) for seed in study.seeds)
        return cls(study, folder, cells, references)

    @property
    def runs(self) -> tuple[RunFolder, ...]:
        """The references and all cells."""
        return (*self.references, *self.cells.values())

    def chosen(self, method: str, target: Target) -> Training | None:
        """The training that did best for a target on the first seed's validation data.

        None as long as one of them is still to come; those that failed do not count, and
        `warnings` names them.
        """
        runs = self._tuned(method, target)
        if any(run.status in ("missing", "running", "interrupted") for run in runs.values()):
            return None
        merits = {t: _merit(run.finished, target) for t, run in runs.items() if run.finished}
        return max(merits, key=lambda training: merits[training], default=None)

    def _tuned(self, method: str, target: Target) -> dict[Training, RunFolder]:
        """The runs that a method's strength is chosen from for a target."""
        tuning = [training for training in self.study.tuning() if training.method == method]
        return {training: self.cells[Cell(training, target).name] for training in tuning}

    def rows(self) -> list[Row]:
        """A row per target and method whose strength has been chosen, in the study's order."""
        return [
            self._row(name, target, chosen)
            for target in self.study.targets
            for name in self.study.methods
            if (chosen := self.chosen(name, target)) is not None
        ]

    def _row(self, method: str, target: Target, chosen: Training) -> Row:
        cells = [
            self.cells[Cell(Training(method, chosen.strength, seed), target).name]
            for seed in self.study.seeds
        ]
        strengths = sorted(self.study.methods[method].strengths)
        return Row(
            method,
            self.study.label(method),
            target,
            chosen.strength,
            len(strengths) > 1 and chosen.strength in (strengths[0], strengths[-1]),
            tuple(cell for cell in cells if cell.finished),
            len(cells),
        )

    def efforts(self) -> list[Effort]:
        """What each method has cost so far, tuning included."""
        efforts = []
        for name, method in self.study.methods.items():
            cells = [c for c in self.study.cells() if c.training.method == name]
            runs = [self.cells[cell.name] for cell in cells]  # those that failed were spent too
            trained = [[m for m in run.metrics if m.train_loss is not None] for run in runs]
            epochs = sum(map(len, trained))
            # of the cells that share a training only the first one has its epochs
            trainings = sum(any(m.stage == "train" for m in metrics) for metrics in trained)
            done = sum(run.finished is not None for run in runs)
            seconds = sum(
                run.finished.seconds if run.finished else sum(m.seconds for m in run.metrics)
                for run in runs
            )
            strengths = len(method.strengths)
            label = self.study.label(name)
            efforts.append(Effort(name, label, strengths, trainings, done, epochs, seconds))
        return efforts

    def warnings(self) -> list[tuple[str, int]]:
        """What there is to warn of, and in how many runs: choices from a part of a grid, then
        what the runs themselves say.

        Sentences of theirs that differ in their figures alone are one, in the first run's words.
        """
        first: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for run in self.runs:
            alike = {FIGURE.sub(lambda m: m[1] or "0", text): text for text in run.warnings}
            first = {**alike, **first}
            counts.update(alike.keys())
        return [*self._doubts(), *((first[key], count) for key, count in counts.most_common())]

    def _doubts(self) -> Iterator[tuple[str, int]]:
        for row in self.rows():
            runs = self._tuned(row.method, row.target).items()
            gaps = [t.strength for t, run in runs if run.status in ("failed", "unreadable")]
            if gaps:
                listed = ", ".join(f"{strength:g}" for strength in gaps if strength is not None)
                yield (
                    f"{row.label} at {row.target.label}: strength {row.strength:g} was chosen from "
                    f"a part of the grid, for on the first seed {listed} failed",
                    len(gaps),
                )

    def unfinished(self) -> list[RunFolder]:
        """Cells and references that were begun and have not come to an end."""
        return [run for run in self.runs if run.status in ("running", "interrupted")]

    def failures(self) -> list[RunFolder]:
        """Cells and references that failed or missed the budget, or have no record to be read."""
        return [run for run in self.runs if run.status in FAILED]


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's run lies within the study's folder."""
    return folder / CELLS / cell.name


def reference_folder(folder: Path, seed: int) -> Path:
    """Where the run lies that trains a seed's reference."""
    return folder / CELLS / f"reference-seed{seed}"


def _run_in(folder: Path) -> RunFolder:
    run = RunFolder.at(folder)
    if run.status != "unreadable":
        return run
    return replace(run, error=f"{run.error} (without that folder it is run anew)")


def _merit(record: FinishedRecord, target: Target) -> tuple[float, ...]:
    """By what a strength is chosen: the validation score; under a budget, first of all the size."""
    validation = record.compressed.validation
    quality = (validation.score, -validation.loss)
    return (-record.nonzeros, *quality) if "budget" in target.prune else quality
