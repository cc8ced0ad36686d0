"""A table of the user's, a CSV file, as a data set: columns as inputs and targets."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ellzero.data.columns import Columns, as_number, no_number
from ellzero.data.data import Data
from ellzero.data.split import SPLIT_SEED, held_out
from ellzero.errors import InputError, warn
from ellzero.preprocess import Preprocess

MOST_CATEGORIES = 1000
"""The most categories of a column; each is an input of its own."""

Task = Literal["classification", "regression"]

_LOST = 0.01  # of a column's deviation: what rounding may take before it is said
_LISTED = 5


def csv(
    *,
    path: Path | str,
    target: str | Sequence[str],
    task: Task | None = None,
    test_path: Path | str | None = None,
    categorical: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    delimiter: str = ",",
    validation: float = 0.1,
    test: float = 0.1,
) -> Data:
    r"""A table, a row an example: inputs float32 (N, F), targets int64 (N,) or float32 (N, T).

    The first row names the columns. The inputs stand in the order of the columns, each scaled to
    mean 0 and deviation 1 over the training rows. A categorical column is one input, 0 or 1, for
    each of its categories: the texts of the training rows, in order; an empty cell is one, too. A
    category that occurs elsewhere only gives zeros, and a warning. The targets of a regression stay
    as they are. Spaces around a cell, and empty lines, do not count.

    Args:
        path: the file, UTF-8, at most 2 GiB.
        target: the column to predict; several for a regression of as many outputs.
        task: "classification" or "regression"; left out: texts are classes, and numbers of which
            some are not whole are for regression.
        test_path: another file of the same columns, in any order; it is the test part.
        categorical: columns of texts, or of codes that are no quantities; at most 1,000 categories.
        exclude: columns that are left out.
        delimiter: the character between cells.
        validation: fraction of the rows for validation, of each class alike.
        test: fraction of the rows for testing, where there is no `test_path`; 0: no test part.

    Raises:
        InputError: no such file, or one of another encoding; an unknown column; a cell that is no
            finite number; a row of another length; a target that could be of either task.

    Example:
        >>> import tempfile
        >>> rows = ["acid,colour,kind"] + ["1.5,red,a", "2.5,white,b"] * 10
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "wine.csv")
        ...     _ = path.write_text("\n".join(rows))
        ...     data = csv(path=path, target="kind", categorical="colour")
        >>> data.classes, data.train.example
        (('a', 'b'), (tensor([[1.5000, 1.0000, 0.0000]]), tensor([0])))
    """
    if task not in (None, "classification", "regression"):
        raise InputError(f"task is {task!r}; expected classification or regression")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in ' "\r\n':
        raise InputError(f"delimiter is {delimiter!r}; expected one character, such as ',' or ';'")
    goals, coded, left_out = _names(target=target, categorical=categorical, exclude=exclude)
    columns = Columns(Path(path), (*goals, *coded), left_out, delimiter)
    count, fractions = len(columns), {"validation": validation, "test": test}
    if test_path is not None:
        columns.append(Path(test_path))
        del fractions["test"]

    targets, classes = _targets(columns, goals, task)
    strata = np.zeros(count, np.int64) if classes is None else targets[:count]
    parts = [*held_out(strata, fractions, SPLIT_SEED)]
    if test_path is not None:
        parts.append(np.arange(count, len(columns)))
    inputs, preprocess = _inputs(columns, goals, coded, parts[0])

    train, validated, tested = [
        (torch.from_numpy(inputs[part]), torch.from_numpy(targets[part])) for part in parts
    ]
    return Data(
        train,
        validated,
        tested if len(parts[2]) else None,
        preprocess=preprocess,
        classes=classes,
    )


def _names(**options: str | Sequence[str]) -> list[tuple[str, ...]]:
    """The columns that each option names; each column once."""
    option_of: dict[str, str] = {}
    for option, names in options.items():
        listed = (names,) if isinstance(names, str) else names
        if not isinstance(listed, list | tuple) or not all(isinstance(n, str) for n in listed):
            raise InputError(f"{option} is {names!r}; expected the name of a column, or a list")
        for name in listed:
            if name in option_of:
                raise InputError(
                    f"{option} names the column {name!r}, as {option_of[name]} does; expected once"
                )
            option_of[name] = option
    if "target" not in option_of.values():
        raise InputError("target names no column; expected at least one")
    return [tuple(n for n, o in option_of.items() if o == option) for option in options]


def _targets(
    columns: Columns, names: Sequence[str], task: Task | None
) -> tuple[np.ndarray, list[str] | None]:
    """Labels int64 (N,) with the names of the classes, or quantities float32 (N, T) and None."""
    for name in names:
        texts = columns.texts[name]
        if "" in texts.known:
            where = columns.where(texts.row_of(""), name)
            raise InputError(f"{where}: the target is empty; fill it in, or drop the row")
    if _are_classes(columns, names, task):
        texts = columns.texts[names[0]]
        classes = _in_order(columns, names[0], texts.known)
        return texts.mapped({text: label for label, text in enumerate(classes)}), classes
    quantities = [_quantities(columns, name) for name in names]
    for name, exact in zip(names, quantities, strict=True):
        _tell_rounding(columns, name, exact, Preprocess())
    return np.stack(quantities, axis=1).astype(np.float32), None


def _are_classes(columns: Columns, names: Sequence[str], task: Task | None) -> bool:
    if len(names) > 1:
        if task == "classification":
            raise InputError(f"target names {len(names)} columns; classification has one")
        return False
    if task is not None:
        return task == "classification"
    name, texts = names[0], columns.texts[names[0]]
    numbers = [as_number(text) for text in texts.known]
    words = [text for text, number in zip(texts.known, numbers, strict=True) if number is None]
    if words and len(words) < len(numbers):
        raise InputError(
            f"{columns.where(texts.row_of(words[0]), name)}: {words[0]!r} is no number, as other "
            'targets are; correct it, or give task = "classification"'
        )
    if not words and all(number == int(number) for number in numbers if number is not None):
        raise InputError(
            f"{columns.path}, column {name!r} has whole numbers alone, which can be classes or "
            'quantities; give task = "classification" or task = "regression"'
        )
    return bool(words)


def _in_order(columns: Columns, name: str, texts: Collection[str]) -> list[str]:
    """Classes or categories sorted, by value where all are numbers."""
    numbers = {text: n for text in texts if (n := as_number(text)) is not None}
    if len(numbers) < len(texts):
        return sorted(texts)
    in_order = sorted(texts, key=lambda text: (numbers[text], text))
    for text, other in pairwise(in_order):
        if numbers[text] == numbers[other]:
            where = columns.where(columns.texts[name].row_of(other), name)
            raise InputError(f"{where}: {other!r} is the number {text!r}, too; write them alike")
    return in_order


def _quantities(columns: Columns, name: str) -> np.ndarray:
    """A target's column as numbers, float64 (N,)."""
    texts = columns.texts[name]
    numbers = {text: as_number(text) for text in texts.known}
    for text, number in numbers.items():
        if number is None:
            remedy = "correct it, or drop the row"
            raise no_number(columns.where(texts.row_of(text), name), text, remedy)
    return texts.mapped(numbers)


def _inputs(
    columns: Columns, targets: Collection[str], coded: Collection[str], train: np.ndarray
) -> tuple[np.ndarray, Preprocess]:
    """All columns but the targets, float32 (N, F), and what standardizes those of numbers."""
    names = [name for name in columns.names if name not in targets]
    if not names:
        raise InputError(f"{columns.path} has no column beside those of target and exclude")
    blocks, scales, shifts = [], [], []
    for name in names:
        if name in coded:
            block, scaling = _one_hot(columns, name, train), Preprocess()
        else:
            exact = columns.quantities(name)
            block = exact.astype(np.float32)[:, None]
            scaling = Preprocess.standardizing(torch.from_numpy(block[train]), per_channel=False)
            _tell_rounding(columns, name, exact[train], scaling)
        blocks.append(block)
        scales.append(np.full(block.shape[1], scaling.scale))
        shifts.append(np.full(block.shape[1], scaling.shift))
    scale, shift = (tuple(np.concatenate(values).tolist()) for values in (scales, shifts))
    return np.concatenate(blocks, axis=1), Preprocess(scale, shift)


def _one_hot(columns: Columns, name: str, train: np.ndarray) -> np.ndarray:
    """An input for each category of the training rows, float32 (N, categories)."""
    texts = columns.texts[name]
    categories = _in_order(columns, name, texts.within(train))
    if len(categories) > MOST_CATEGORIES:
        raise InputError(
            f"{columns.path}, column {name!r} has {len(categories):,} categories; expected at most "
            f"{MOST_CATEGORIES:,}; exclude it, or group them"
        )
    unseen = sorted(texts.known.keys() - categories)
    if unseen:
        listed = ", ".join(map(repr, unseen[:_LISTED]))
        more = f" and {len(unseen) - _LISTED} more" if len(unseen) > _LISTED else ""
        warn(
            f"{columns.path}, column {name!r}: no training row has {listed}{more}; in rows that "
            "do, all inputs of the column are 0"
        )
    codes = texts.mapped({text: code for code, text in enumerate(categories)}, default=-1)
    return (codes[:, None] == np.arange(len(categories))).astype(np.float32)


def _tell_rounding(columns: Columns, name: str, exact: np.ndarray, scaling: Preprocess) -> None:
    """Warn where float32, also in `x * scale + shift`, blurs how the numbers of a column differ."""
    if exact.min() == exact.max():
        return
    scale, shift = np.asarray(scaling.scale), np.asarray(scaling.shift)
    with np.errstate(all="ignore"):  # what is not finite is lost
        scaled = exact.astype(np.float32) * scale.astype(np.float32) + shift.astype(np.float32)
        seen = (scaled.astype(np.float64) - shift) / scale
        lost = np.sqrt(np.mean((seen - exact) ** 2)) / exact.std()
    if not lost <= _LOST:
        warn(
            f"{columns.path}, column {name!r}: float32 cannot tell its numbers apart well, the "
            f"error is {lost:.1%} of their deviation; subtract a constant from all of them, such "
            "as their mean, or write them in another unit"
        )
