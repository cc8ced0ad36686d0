"""What a page says of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ellzero.documents import MOST_TOML_BYTES
from ellzero.errors import is_number
from ellzero.record import FinishedRecord
from ellzero.report import run_pictures
from ellzero.report.figures import NONE, Quality, duration, number, ratio, strength
from ellzero.report.section import Section, there
from ellzero.report.tables import Text
from ellzero.run_folder import RECIPE, RunFolder
from ellzero.study.results import FAILED
from ellzero.verdict import Verdict, verdict

LISTED = 20
"""So many inputs are listed one by one."""


def run_section(run: RunFolder, name: str) -> Section:
    """All there is to say of a run, as far as it has come; `name` is unique on the page."""
    record, quality = run.finished, Quality.of([run])
    found = None if record is None else verdict(record, run.folder)
    title = _recipe(run).get("name") or run.folder.name
    section = Section("run", str(title), run.status)
    if record is not None and found is not None:
        section.summary = [found.sentence, _outcome(record, quality)]
    elif run.status in FAILED:
        section.failures = [(run.folder.name, run.status, run.error or "")]
    else:
        section.warnings.append(
            f"The run is {run.status}: its record has no results yet, only metrics."
        )
    if record is not None and record.note:
        section.warnings.append(record.note)
    section.warnings += run.warnings
    section.facts = _run_facts(run)
    section.first = there(
        run_pictures.first_layer(run, name=name),
        run_pictures.layer_bars(run, name=name),
        run_pictures.course(run, quality, name=name),
        run_pictures.magnitudes(run, name=name),
    )
    if record is not None and found is not None:
        tables = (*_searched(found), _layers(record), _sizes(record))
        section.tables = [table for table in tables if table.rows]
    if (run.folder / RECIPE).is_file():
        with (run.folder / RECIPE).open("rb") as file:
            recipe = file.read(MOST_TOML_BYTES)
        section.source = ("The recipe", recipe.decode(errors="replace"))
    return section


def _recipe(run: RunFolder) -> Mapping[str, Any]:
    return run.record.recipe if run.record is not None else {}


def _entry(table: Any, *keys: str) -> Any:
    """What stands under the keys, one table in another; None where there is no such table."""
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table


def _outcome(record: FinishedRecord, quality: Quality) -> str:
    text = f"{number(record.nonzero_ratio)} times fewer weights "
    text += f"({record.nonzeros:,} of {record.weights:,}), "
    if record.parameter_ratio is not None:
        text += f"{number(record.parameter_ratio)} times fewer parameters in all, "
    small, dense = quality.result(record.compressed), quality.result(record.reference)
    text += f"{quality.part} {quality.noun} {quality.with_unit(small)}; the dense reference has "
    return f"{text}{quality.with_unit(dense)}."


def _run_facts(run: RunFolder) -> list[tuple[str, str]]:
    begun, record, recipe = run.record, run.finished, _recipe(run)
    epochs = sum(1 for metrics in run.metrics if metrics.train_loss is not None)
    facts = [
        ("network", _entry(recipe, "model", "name")),
        ("data", _entry(recipe, "data", "name")),
        ("seed", recipe.get("seed")),
        ("penalty", _terms(_entry(recipe, "train", "penalty"))),
        ("gates", _terms(_entry(recipe, "train", "gates"))),
        ("epochs", f"{epochs:,}" if epochs else None),
        ("time", duration(record.seconds) if record and record.seconds else None),
        ("inputs left", record and _inputs_left(record)),
        ("living nonzeros", record and record.living_note),
        ("started", begun and begun.started),
        ("torch", begun and begun.versions.get("torch")),
    ]
    if record is None:
        last = run.metrics[-1] if run.metrics else None
        facts.append(("so far", f"{last.stage}, epoch {last.epoch}" if last else NONE))
    return [(term, str(text)) for term, text in facts if text is not None]


def _terms(tables: Any) -> str | None:
    """A penalty's table in words: `l0 3e-05, l2 1e-05`."""
    if not isinstance(tables, Mapping) or not tables:
        return None
    terms = []
    for name, entry in tables.items():
        for table in entry if isinstance(entry, list) else [entry]:
            form = _entry(table, "form") or "gradient"
            suffix = "" if form == "gradient" else f" ({form})"
            value = _entry(table, "strength")
            text = strength(value) if is_number(value) else NONE
            terms.append(f"{name} {text}{suffix}")
    return ", ".join(terms)


def _searched(found: Verdict) -> tuple[Text, ...]:
    """What the budget allowed, and what each round came to; nothing without a budget."""
    rounds = tuple(
        (str(r.number), f"{r.nonzeros:,}", ratio(r.ratio), r.lost, r.result) for r in found.rounds
    )
    headings = ("round", "nonzeros", "nonzero ratio", "lost", "result")
    note = "Lost on validation data after fine-tuning, against the reference."
    return (
        Text("Budget", ("", "on validation data"), found.budget),
        Text("Rounds", headings, rounds, (note,)),
    )


def _layers(record: FinishedRecord) -> Text:
    rows = tuple(
        (
            layer.name,
            layer.kind,
            " x ".join(map(str, layer.shape)),
            f"{layer.weights:,}",
            f"{layer.nonzeros:,}",
            f"{100 * layer.density:.2f} %",
        )
        for layer in record.layers
    )
    return Text("Layers", ("layer", "kind", "shape", "weights", "nonzeros", "density"), rows)


def _sizes(record: FinishedRecord) -> Text:
    if record.file_bytes is None:
        return Text("Sizes", (), ())
    rows = [
        ("nonzero weights", f"{record.weights:,}", f"{record.nonzeros:,}",
         ratio(record.nonzero_ratio)),
        ("all parameters", f"{record.parameters:,}", f"{record.parameters_left:,}",
         ratio(record.parameter_ratio)),
    ]  # fmt: skip
    if record.living_nonzeros is not None:
        rows.append(("living nonzeros", NONE, f"{record.living_nonzeros:,}", NONE))
    if record.inputs is not None and record.inputs_left is not None:
        rows.append(("inputs", f"{record.inputs:,}", f"{len(record.inputs_left):,}", NONE))
    rows.append((f"bytes, {record.file or 'file'}", f"{record.float32_bytes:,}",
                 f"{record.file_bytes:,}", ratio(record.file_ratio)))  # fmt: skip
    return Text("Sizes", ("", "dense, float32", "compressed", "ratio"), tuple(rows))


def _inputs_left(record: FinishedRecord) -> str | None:
    """The inputs that are left, and which ones if they are few."""
    left = record.inputs_left
    if left is None or record.inputs is None:
        return None
    which = f": {', '.join(map(str, left))}" if 0 < len(left) <= LISTED else ""
    return f"{len(left):,} of {record.inputs:,}{which}"
