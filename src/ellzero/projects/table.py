"""A project for a table: the user's CSV file, or made-up measurements."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.data import csv_table
from ellzero.data.archive import MIB
from ellzero.data.columns import Columns, as_number, column_names
from ellzero.errors import InputError
from ellzero.projects.filling import MODULE, OF_ACCURACY, OF_LOSS, Filling

MACHINES = "machines.csv"

MOST_CLASSES = 20
"""Whole numbers are classes if there are at most so many of them."""

_DELIMITERS = ",;\t|"
_ROWS = 2000


def table(data: Path | None, target: str | None) -> Filling:
    """The project for a CSV file; without one, for made-up measurements of machines.

    The column to predict is the last one unless `target` names another. Columns of texts are
    categories; those whose cells are partly numbers, or nearly all different texts, are left out.

    Raises:
        InputError: a target without a file; a file that `csv` refuses.
    """
    if data is None:
        if target is not None:
            raise InputError("--target names a column of your table; give the table with --data")
        return _filling(
            {"path": MACHINES, "target": "state", "categorical": ["maker"]},
            inputs=14,
            outputs=3,
            notes=(f"{MACHINES}: {_ROWS:,} made-up rows; the column to predict is 'state'",),
            files={MACHINES: _machines()},
        )
    options, notes = _looks(data, target)
    found = csv_table.csv(**options)
    inputs, targets = found.train.example
    outputs = len(found.classes) if found.classes else targets.shape[1]
    rows = sum(part.examples or 0 for part in found.parts)
    notes = (f"{data}: {rows:,} rows, {inputs.shape[1]:,} inputs", *notes)
    return _filling(options, inputs=inputs.shape[1], outputs=outputs, notes=notes)


def _filling(options: dict[str, Any], *, inputs: int, outputs: int, **rest: Any) -> Filling:
    return Filling(
        about="A network for a table.",
        model={"inputs": inputs, "outputs": outputs},
        model_comment=(
            f"The function network() of {MODULE}.py, and its arguments: an input for each column "
            "of numbers, one for each category of the others; an output for each class, or 1."
        ),
        data={"name": "csv", **options},
        data_comment=(
            "The first row names the columns. A tenth of the rows is for validation, another for "
            "testing. Further keys: categorical and exclude, lists of columns; test_path, another "
            "file."
        ),
        budget=OF_LOSS if options.get("task") == "regression" else OF_ACCURACY,
        strength="3e-4",
        **rest,
    )


def _looks(path: Path, target: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options of `csv` that fit a file, and what is to be said of them."""
    delimiter = _delimiter(path)
    names = column_names(path, delimiter)
    goal = names[-1] if target is None else target
    columns = Columns(path, dict.fromkeys([*names, goal]), (), delimiter)
    rows = len(columns)
    categorical, exclude = [], []
    for name in names:
        known = columns.texts[name].known
        numbers = sum(as_number(text) is not None for text in known)
        if name == goal or numbers == len(known):
            continue
        is_listed = not numbers and len(known) <= min(csv_table.MOST_CATEGORIES, rows / 2)
        (categorical if is_listed else exclude).append(name)
    options: dict[str, Any] = {"path": str(path), "target": goal}
    numbers = [as_number(text) for text in columns.texts[goal].known]
    task = None
    if None not in numbers:
        are_classes = len(numbers) <= MOST_CLASSES and all(n == int(n) for n in numbers if n)
        task = options["task"] = "classification" if are_classes else "regression"
    options |= {"delimiter": delimiter} if delimiter != "," else {}
    options |= {"categorical": categorical} if categorical else {}
    options |= {"exclude": exclude} if exclude else {}
    which = "the last column; --target names another" if target is None else "as you said"
    what = "numbers" if task == "regression" else f"{len(numbers)} classes"
    notes = [f"the column to predict is {goal!r} ({which}), {what}"]
    if exclude:
        listed = ", ".join(map(repr, exclude))
        notes.append(f"left out: {listed}, whose cells are neither all numbers nor categories")
    return options, tuple(notes)


def _delimiter(path: Path) -> str:
    """The character that the first line has most of, of those that may stand between cells."""
    if not path.is_file():
        return ","  # the reader says so
    with path.open("rb") as file:
        first = file.readline(MIB).decode(errors="replace")
    return max(_DELIMITERS, key=first.count)


def _machines() -> bytes:
    """Rows of which the state hangs on three columns alone, the same bytes every time."""
    random = np.random.default_rng(0)
    maker = random.choice(["north", "south", "west"], _ROWS)
    numbers: Mapping[str, np.ndarray] = {
        "temperature": random.normal(60, 8, _ROWS).round(1),
        "vibration": random.gamma(2, 1.5, _ROWS).round(2),
        "hours": random.uniform(0, 9000, _ROWS).round(0),
        "load": random.uniform(0, 1, _ROWS).round(3),
        **{f"sensor_{n}": random.normal(0, 1, _ROWS).round(3) for n in range(1, 8)},
    }
    wear = (
        (numbers["temperature"] - 60) / 8
        + numbers["vibration"] / 2
        + numbers["hours"] / 3000
        + random.normal(0, 0.1, _ROWS)
    )
    state = np.select([wear > 4, wear > 2.5], ["broken", "worn"], "ok")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["maker", *numbers, "state"])
    writer.writerows(
        zip(maker, *(column.tolist() for column in numbers.values()), state, strict=True)
    )
    return text.getvalue().encode()
