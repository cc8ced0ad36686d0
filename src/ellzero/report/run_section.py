"""What a page says of a run, and of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ellzero.record import RECIPE
from ellzero.report import run_pictures
from ellzero.report.figures import (
    NONE,
    Quality,
    duration,
    entry,
    figures,
    number,
    ratio,
    strength,
)
from ellzero.report.pareto import Point, runs_pareto
from ellzero.report.section import Key, Section, there
from ellzero.report.style import looks, marker
from ellzero.report.tables import Text, signed
from ellzero.study.results import Found, Spread

LISTED = 20
"""So many inputs are listed one by one."""


def run_section(found: Found, name: str) -> Section:
    """All there is to say of a run, as far as it has come; `name` is unique on the page."""
    record = found.record
    quality = Quality.of([record])
    title = entry(record, "recipe", "name") or found.folder.name
    section = Section("run", str(title), found.status)
    if found.status == "done":
        section.summary = [_outcome(found, quality)]
    elif found.status in ("failed", "missed"):
        section.failures = [(found.folder.name, found.status, found.error or "")]
    else:
        section.warnings.append(
            f"The run is {found.status}: its record has no results yet, only metrics."
        )
    if record.get("note"):
        section.warnings.append(str(record["note"]))
    section.warnings += found.warnings
    section.facts = _run_facts(found, quality)
    section.first = there(
        run_pictures.first_layer(found, name=name),
        run_pictures.layer_bars(found, name=name),
        run_pictures.course(found, quality, name=name),
        run_pictures.magnitudes(found, name=name),
    )
    section.tables = [table for table in (_layers(record), _sizes(record)) if table.rows]
    if (found.folder / RECIPE).is_file():
        recipe = (found.folder / RECIPE).read_text(encoding="utf-8", errors="replace")
        section.source = ("The recipe", recipe)
    return section


def _outcome(found: Found, quality: Quality) -> str:
    told = figures(found, quality)
    kept, weights = found.record.get("nonzeros", 0), found.record.get("weights", 0)
    text = f"{number(told['nonzero_ratio'])} times fewer weights ({kept:,} of {weights:,}), "
    if told["parameter_ratio"] is not None:
        text += f"{number(told['parameter_ratio'])} times fewer parameters in all, "
    text += f"{quality.part} {quality.noun} "
    text += f"{quality.with_unit(told['result'])}; the dense reference has "
    return f"{text}{quality.with_unit(told['reference'])}."


def _run_facts(found: Found, quality: Quality) -> list[tuple[str, str]]:
    record, recipe = found.record, found.record.get("recipe", {})
    told = figures(found, quality)
    facts = [
        ("network", entry(recipe, "model", "name")),
        ("data", entry(recipe, "data", "name")),
        ("seed", entry(recipe, "seed")),
        ("penalty", _terms(entry(recipe, "train", "penalty"))),
        ("gates", _terms(entry(recipe, "train", "gates"))),
        ("epochs", f"{told['epochs']:,}" if told["epochs"] else None),
        ("time", duration(record.get("seconds")) if record.get("seconds") else None),
        ("inputs left", _inputs_left(record)),
        ("living nonzeros", record.get("living_note")),
        ("started", record.get("started")),
        ("torch", entry(record, "versions", "torch")),
    ]
    if not record.get("weights"):
        rows = found.metrics()
        facts.append(("so far", f"{rows[-1]['stage']}, epoch {rows[-1]['epoch']}" if rows else "–"))
    return [(term, str(text)) for term, text in facts if text is not None]


def _terms(tables: Any) -> str | None:
    """A penalty's table in words: `l0 3e-05, l2 1e-05`."""
    if not tables:
        return None
    terms = []
    for name, found in tables.items():
        for table in found if isinstance(found, list) else [found]:
            form = table.get("form", "gradient")
            suffix = "" if form == "gradient" else f" ({form})"
            terms.append(f"{name} {strength(table.get('strength'))}{suffix}")
    return ", ".join(terms)


def _layers(record: Any) -> Text:
    rows = [
        (
            layer["name"],
            layer["kind"],
            " x ".join(map(str, layer["shape"])),
            f"{layer['weights']:,}",
            f"{layer['nonzeros']:,}",
            f"{100 * layer['density']:.2f} %",
        )
        for layer in record.get("layers", ())
    ]
    return Text("Layers", ("layer", "kind", "shape", "weights", "nonzeros", "density"), tuple(rows))


def _sizes(record: Any) -> Text:
    if record.get("file_bytes") is None:
        return Text("Sizes", (), ())
    rows = (
        ("nonzero weights", f"{record['weights']:,}", f"{record['nonzeros']:,}",
         ratio(record["nonzero_ratio"])),
        *_all_sizes(record),
        (f"bytes, {record.get('file', 'file')}", f"{record['float32_bytes']:,}",
         f"{record['file_bytes']:,}", ratio(record["file_ratio"])),
    )  # fmt: skip
    return Text("Sizes", ("", "dense, float32", "compressed", "ratio"), rows)


def _all_sizes(record: Any) -> list[tuple[str, str, str, str]]:
    """What only records tell that were written since it is counted."""
    rows = []
    if "parameters" in record:
        parameters, left = record["parameters"], record["parameters_left"]
        rows.append(("all parameters", f"{parameters:,}", f"{left:,}",
                     ratio(record["parameter_ratio"])))  # fmt: skip
    if record.get("living_nonzeros") is not None:
        rows.append(("living nonzeros", NONE, f"{record['living_nonzeros']:,}", NONE))
        rows.append(("inputs", f"{record['inputs']:,}", f"{len(record['inputs_left']):,}", NONE))
    return rows


def _inputs_left(record: Any) -> str | None:
    """The inputs that are left, and which ones if they are few."""
    left = record.get("inputs_left")
    if left is None:
        return None
    which = f": {', '.join(map(str, left))}" if 0 < len(left) <= LISTED else ""
    return f"{len(left):,} of {record['inputs']:,}{which}"


def runs_section(runs: Sequence[Found], name: str) -> Section:
    """Several runs side by side: a table, and what each lost against how small it became."""
    done = [run for run in runs if run.done]
    quality = Quality.of(run.record for run in done)
    labels = [str(run.folder) for run in runs]
    section = Section("comparison", f"{len(runs)} runs", f"{len(done)} done")
    told = {label: figures(run, quality) for label, run in zip(labels, runs, strict=True)}
    points = [
        Point(label, ratio_spread, result)
        for label, f in told.items()
        if (ratio_spread := Spread.of([f["nonzero_ratio"]]))
        and (result := Spread.of([f["result"]]))
    ]
    drawn = looks(labels)
    section.key = [Key(label, marker(drawn[label]), False) for label in labels]
    if points:
        section.first = [runs_pareto(points, drawn, quality, name=name)]
    columns = {"result": quality.text, "reference": quality.text, "drop": signed}
    columns |= {"nonzeros": number, "living_nonzeros": number, "nonzero_ratio": ratio}
    columns |= {"parameter_ratio": ratio, "file_ratio": ratio}
    columns |= {"epochs": number, "seconds": duration}
    headings = ("run", "status", quality.label(), "dense reference", "drop", "nonzeros")
    headings += ("living", "nonzero ratio", "parameter ratio", "file ratio", "epochs")
    headings += ("time",)
    rows = tuple(
        (label, run.status, *(NONE if f[k] is None else text(f[k]) for k, text in columns.items()))
        for run, (label, f) in zip(runs, told.items(), strict=True)
    )
    section.tables = [Text("Comparison", headings, rows)]
    return section
