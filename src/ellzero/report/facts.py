"""The facts of a study that tables and pictures show, each of them computed once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from ellzero.report.figures import Quality, RunFigures, figures, spreads
from ellzero.study.results import Effort, Results, Row, Spread
from ellzero.study.statistics import Pair, pairs
from ellzero.study.study import Study, Target


class StudyFacts:
    """What is to be said of a study, from results that were read once."""

    def __init__(self, results: Results) -> None:
        self.results = results

    @property
    def study(self) -> Study:
        """The study itself."""
        return self.results.study

    @cached_property
    def quality(self) -> Quality:
        """What its networks are judged by."""
        return Quality.of(self.results.runs)

    @cached_property
    def figures(self) -> Mapping[Path, RunFigures]:
        """The figures of every run, by its folder."""
        return {run.folder: figures(run, self.quality) for run in self.results.runs}

    @cached_property
    def rows(self) -> list[Row]:
        """A row per target and method whose strength has been chosen."""
        return self.results.rows()

    def rows_at(self, target: Target) -> list[Row]:
        """The rows of one target."""
        return [row for row in self.rows if row.target == target]

    def ranked(self, target: Target) -> list[Row]:
        """The rows of one target, best on validation data first."""
        return sorted(self.rows_at(target), key=lambda row: row.merit, reverse=True)

    @cached_property
    def spreads(self) -> Mapping[Row, Mapping[str, Spread | None]]:
        """Median and range over the seeds of each figure, of each row; none without a run."""
        return {row: spreads([self.figures[c.folder] for c in row.cells]) for row in self.rows}

    @cached_property
    def dense(self) -> Spread | None:
        """What the dense references reached, over the seeds."""
        # cells name their reference too
        for runs in (self.results.references, tuple(self.results.cells.values())):
            if any(run.finished for run in runs):
                return Spread.of(self.figures[run.folder]["reference"] for run in runs)
        return None

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each method beside the best one of its target."""
        return pairs(self.rows)

    @cached_property
    def efforts(self) -> list[Effort]:
        """What each method has cost."""
        return self.results.efforts()

    @cached_property
    def warnings(self) -> list[tuple[str, int]]:
        """What the runs warn of, and how many of them do."""
        return self.results.warnings()
