"""The figures of a run that tables and pictures show, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ellzero.study.results import Found, Results, Row, Spread

NONE = "–"
"""What stands where there is no figure."""


def entry(record: Mapping[str, Any], *path: str) -> Any:
    """An entry of a record; None where the run has not come so far."""
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True)
class Quality:
    """What networks are judged by: wrong answers in percent, or else the score as it is."""

    accuracy: bool
    """Whether the score is an accuracy, as far as the records tell."""
    part: str
    """The part of the data that results are reported on: `test` if there is one."""

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Quality:
        """What all of these records can be measured by."""
        done = [record for record in records if record.get("status") == "done"]
        tested = all(entry(record, "compressed", "test") is not None for record in done)
        # of a run without test data the record does not say what its score is
        accuracy = all(record.get("test_error_percent") is not None for record in done)
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


def figures(found: Found, quality: Quality) -> dict[str, Any]:
    """What a run came to, flat: a figure is None where the run has not come so far."""
    record, metrics = found.record, found.metrics()
    after = quality.value(entry(record, "compressed", "validation", "score"))
    inputs = record.get("inputs_left")
    small = quality.value(entry(record, "compressed", quality.part, "score"))
    dense = quality.value(entry(record, "reference", quality.part, "score"))
    return {
        "nonzeros": record.get("nonzeros"),
        "nonzero_ratio": record.get("nonzero_ratio"),
        "parameter_ratio": record.get("parameter_ratio"),
        "living_nonzeros": record.get("living_nonzeros"),
        "inputs_left": None if inputs is None else len(inputs),
        "file_ratio": record.get("file_ratio"),
        "result": small,
        "reference": dense,
        "drop": quality.drop(small, dense),
        "before": quality.value(_score_as_pruned(metrics, record.get("nonzeros"))),
        "after": after,
        "epochs": sum(1 for row in metrics if row.get("train_loss") is not None),
        "seconds": record.get("seconds"),
    }


def _score_as_pruned(metrics: list[dict[str, Any]], nonzeros: int | None) -> float | None:
    """The validation score of the chosen network as pruning left it, before its fine-tuning."""
    pruned = [row for row in metrics if row["stage"] == "finetune" and row["epoch"] == 0]
    # under a budget, the last rounds may have gone too far
    same = [row for row in pruned if row["nonzeros"] == nonzeros] or pruned
    return same[-1]["validation_score"] if same else None


def spreads(row: Row, quality: Quality) -> dict[str, Spread | None]:
    """Median and range over the seeds of each figure of a row of a study."""
    found = [figures(cell, quality) for cell in row.cells]
    return {key: Spread.of(f[key] for f in found) for key in found[0]} if found else {}


def study_quality(results: Results) -> Quality:
    """What the networks of a study are judged by."""
    return Quality.of(found.record for found in (*results.found.values(), *results.references))


def reference_spread(results: Results, quality: Quality) -> Spread | None:
    """What the dense references reached, over the seeds."""
    path = ("reference", quality.part, "score")
    found = results.references if any(f.done for f in results.references) else ()
    by_seed = {f.folder: entry(f.record, *path) for f in found if f.done}
    if not by_seed:  # cells name their reference too
        by_seed = {f.folder: entry(f.record, *path) for f in results.found.values() if f.done}
    return Spread.of(quality.value(score) for score in by_seed.values())


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
