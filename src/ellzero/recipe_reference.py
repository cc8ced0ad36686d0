"""Every key of a recipe in tables, made from its schema: for a page, and for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ellzero.recipe_schema import recipe_schema

STAGES = {"reference": "Reference", "train": "Train", "finetune": "Finetune"}
"""A stage's table -> its name in the schema."""

REQUIRED = "required"

_OF_STAGE = ("epochs", "file")
"""Keys that several stages have, and that mean something else, or have another default, in each."""

_KINDS = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "object": "table",
    "string": "text",
}


@dataclass(frozen=True)
class Row:
    """A key: what kind of value it takes, which one where it is left out, what it means."""

    key: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys of a table.

    Args:
        table: its name in a recipe, `train` or `train.penalty.l0`; of keys that several have, all.
        about: what it is, a sentence.
        rows: its keys.
    """

    table: str
    about: str
    rows: tuple[Row, ...]


def sections() -> Iterator[Section]:
    """The tables of a recipe, in the order of a run.

    Example:
        >>> budget = next(section for section in sections() if section.table == "prune.budget")
        >>> [row.key for row in budget.rows]
        ['max_accuracy_drop', 'max_loss_increase']
    """
    schema = recipe_schema()
    tables = schema["$defs"]
    yield Section("recipe", schema["description"], _rows(schema))
    stages = {stage: tables[name]["properties"] for stage, name in STAGES.items()}
    shared = [key for key in stages["train"] if all(key in of for of in stages.values())]
    about = (
        "How the weights are moved, and how long. The reference and the fine-tuning take over what "
        "stands in train, but for the length, and of its penalty the terms that do not sparsify."
    )
    common = {"properties": {key: stages["train"][key] for key in shared if key not in _OF_STAGE}}
    yield Section("reference, train, finetune", about, _rows(common))
    for stage, keys in stages.items():
        own = {k: entry for k, entry in keys.items() if k not in shared or k in _OF_STAGE}
        yield Section(stage, tables[STAGES[stage]]["description"], _rows({"properties": own}))
    for name, place in {"Distillation": "train.distillation", "ramp": "train.ramp"}.items():
        yield _section(place, tables[name])
    yield _section("prune", tables["Prune"])
    for name in ("budget", "gradual"):
        yield _section(f"prune.{name}", tables[name])
    for family in ("penalty", "gates"):
        for name, table in tables[family]["properties"].items():
            yield _section(f"train.{family}.{name}", table)
    for name in ("model", "data", "optimizer"):
        place = name if name != "optimizer" else "train.optimizer"
        about = "Names that are built in, and their options; your own take any."
        rows = tuple(_options(tables[name]))
        yield Section(place, about, rows)


def page() -> str:
    """docs/recipe-reference.md."""
    lines = [
        "# Recipe reference",
        "",
        "Every key of a recipe, made by `python docs/make_schema.py`; `ellzero schema TABLE` shows "
        "a table of it in the terminal. How they work together, and how an editor completes them, "
        "is in [recipes.md](recipes.md). A key that is not here is an error that names the nearest "
        "one.",
    ]
    for section in sections():
        lines += ["", f"## {section.table}", "", section.about, ""]
        lines += ["| key | kind | left out | meaning |", "|---|---|---|---|"]
        for row in section.rows:
            default = f"`{row.default}`" if row.default not in ("", REQUIRED) else row.default
            cells = (f"`{row.key}`", row.kind, default, row.meaning)
            lines.append(f"| {' | '.join(map(_escaped, cells))} |")
    return "\n".join(lines) + "\n"


def _section(place: str, table: Mapping[str, Any]) -> Section:
    one = next((t for t in table.get("anyOf", ()) if t.get("type") == "object"), table)
    return Section(place, one["description"], _rows(one))


def _rows(table: Mapping[str, Any]) -> tuple[Row, ...]:
    required = table.get("required", ())
    rows = []
    for key, entry in table["properties"].items():
        default = json.dumps(entry["default"]) if "default" in entry else ""
        meaning = entry.get("description", "").replace("\n\n", " ").replace("\n", " ")
        rows.append(Row(key, _kind(entry), REQUIRED if key in required else default, meaning))
    return tuple(rows)


def _options(table: Mapping[str, Any]) -> Iterator[Row]:
    """A row for each name that is built in, its options in the place of the meaning."""
    for one in table["anyOf"]:
        name = one.get("properties", {}).get("name", {}).get("const")
        if name is not None and name == name.lower():  # an optimizer has two names
            options = [key for key in one["properties"] if key != "name"]
            yield Row(name, "name", "", f"options: {', '.join(options) or 'none'}")


def _kind(entry: Mapping[str, Any]) -> str:
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return {"model": "name or table", "data": "name or table", "optimizer": "name or table",
                "Distillation": "number or table"}.get(name, "table")  # fmt: skip
    if "enum" in entry:
        return ", ".join(json.dumps(choice) for choice in entry["enum"])
    if "anyOf" in entry:
        return " or ".join(dict.fromkeys(map(_kind, entry["anyOf"])))
    if entry.get("type") == "array":
        return f"list of {_kind(entry.get('items', {}))}"
    low, high = entry.get("minimum"), entry.get("maximum")
    above, below = entry.get("exclusiveMinimum"), entry.get("exclusiveMaximum")
    bounds = [
        f"{sign} {value:,}"
        for sign, value in ((">=", low), (">", above), ("<=", high), ("<", below))
        if value is not None
    ]
    return " ".join([_KINDS.get(entry.get("type", ""), "any value"), ", ".join(bounds)]).strip()


def _escaped(text: str) -> str:
    return text.replace("|", r"\|")
