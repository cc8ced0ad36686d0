"""Results of a study: read from the records of its cells, chosen on validation data, tabulated."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from ellzero.errors import InputError
from ellzero.record import METRICS, RECORD, read_record
from ellzero.study.study import Cell, Study, Target, Training

STUDY = "study.toml"
CELLS = "cells"

FIGURE = re.compile(
    r"(no example of class.*|for every input: .*)"  # what follows is named by its number
    r"|(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w|\.\w)"
)
"""A figure in a sentence; a number within a name, such as `0.weight`, is none."""

FAILED = ("failed", "missed", "unreadable")

FIGURES = {"compressed", "reference", "nonzeros", "seconds"}
"""What the record of a run that is done tells at least."""

Status = Literal["missing", "running", "interrupted", "failed", "missed", "unreadable", "done"]
"""`missed`: no network within the budget was found."""


@dataclass(frozen=True)
class Found:
    """What a folder holds of a run: its record if it can be read, or else why it cannot."""

    folder: Path
    status: Status
    record: Mapping[str, Any]
    error: str | None = None

    @classmethod
    def at(cls, folder: Path) -> Found:
        """What this folder holds."""
        if not (folder / RECORD).exists():
            return cls(folder, "missing", {})
        try:
            record = read_record(folder)
        except InputError as error:
            return cls(folder, "unreadable", {}, f"{error} (without that folder it is run anew)")
        if record["status"] == "done" and not record.keys() >= FIGURES:
            missing = ", ".join(sorted(FIGURES - record.keys()))
            return cls(folder, "unreadable", {}, f"{folder / RECORD} is not whole: no {missing} "
                       "(without that folder it is run anew)")  # fmt: skip
        return cls(folder, record["status"], record, record.get("error"))

    @property
    def done(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "done"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the run's record warns of; nothing in records from before there were warnings."""
        return tuple(map(str, self.record.get("warnings", ())))

    def metrics(self) -> list[dict[str, Any]]:
        """The run's metrics, a row per epoch so far; none where the file cannot be read."""
        try:
            lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return []


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the seeds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of the values that are there; None where there are none."""
        found = [value for value in values if value is not None]
        return cls(median(found), min(found), max(found)) if found else None


@dataclass(frozen=True)
class Row:
    """A method at a target: the strength that was chosen for it, and what it reached."""

    method: str
    label: str
    target: Target
    strength: float | None
    at_edge: bool
    """Whether the chosen strength is the lowest or highest of those tried."""
    cells: tuple[Found, ...]
    """The runs with that strength, one a seed, that are done."""
    seeds: int
    """How many there should be."""

    @property
    def merit(self) -> float:
        """By what methods are ranked at a target: validation data only."""
        if "budget" in self.target.prune:
            nonzeros = self.spread("nonzeros")
            return -nonzeros.median if nonzeros else -math.inf
        score = self.spread("compressed", "validation", "score")
        return score.median if score else -math.inf

    def spread(self, *path: str) -> Spread | None:
        """Median and range over the seeds of an entry of the records."""
        return Spread.of(_entry(cell.record, path) for cell in self.cells)


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
    """A study as far as it has come."""

    study: Study
    folder: Path
    found: Mapping[str, Found]
    """What there is of every cell that the study may run, by name."""
    references: tuple[Found, ...]

    @classmethod
    def read(cls, folder: Path, study: Study | None = None) -> Results:
        """The results in the folder of a study.

        Raises:
            InputError: the folder holds no study.
        """
        if study is None:
            if not (folder / STUDY).is_file():
                raise InputError(f"{folder} holds no study: there is no {STUDY} in it")
            study = Study.read(folder / STUDY)
        found = {cell.name: Found.at(cell_folder(folder, cell)) for cell in study.cells()}
        references = tuple(Found.at(reference_folder(folder, seed)) for seed in study.seeds)
        return cls(study, folder, found, references)

    def chosen(self, method: str, target: Target) -> Training | None:
        """The training that did best for a target on the first seed's validation data.

        None as long as one of them is still to come; those that failed do not count.
        """
        tuning = [training for training in self.study.tuning() if training.method == method]
        found = {training: self.found[Cell(training, target).name] for training in tuning}
        if any(f.status in ("missing", "running", "interrupted") for f in found.values()):
            return None
        done = [training for training in tuning if found[training].done]
        return max(done, key=lambda t: _merit(found[t].record, target), default=None)

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
            self.found[Cell(Training(method, chosen.strength, seed), target).name]
            for seed in self.study.seeds
        ]
        strengths = sorted(self.study.methods[method].strengths)
        return Row(
            method,
            self.study.label(method),
            target,
            chosen.strength,
            len(strengths) > 1 and chosen.strength in (strengths[0], strengths[-1]),
            tuple(cell for cell in cells if cell.done),
            len(cells),
        )

    def efforts(self) -> list[Effort]:
        """What each method has cost so far, tuning included."""
        efforts = []
        for name, method in self.study.methods.items():
            cells = [c for c in self.study.cells() if c.training.method == name]
            every = [self.found[cell.name] for cell in cells]
            metrics = [found.metrics() for found in every]  # those of failed cells were spent too
            trained = [[row for row in m if row["train_loss"] is not None] for m in metrics]
            epochs = sum(map(len, trained))
            # of the cells that share a training only the first one has its epochs
            trainings = sum(any(row["stage"] == "train" for row in rows) for rows in trained)
            done = sum(found.done for found in every)
            seconds = sum(
                found.record["seconds"] if found.done else sum(r.get("seconds", 0) for r in rows)
                for found, rows in zip(every, metrics, strict=True)
            )
            strengths = len(method.strengths)
            label = self.study.label(name)
            efforts.append(Effort(name, label, strengths, trainings, done, epochs, seconds))
        return efforts

    def warnings(self) -> list[tuple[str, int]]:
        """What the runs warn of, and how many of them do.

        Sentences that differ in their figures alone are one, told in the words of the first run.
        """
        first: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for found in (*self.references, *self.found.values()):
            alike = {FIGURE.sub(lambda m: m[1] or "0", text): text for text in found.warnings}
            first = {**alike, **first}
            counts.update(alike.keys())
        return [(first[key], count) for key, count in counts.most_common()]

    def failures(self) -> list[Found]:
        """Cells and references that failed or missed the budget, or have no record to be read."""
        every = (*self.references, *self.found.values())
        return [found for found in every if found.status in FAILED]


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's run lies within the study's folder."""
    return folder / CELLS / cell.name


def reference_folder(folder: Path, seed: int) -> Path:
    """Where the run lies that trains a seed's reference."""
    return folder / CELLS / f"reference-seed{seed}"


def _merit(record: Mapping[str, Any], target: Target) -> tuple[float, ...]:
    """By what a strength is chosen: the validation score; under a budget, first of all the size."""
    found = record["compressed"]["validation"]
    quality = (found["score"], -found["loss"])
    return (-record["nonzeros"], *quality) if "budget" in target.prune else quality


def _entry(record: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
