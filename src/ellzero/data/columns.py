"""Files of comma-separated values, read as columns of numbers and of texts."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Collection, Iterator, Mapping
from csv import Error, reader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ellzero.data.archive import GIB, looked_for
from ellzero.errors import InputError, nearest

MOST_BYTES = 2 * GIB
"""The largest file that is read; in memory it takes several times as much."""

LARGEST = float(np.finfo(np.float32).max)
"""Numbers beyond are none, for they are trained on as float32."""

_SHOWN = 60  # characters of a cell in an error message
_OTHER_ENCODINGS = {  # in this order: the mark of UTF-32 starts with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class Columns:
    """The columns of a CSV file, and of further files whose rows follow.

    Every column is of finite numbers (float64) but those that are named as texts or left out. The
    first row of a file names its columns, which may stand in another order in the next file.
    Spaces around a cell, and empty lines, do not count. Memory is bounded by the files' sizes.

    Args:
        path: the first file, UTF-8.
        texts: columns that are kept as texts.
        exclude: columns that are left out.
        delimiter: the character between cells.

    Raises:
        InputError: no such file, one of another encoding or too large; an unknown column; a cell
            that is no number, a row of another length. It names file, row and column; a row is
            the line of the file at which it starts.
    """

    def __init__(
        self, path: Path, texts: Collection[str], exclude: Collection[str], delimiter: str
    ) -> None:
        self._exclude, self._delimiter = exclude, delimiter
        self._files: list[tuple[int, Path]] = []
        self._lines = array("q")
        rows = _rows(path, delimiter)
        names = _header(path, rows)
        for name in (*texts, *exclude):
            if name not in names:
                raise InputError(f"{path} has no column {name!r}; {nearest(name, names)}")
        self._numbers = {n: array("d") for n in names if n not in texts and n not in exclude}
        self.texts = {name: Texts() for name in texts}
        self.names = [name for name in names if name not in exclude]
        """The columns in the order of the first file."""
        self._append(path, names, rows)

    def __len__(self) -> int:
        return len(self._lines)

    def append(self, path: Path) -> None:
        """Add the rows of another file of the same columns.

        Raises:
            InputError: as for the first file; a column that only one of them has.
        """
        rows = _rows(path, self._delimiter)
        names = _header(path, rows)
        odd = {*self.names} ^ ({*names} - {*self._exclude})
        if odd:
            raise InputError(
                f"{path} and {self.path} have not the same columns; "
                f"only one of them has {', '.join(map(repr, sorted(odd)))}"
            )
        self._append(path, names, rows)

    @property
    def path(self) -> Path:
        """The first file."""
        return self._files[0][1]

    def quantities(self, name: str) -> np.ndarray:
        """A column of numbers, float64 (N,)."""
        return np.asarray(self._numbers[name])

    def where(self, row: int, name: str) -> str:
        """Where the cell of a row, from 0 over all files, stands, as the start of a sentence."""
        path = next(path for first, path in reversed(self._files) if first <= row)
        return _where(path, self._lines[row], name)

    def _append(self, path: Path, names: list[str], rows: Iterator[tuple[int, list[str]]]) -> None:
        self._files.append((len(self), path))
        before = len(self)
        place = {name: index for index, name in enumerate(names)}
        numbers = [(place[name], name, values) for name, values in self._numbers.items()]
        texts = [(place[name], values) for name, values in self.texts.items()]
        for line, cells in rows:
            if len(cells) != len(names):
                raise InputError(
                    f"{path}, row {line} has {len(cells)} cells; expected {len(names)}, "
                    "one for each column"
                )
            for index, name, values in numbers:
                number = as_number(cells[index])
                if number is None:
                    remedy = "name the column in categorical or exclude, or put a number in"
                    raise no_number(_where(path, line, name), cells[index], remedy)
                values.append(number)
            for index, values in texts:
                values.append(cells[index])
            self._lines.append(line)
        if len(self) == before:
            raise InputError(f"{path} has no rows below the names of its columns")


class Texts:
    """A column of texts: how each text is numbered, by first occurrence, and each row's number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self._rows = array("q")

    def append(self, text: str) -> None:
        """Add a row."""
        self._rows.append(self.known.setdefault(text, len(self.known)))

    def row_of(self, text: str) -> int:
        """The first row that has the text."""
        return self._rows.index(self.known[text])

    def within(self, rows: np.ndarray) -> set[str]:
        """The texts of some rows."""
        texts = list(self.known)
        return {texts[number] for number in np.unique(np.array(self._rows)[rows])}

    def mapped(self, values: Mapping[str, Any], default: int = -1) -> np.ndarray:
        """For each row the value of its text (N,)."""
        return np.array([values.get(text, default) for text in self.known])[np.array(self._rows)]


def column_names(path: Path, delimiter: str) -> list[str]:
    """The names of a file's columns.

    Raises:
        InputError: no such file, one of another encoding; a column without a name, or named twice.
    """
    return _header(path, _rows(path, delimiter))


def as_number(text: str) -> float | None:
    """The finite number of float32's range that a text is, or None.

    Example:
        >>> as_number("1e3"), as_number("nan"), as_number("1_000"), as_number("1e39")
        (1000.0, None, None, None)
    """
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) <= LARGEST and "_" not in text else None


def no_number(where: str, text: str, remedy: str) -> InputError:
    """The error of a cell that had to be a number."""
    what = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...") if text else "an empty cell"
    return InputError(f"{where}: {what} is no finite number of float32; {remedy}")


def _where(path: Path, line: int, name: str) -> str:
    return f"{path}, row {line}, column {name!r}"


def _header(path: Path, rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    line, names = next(rows, (1, []))
    if not names:
        raise InputError(f"{path} is empty; expected a first row with the names of the columns")
    seen: set[str] = set()
    for place, name in enumerate(names, 1):
        if not name:
            raise InputError(
                f"{path}, row {line}: column {place} has no name; write one, to use it or to "
                "exclude it"
            )
        if name in seen:
            raise InputError(f"{path}, row {line} names the column {name!r} twice; rename one")
        seen.add(name)
    return names


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line at which each row starts, and its cells."""
    if not path.is_file():
        raise InputError(f"{path} is no file{looked_for(path)}")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size > MOST_BYTES:
                raise InputError(
                    f"{path} has {size:,} bytes; expected at most {MOST_BYTES:,}; "
                    "read it by a function of yours"
                )
            lines = _lines(path, file)
            rows = reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
            while True:
                line = rows.line_num + 1
                try:
                    cells = next(rows)
                except StopIteration:
                    return
                except Error as error:
                    raise InputError(f"{path}, row {line} is no row of cells: {error}") from error
                if cells:
                    yield line, [cell.strip() for cell in cells]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """The lines of a text in UTF-8, each with its end."""
    for number, line in enumerate(file, 1):
        if number == 1:
            for mark, encoding in _OTHER_ENCODINGS.items():
                if line.startswith(mark):
                    raise InputError(f"{path} is text in {encoding}; save it as UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, row {number}: the byte 0x{line[error.start]:02x} is not UTF-8; "
                "save the file as UTF-8"
            ) from error
