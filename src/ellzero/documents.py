"""Documents: JSON and TOML that may come from anybody, read within bounds."""

from __future__ import annotations

import json
import re
import reprlib
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ellzero.errors import InputError

MOST_TOML_BYTES = 1 << 20
"""A recipe or study has some kB."""

MOST_JSON_BYTES = 1 << 26
"""A record has some kB; metrics, 250 bytes an epoch."""

MOST_DEPTH = 32
"""Tables and lists in one another; a recipe has four levels."""

_KEY_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_KEY_PART}(?:[ \t]*+\.[ \t]*+{_KEY_PART}){{{MOST_DEPTH}}}")
"""A dotted key deeper than that, for which tomllib takes a time that grows with its square."""


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        TOMLDecodeError: no TOML.
        InputError: a key of more than 32 parts, deeper lists or tables; a number beyond 64 bits;
            more than 1 MiB.

    Example:
        >>> parse_toml("prune.sparsity = 0.9")
        {'prune': {'sparsity': 0.9}}
    """
    if len(text) > MOST_TOML_BYTES:
        raise InputError(f"it has {len(text):,} characters; expected at most {MOST_TOML_BYTES:,}")
    if _LONG_KEY.search(text):
        raise InputError(f"a key in it has more than {MOST_DEPTH} parts")
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"lists or tables in it lie more than {MOST_DEPTH} deep") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # a number of more digits than Python reads
        raise InputError(str(error)) from None
    require_plain(tables)
    return tables


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file; `what` it is, a recipe or a study, for the message.

    Raises:
        InputError: no such file; not TOML; beyond the bounds of `parse_toml`.
    """
    try:
        return parse_toml(read_text(path, MOST_TOML_BYTES))
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{what} {path} is not TOML: {error}") from None


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        InputError: no JSON; beyond the bounds of `require_plain`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_table)
    except (ValueError, RecursionError) as error:
        raise InputError(str(error)) from None
    require_plain(value)
    return value


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table whose keys, and values that are text, are the same objects as in other tables.

    Many records have them in common, and a report on a study holds all of them.
    """
    return {
        sys.intern(key): sys.intern(value) if isinstance(value, str) else value
        for key, value in pairs
    }


def read_text(path: Path, most_bytes: int) -> str:
    """The UTF-8 text of a regular file.

    Raises:
        OSError: no such file, or none that can be read.
        InputError: another kind of file, such as a pipe, for which one would wait; too long.
        UnicodeDecodeError: not UTF-8.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise InputError(f"it has more than {most_bytes:,} bytes")
    return content.decode()


def brief(error: object) -> str:
    """A message of what stands in a file, its middle left out where it repeats endless text.

    Example:
        >>> len(brief("x" * 10**6))
        1000
    """
    text = str(error)
    return text if len(text) <= 1000 else f"{text[:690]} ... {text[-305:]}"


def require_plain(value: Any) -> None:
    """Make sure that tables and lists hold what TOML and JSON can both say, and not too deep.

    Objects of other types are left alone: what they may be, the fields say that take them.

    Raises:
        InputError: deeper than 32; a whole number beyond 64 bits; text that is no Unicode.

    Example:
        >>> require_plain({"seeds": [2**80]})
        Traceback (most recent call last):
        ellzero.errors.InputError: seeds.0 is a number beyond 64 bits
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > MOST_DEPTH:
            raise InputError(f"{_dotted(path)} lies more than {MOST_DEPTH} deep")
        # what occurs most comes first: a study has thousands of records
        if value is None or isinstance(value, float):
            continue
        if isinstance(value, str):
            _require_unicode(path, value)
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise InputError(f"{_dotted(path)} is a number beyond 64 bits")
        elif isinstance(value, list | tuple):
            waiting += [((*path, str(index)), item) for index, item in enumerate(value)]
        elif isinstance(value, Mapping):
            for key in value:
                _require_unicode((*path, "a key"), key)
            waiting += [((*path, str(key)), item) for key, item in value.items()]


def _require_unicode(path: tuple[str, ...], value: object) -> None:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{_dotted(path)} is {reprlib.repr(value)}, no Unicode text") from None


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path[:8]) + ("..." if len(path) > 8 else "")
