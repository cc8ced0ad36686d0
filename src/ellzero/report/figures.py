"""The figures of a run that tables and pictures show, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ellzero.record import EpochMetrics, Evaluations
from ellzero.run_folder import RunFolder
from ellzero.study.results import Spread

NONE = "–"
"""What stands where there is no figure."""


FIGURES = ("nonzeros", "nonzero_ratio", "parameter_ratio", "living_nonzeros", "inputs_left")
FIGURES += ("file_ratio", "result", "reference", "drop", "before", "after", "epochs", "seconds")

RunFigures = Mapping[str, float | None]
"""What a run came to, by the name of the figure; None where the run has not come so far."""


@dataclass(frozen=True)
class Quality:
    """What networks are judged by: wrong answers in percent, or else the score as it is."""

    accuracy: bool
    """Whether the score is an accuracy, as far as the records tell."""
    part: str
    """The part of the data that results are reported on: `test` if there is one."""

    @classmethod
    def of(cls, runs: Iterable[RunFolder]) -> Quality:
        """What all of these runs can be measured by, as far as they are done."""
        done = [run.finished for run in runs if run.finished]
        tested = all(record.compressed.test is not None for record in done)
        accuracy = all(record.scores_accuracy for record in done)
        return cls(accuracy and bool(done), "test" if tested else "validation")

    @property
    def noun(self) -> str:
        """`error` or `score`."""
        return "error" if self.accuracy else "score"

    @property
    def better(self) -> str:
        """Which way is better."""
        return "lower" if self.accuracy else "higher"

    def label(self, part: str | None = None) -> str:
        """For axes and headings: `test error, %`."""
        return f"{part or self.part} {self.noun}" + (", %" if self.accuracy else "")

    def result(self, evaluations: Evaluations) -> float | None:
        """The figure of a network, on the part that results are reported on."""
        evaluation = evaluations.test if self.part == "test" else evaluations.validation
        return None if evaluation is None else self.value(evaluation.score)

    def value(self, score: float | None) -> float | None:
        """The figure of a score."""
        return 100 * (1 - score) if self.accuracy and score is not None else score

    def text(self, value: float | None) -> str:
        """The figure for people."""
        if value is None:
            return NONE
        return f"{value:.2f}" if self.accuracy else f"{value:.4g}"

    def with_unit(self, value: float | None) -> str:
        """The figure for people, in a sentence."""
        return self.text(value) + (" %" if self.accuracy and value is not None else "")

    def drop(self, compressed: float | None, reference: float | None) -> float | None:
        """By how much the compressed network is worse than the reference."""
        if compressed is None or reference is None:
            return None
        return compressed - reference if self.accuracy else reference - compressed


def figures(run: RunFolder, quality: Quality) -> RunFigures:
    """What a run came to."""
    epochs = sum(1 for metrics in run.metrics if metrics.train_loss is not None)
    record = run.finished
    if record is None:
        before = quality.value(_score_as_pruned(run.metrics, None))
        return {**dict.fromkeys(FIGURES), "before": before, "epochs": epochs}
    small, dense = quality.result(record.compressed), quality.result(record.reference)
    return {
        "nonzeros": record.nonzeros,
        "nonzero_ratio": record.nonzero_ratio,
        "parameter_ratio": record.parameter_ratio,
        "living_nonzeros": record.living_nonzeros,
        "inputs_left": None if record.inputs_left is None else len(record.inputs_left),
        "file_ratio": record.file_ratio,
        "result": small,
        "reference": dense,
        "drop": quality.drop(small, dense),
        "before": quality.value(_score_as_pruned(run.metrics, record.nonzeros)),
        "after": quality.value(record.compressed.validation.score),
        "epochs": epochs,
        "seconds": record.seconds,
    }


def _score_as_pruned(metrics: Sequence[EpochMetrics], nonzeros: int | None) -> float | None:
    """The validation score of the chosen network as pruning left it, before its fine-tuning."""
    pruned = [m for m in metrics if m.stage == "finetune" and m.epoch == 0]
    # under a budget, the last rounds may have gone too far
    same = [m for m in pruned if m.nonzeros == nonzeros] or pruned
    return same[-1].validation_score if same else None


def spreads(runs: Sequence[RunFigures]) -> dict[str, Spread | None]:
    """Median and range of each figure over some runs; nothing where there are none."""
    return {name: Spread.of(run[name] for run in runs) for name in FIGURES} if runs else {}


def number(value: float | None) -> str:
    """A figure of any size in about three digits."""
    if value is None:
        return NONE
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def ratio(value: float | None) -> str:
    """A compression ratio: `68.0x`."""
    return NONE if value is None else f"{value:,.1f}x"


def strength(value: float | None, at_edge: bool = False) -> str:
    """A strength, with a mark where it is the lowest or highest that was tried."""
    return NONE if value is None else f"{value:g}" + (" *" if at_edge else "")


def duration(seconds: float | None) -> str:
    """Seconds for people: `5.2 s`, `12 min`, `1.4 h`."""
    if seconds is None:
        return NONE
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def ranged(spread: Spread | None, text: Any) -> str:
    """Median and range: `1.59 (1.50 to 1.66)`; the median alone where there is no range."""
    if spread is None:
        return NONE
    if text(spread.low) == text(spread.high):
        return text(spread.median)
    return f"{text(spread.median)} ({text(spread.low)} to {text(spread.high)})"
