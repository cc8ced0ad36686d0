"""Tables of a study: CSV for programs, Markdown for people, and the page shows the same rows."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ellzero.files import write_atomically
from ellzero.report.facts import StudyFacts
from ellzero.report.figures import NONE, Quality, duration, number, ranged, ratio, strength
from ellzero.study.results import Row, Spread
from ellzero.study.statistics import Pair
from ellzero.study.study import Target
from ellzero.terminal import plain

FORMULA = ("=", "+", "-", "@")
"""With what a formula begins in a cell of a CSV file."""

EDGE = (
    "* the chosen strength is the lowest or highest of those tried: a better one may lie beyond it."
)


@dataclass(frozen=True)
class Text:
    """A table for people: a heading per column, and rows of text."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table in Markdown, with everything escaped that means something there."""
        lines = [self.headings, ("---",) * len(self.headings), *self.rows]
        table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
        notes = "".join(f"\n\n{_escaped(note)}" for note in self.notes)
        return f"## {_escaped(self.title)}\n\n{table}{notes}\n"


def study_texts(facts: StudyFacts) -> list[Text]:
    """The tables of a study for people."""
    return [*comparison_texts(facts), *pairs_texts(facts), efforts_text(facts)]


def write_tables(facts: StudyFacts, folder: Path) -> tuple[Path, ...]:
    """Write all tables of a study; the files' paths."""
    tables = study_texts(facts)
    tables += [warnings_text(facts)] if facts.warnings else []
    failures = tuple((f.folder.name, f.status, f.error or "") for f in facts.results.failures())
    if failures:
        tables.append(Text("Failed", ("cell", "status", "error"), failures))
    contents = {
        "comparison.csv": _csv(comparison(facts)),
        "comparison.md": f"# {_escaped(facts.study.name)}\n\n"
        + "\n".join(table.markdown() for table in tables),
        "cells.csv": _csv(cells(facts)),
        "pairs.csv": _csv(differences(facts)),
        "efforts.csv": _csv(efforts(facts)),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return tuple(folder / name for name in contents)


def cells(facts: StudyFacts) -> list[dict[str, Any]]:
    """A row for every cell that there is anything of, whatever became of it."""
    quality = facts.quality
    unit = f"{quality.noun}_percent" if quality.accuracy else quality.noun
    columns = {"before": f"validation_{unit}_before_finetuning", "after": f"validation_{unit}"}
    columns |= {"result": f"{quality.part}_{unit}", "reference": f"reference_{unit}"}
    rows = []
    for cell in facts.study.cells():
        run = facts.results.cells[cell.name]
        if run.status == "missing":
            continue
        validation = run.finished and run.finished.compressed.validation
        figures = facts.figures[run.folder]
        rows.append(
            {
                "cell": cell.name,
                "method": cell.training.method,
                "strength": cell.training.strength,
                "seed": cell.training.seed,
                "target": cell.target.name,
                "status": run.status,
                "validation_score": validation and validation.score,
                "validation_loss": validation and validation.loss,
                **{columns.get(name, name): figure for name, figure in figures.items()},
                "warnings": len(run.warnings),
                "warning_texts": " | ".join(run.warnings),
                "error": run.error,
            }
        )
    return rows


def comparison(facts: StudyFacts) -> list[dict[str, Any]]:
    """A row per target and method: the chosen strength, and what it reached over the seeds."""
    dense = facts.dense
    return [
        {
            "target": row.target.name,
            "method": row.method,
            "label": row.label,
            "strength": row.strength,
            "at_edge": row.at_edge,
            "seeds_done": len(row.cells),
            "seeds": row.seeds,
            "quality": facts.quality.label(),
            "dense_reference": None if dense is None else dense.median,
            **_flat(facts.spreads[row]),
        }
        for row in facts.rows
    ]


def differences(facts: StudyFacts) -> list[dict[str, Any]]:
    """A row per method and target: what tells it from the best one on validation data."""
    return [
        {
            "target": pair.target.name,
            "best": pair.best.method,
            "method": pair.other.method,
            "difference_points": pair.difference,
            "low": pair.low,
            "high": pair.high,
            "adjusted_p": pair.p,
            "differs": pair.differs,
        }
        for pair in facts.pairs
    ]


def efforts(facts: StudyFacts) -> list[dict[str, Any]]:
    """A row per method: what it cost, its tuning included."""
    keys = ("method", "label", "strengths", "trainings", "cells", "epochs", "seconds")
    return [{key: getattr(effort, key) for key in keys} for effort in facts.efforts]


def comparison_texts(facts: StudyFacts) -> list[Text]:
    """The comparison for people, a table per target with the dense reference in its first row."""
    quality = facts.quality
    drop = "drop, points" if quality.accuracy else "drop"
    headings = ("method", quality.label(), drop, f"validation {quality.noun} before fine-tuning")
    headings += ("and after", "nonzero ratio", "parameter ratio", "strength", "seeds", "time")
    tables = []
    for target in facts.study.targets:
        rows = facts.rows_at(target)
        first = (
            "dense reference",
            ranged(facts.dense, quality.text),
            *[NONE] * 3,
            *["1x"] * 2,
            *[NONE] * 3,
        )
        others = (_row_text(row, facts.spreads[row], quality) for row in rows)
        notes = [
            "Medians over the seeds, with the range from lowest to highest in brackets. The time "
            "is a cell's own: a training that several targets share counts where it was run."
        ]
        notes += [EDGE] if any(row.at_edge for row in rows) else []
        title = f"Comparison: {target.label}"
        tables.append(Text(title, headings, (first, *others), tuple(notes)))
    return tables


def _row_text(row: Row, spreads: Mapping[str, Spread | None], quality: Quality) -> tuple[str, ...]:
    formats = {"result": quality.text, "drop": signed, "before": quality.text}
    formats |= {"after": quality.text, "nonzero_ratio": ratio, "parameter_ratio": ratio}
    texts = [ranged(spreads.get(key), text) for key, text in formats.items()]
    seconds = spreads.get("seconds")
    return (
        row.label,
        *texts,
        strength(row.strength, row.at_edge),
        f"{len(row.cells)} of {row.seeds}",
        duration(None if seconds is None else seconds.median),
    )


def pairs_texts(facts: StudyFacts) -> list[Text]:
    """The paired tests for people, a table per target."""
    headings = ("method", "difference, points", "95 % interval", "adjusted p", "differs")
    tables = []
    for target in facts.study.targets:
        pairs = [pair for pair in facts.pairs if pair.target == target]
        rows = tuple(
            (
                pair.other.label,
                signed(pair.difference),
                f"{signed(pair.low)} to {signed(pair.high)}",
                probability(pair),
                "yes" if pair.differs else "no",
            )
            for pair in pairs
        )
        if pairs:
            best = pairs[0].best.label
            title = f"Paired tests: {target.label}, against {best}"
            note = (
                f"Test error of a method minus that of {best}, which {did_best(target)}, a mean "
                "over the seeds. The interval comes of drawing the test examples again, the same "
                "for both; p is adjusted for the number of methods (Holm)."
            )
            if "budget" in target.prune:
                note += " Under a budget the networks differ in size as well."
            tables.append(Text(title, headings, rows, (note,)))
    return tables


def efforts_text(facts: StudyFacts) -> Text:
    """The effort for people."""
    rows = tuple(
        (
            e.label,
            *map(number, (e.strengths, e.trainings, e.cells, e.epochs)),
            duration(e.seconds),
        )
        for e in facts.efforts
    )
    headings = ("method", "strengths tried", "trainings", "cells", "epochs", "time")
    return Text("Effort", headings, rows, ("Tuning included, and cells that failed.",))


def warnings_text(facts: StudyFacts) -> Text:
    """What the runs warn of, for people."""
    rows = tuple((text, number(count)) for text, count in facts.warnings)
    note = "Of warnings that differ in their numbers alone the first one's; cells.csv has them all."
    return Text("Warnings", ("warning", "runs"), rows, (note,))


def did_best(target: Target) -> str:
    """What the best method of a target did: methods are ranked on validation data."""
    if "budget" in target.prune:
        return "left the fewest weights within the budget"
    return "did best on validation data"


def signed(value: float) -> str:
    """A difference: `+0.12`, `−0.30`."""
    text = f"{value:+.2f}" if abs(value) < 1000 else f"{value:+.3g}"
    return text.replace("-", "−")


def probability(pair: Pair) -> str:
    """An adjusted p-value, to two digits."""
    return "< 0.001" if pair.p < 0.001 else f"{pair.p:.2g}"


def _flat(spreads: Mapping[str, Spread | None]) -> dict[str, float | None]:
    return {
        f"{key}_{end}": None if spread is None else getattr(spread, end)
        for key, spread in spreads.items()
        for end in ("median", "low", "high")
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    columns: Iterable[str] = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    """What a spreadsheet shows as text; what begins so it would take for a formula, and run it.

    Source: OWASP, CSV Injection.
    """
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, within one cell of a table."""
    text = plain(text)
    for character in "\\|*_`[]~":
        text = text.replace(character, f"\\{character}")
    return html.escape(text, quote=False)
