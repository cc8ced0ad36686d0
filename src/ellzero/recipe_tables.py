"""Tables of recipes and studies: frozen pydantic models whose mistakes are told in one line."""

from __future__ import annotations

import math
import reprlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ellzero.documents import brief, parse_toml, read_toml, require_plain
from ellzero.errors import InputError, is_number
from ellzero.recipe_fields import require_known
from ellzero.recipe_mistakes import explain

TARGETS = ("sparsity", "nonzeros", "budget")

LENGTHS = ("epochs", "steps")

ALTERNATIVES = {"prune": TARGETS, "reference": LENGTHS, "train": LENGTHS, "finetune": LENGTHS}
"""Keys of a recipe's tables of which one is given; one that is set takes another's place."""


def _whole(value: Any) -> Any:
    is_whole = is_number(value) and value % 1 == 0 and abs(value) < 2**63
    return int(value) if is_whole else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A whole number, also as `1e4` or one of numpy's."""

Listed = Field(default=(), strict=False)
"""A tuple that is a list in TOML."""


class Table(BaseModel):
    """A table of a recipe: frozen, and an unknown key is an error that names the nearest one.

    Values are of the kind that is asked for: `true` is no number, and text is none either.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
        strict=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _know_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and cls.model_config.get("extra") == "forbid":
            require_known(value, list(cls.model_fields))
        return value


class Document(Table):
    """A table that stands alone, a recipe or a study: what is wrong in it is an `InputError`."""

    REFERENCE: ClassVar[str] = ""
    """Where all keys are listed, for the end of a message; empty: nowhere."""

    if not TYPE_CHECKING:  # where the fields are its arguments

        def __init__(self, /, *positional: Any, **tables: Any) -> None:
            if positional:
                name = type(self).__name__
                raise InputError(f"{name} takes its tables by name; {name}.parse takes a mapping")
            require_plain(tables)
            try:
                super().__init__(**tables)
            except ValidationError as error:
                where = f"; {self.REFERENCE}" if self.REFERENCE else ""
                raise InputError(explain(error) + where) from None

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """It from nested tables, as they stand in TOML.

        Raises:
            InputError: whatever is wrong in them.
        """
        if not isinstance(table, Mapping) or not all(isinstance(key, str) for key in table):
            raise InputError(f"got {table!r}; expected tables under their names, as TOML has them")
        return cls(**table)

    @classmethod
    def _from_file(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """It from a TOML file, under the file's name unless the file says otherwise."""
        path, what = Path(path), cls.__name__.lower()
        table = read_toml(path, what)
        table.setdefault("name", path.stem)
        for override in overrides:
            _override(table, override)
        try:
            return cls.parse(table)
        except InputError as error:
            raise InputError(f"{what} {path}: {brief(error)}") from None


class Factory(Table):
    """What makes a network or a data set: the name of a function, and options for it.

    The name is a built-in one or the user's `package.module:function`; all other keys are passed
    to the function. A plain text is short for the name alone.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise InputError(
                f"got {reprlib.repr(value)}; expected a name in quotes, or a table such as "
                '{name = "...", option = 1}'
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, value in self.options.items():
            if len(key) > 1000:
                raise InputError(f"an option's name has {len(key)} characters; at most 1,000")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{key} is {value}; expected a finite number, or text in quotes")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments for the function behind the name."""
        return dict(self.model_extra or {})


def without_others(name: str, table: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A recipe's table, under its name, without what keys that are set now take the place of.

    Example:
        >>> without_others("train", {"epochs": 5, "batch_size": 32}, ["steps"])
        {'batch_size': 32}
    """
    group = ALTERNATIVES.get(name, ())
    chosen = [key for key in keys if key in group]
    return {k: v for k, v in table.items() if not chosen or k in chosen or k not in group}


def _override(table: dict[str, Any], text: str) -> None:
    """Set one value: `train.epochs=5`; the value is TOML, or failing that plain text."""
    path, equals, value = text.partition("=")
    keys = _keys(path) if equals else []
    if not keys:
        raise InputError(
            f"override {text!r} is not of the form table.key=value; "
            'a key with a colon or a dot in it stands in quotes: "my_module:LogSum"'
        )
    try:
        parsed = parse_toml(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    stage = table.get(keys[0])
    if keys[1:] and isinstance(stage, dict):
        table[keys[0]] = without_others(keys[0], stage, keys[1:2])
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if isinstance(inner, str) and (keys[0] in ("model", "data") or key == "optimizer"):
            inner = table[key] = {"name": inner}
        if not isinstance(inner, dict):
            raise InputError(f"override {text!r}: {key} is not a table")
        table = inner
    table[keys[-1]] = parsed


def _keys(path: str) -> list[str]:
    """The keys of a dotted path, quoted as TOML has it; none if it is no such path."""
    try:
        tables: Any = parse_toml(f"{path} = 0")
    except tomllib.TOMLDecodeError:
        return []
    keys = []
    while isinstance(tables, dict):
        if len(tables) != 1:  # a comment, or several lines
            return []
        ((key, tables),) = tables.items()
        keys.append(key)
    return keys
