"""The progress of a run: one bar over all its steps, or lines where there is no terminal."""

from __future__ import annotations

from ellzero.data.data import Data
from ellzero.progress import shown_progress
from ellzero.recipe import Recipe
from ellzero.record import EpochMetrics
from ellzero.training.plan import Step, stage_batches


class Bar:
    """One bar over the whole run, on standard error: stage, score, nonzeros, time left."""

    def __init__(
        self, recipe: Recipe, data: Data, *, has_reference: bool, progress: bool = True
    ) -> None:
        self._recipe, self._data = recipe, data
        self._stages = [
            (stage, 1 if stage != "finetune" else recipe.prune.rounds)
            for stage in ("reference", "train", "finetune")
            if not (stage == "reference" and has_reference)
            and not (stage == "train" and recipe.train.file is not None)
        ]
        self._bar = shown_progress(shown=progress)
        self._total = sum(self._batches(stage) * times for stage, times in self._stages)
        self._task = self._bar.add_task("starting", total=self._total, note="")
        self._label = ""

    def _batches(self, stage: str) -> int:
        return stage_batches(getattr(self._recipe, stage), self._data)

    def begin(self, step: Step, epoch: int) -> None:
        """Name the step, and move the bar to where it stands."""
        before = epoch * self._data.train.batch_count(step.table(self._recipe).batch_size)
        for stage, times in self._stages:
            if stage == step.stage:
                before += self._batches(stage) * (max(step.round, 1) - 1)
                break
            before += self._batches(stage) * times
        self._label = step.label
        self._epochs = step.epochs
        self._bar.update(self._task, completed=before, description=step.label)

    def tick(self) -> None:
        """Move on by a batch."""
        self._bar.advance(self._task)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Show where the run stands."""
        self._bar.update(
            self._task,
            description=f"{self._label} {metrics.epoch}/{self._epochs}",
            note=f"score {metrics.validation_score:.4f}, {metrics.nonzeros:,} nonzeros",
        )

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
