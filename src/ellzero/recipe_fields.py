"""Fields of recipes that are frozen dataclasses: penalties, gates, schedules, budgets as tables.

A dataclass's fields are the keys of its table. Penalties and gates stand under a name: a built-in
one, or the user's own `package.module:Class`. Where nothing may be imported (`importing(False)`),
the user's own stay names with their tables.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from torch import Tensor

from ellzero.errors import EllzeroError, InputError, UserCodeError, nearest
from ellzero.penalties import PENALTIES, Penalty, Sum, Term
from ellzero.pruning.budget import Budget
from ellzero.regularizers import GATES, Gates
from ellzero.schedules import Schedule, ScheduleShape
from ellzero.selection import Selection
from ellzero.user_code import imported, may_import, name_of, require_importable


def require_known(table: Mapping[str, Any], known: Sequence[str]) -> None:
    """Make sure that a table has no other keys.

    Raises:
        InputError: an unknown key, with the nearest known one.
    """
    for key in table:
        if key not in known:
            raise InputError(f"unknown key {key!r}; {nearest(key, tuple(known))}")


def read_penalty(value: Any) -> Any:
    """A penalty from `{l0 = {strength = 1e-5}, l2 = {...}}`; a list under a name gives several."""
    if value is None or isinstance(value, Penalty):
        return value
    return added(list(_read_named(value, _PENALTY)))


def added(terms: Sequence[Term]) -> Penalty | None:
    """The penalty of these terms; None where there are none."""
    return Sum(tuple(terms)) if len(terms) > 1 else next(iter(terms), None)


def portable(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A table such as `train`, its penalties and gates named as another process finds them too.

    Raises:
        InputError: a class that no other process can import, or that stands there twice.
    """
    renamed = dict(stage)
    for family in (_PENALTY, _GATES):
        tables = stage.get(family.what)
        if isinstance(tables, Mapping):
            try:
                renamed[family.what] = family.portable(tables)
            except InputError as error:
                raise InputError(f"{family.what}: {error}") from None
    return renamed


@dataclasses.dataclass(frozen=True)
class Named(Term):
    """A penalty of the user's own in a recipe that is only shown: its class is not imported."""

    name: str
    table: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, table: Mapping[str, Any]) -> Named:
        """What stands for the class of that name."""
        return cls(table["strength"], name, table, form=table.get("form", "gradient"))

    def __post_init__(self) -> None:
        pass  # what its numbers may be, only the class knows

    def value(self, w: Tensor) -> Tensor:
        refuse_use("penalty", self.name)

    def gradient(self, w: Tensor) -> Tensor:
        refuse_use("penalty", self.name)

    def shrink_(self, w: Tensor, step: float | Tensor) -> None:
        refuse_use("penalty", self.name)


@dataclasses.dataclass(frozen=True)
class NamedGates(Gates):
    """Gates of the user's own in a recipe that is only shown: their class is not imported."""

    name: str
    table: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, table: Mapping[str, Any]) -> NamedGates:
        """What stands for the class of that name."""
        return cls(table["strength"], name, table)

    def __post_init__(self) -> None:
        pass  # what its numbers may be, only the class knows

    def bind(self, weights: Selection) -> NoReturn:
        refuse_use("gates", self.name)


def refuse_use(what: str, name: str) -> NoReturn:
    """Refuse to work with what stands for a class that was not imported.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"{what} {name!r} is a name alone: its recipe was read without importing code; read it "
        "where it may be (ez.open_run(path, trust=True), or ez.Recipe.read)"
    )


@dataclasses.dataclass(frozen=True)
class _Family:
    """Dataclasses that a recipe names: what they are, the built-in ones, their base class."""

    what: str
    registry: Mapping[str, type[Any]]
    base: type[Any]
    stand_in: Callable[[str, Mapping[str, Any]], Any]
    """What stands for one whose class is not imported, from its name and table."""

    def find(self, name: str) -> type[Any] | None:
        """The class behind a name; None of the user's own where nothing may be imported."""
        if not isinstance(name, str):
            raise InputError(f"a name in {self.what} is {name!r}; expected text, such as 'l0'")
        if name in self.registry:
            return self.registry[name]
        if ":" not in name:
            raise InputError(
                f"unknown key {name!r}; {nearest(name, tuple(self.registry))} "
                "(your own is written package.module:Class)"
            )
        if not may_import():
            return None
        who = f"{self.what} {name!r}"
        cls = imported(who, name, "class")
        if not isinstance(cls, type) or not issubclass(cls, self.base) or inspect.isabstract(cls):
            raise InputError(
                f"{who} is {cls!r}; expected a dataclass derived from "
                f"{self.base.__module__}.{self.base.__name__}, without abstract methods"
            )
        return cls

    def name(self, cls: type[Any]) -> str:
        """The name under which a class is written, whatever it was registered as."""
        if _comes_with_ellzero(cls):
            return next(name for name, known in self.registry.items() if known is cls)
        return name_of(cls)

    def portable(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        """The tables under names that another process finds."""
        renamed: dict[str, Any] = {}
        for name, table in tables.items():
            cls = self.find(name)
            if cls is None:
                renamed[name] = table
                continue
            if not _comes_with_ellzero(cls):
                require_importable(cls)
            if self.name(cls) in renamed:
                raise InputError(f"{self.name(cls)} stands there under two names")
            renamed[self.name(cls)] = table
        return renamed

    def place(self, name: str) -> tuple[int, str]:
        """Where a name stands in a sum: the built-in ones first, for any order has its bits."""
        known, cls = list(self.registry.values()), self.find(name)
        if cls is None or not _comes_with_ellzero(cls):
            return len(known), name if cls is None else self.name(cls)
        return known.index(cls), self.name(cls)

    def entry(self, member: Any) -> tuple[str, dict[str, Any]]:
        """The name and the table under which one of them is written."""
        if isinstance(member, Named | NamedGates):
            return member.name, dict(member.table)
        return self.name(type(member)), dataclasses.asdict(member)


_PENALTY = _Family("penalty", PENALTIES, Term, Named.of)
_GATES = _Family("gates", GATES, Gates, NamedGates.of)


def _comes_with_ellzero(cls: type[Any]) -> bool:
    return cls.__module__.partition(".")[0] == "ellzero"


def _read_gates(value: Any) -> Any:
    """Gates from `{hard_concrete = {strength = 1e-6}}`."""
    if value is None or isinstance(value, Gates):
        return value
    methods = list(_read_named(value, _GATES))
    if len(methods) > 1:
        raise InputError(f"got {len(methods)} methods; a network can have one kind of gates")
    return methods[0] if methods else None


def _read_named(value: Any, family: _Family) -> Iterator[Any]:
    """Frozen dataclasses from tables under their names, in an order that does not hang on TOML."""
    if not isinstance(value, Mapping):
        example = next(iter(family.registry))
        raise InputError(f"got {value!r}; expected tables such as {{{example} = {{strength = 1}}}}")
    for name in sorted(value, key=family.place):
        cls, tables = family.find(name), value[name]
        for table in tables if isinstance(tables, list) else [tables]:
            if not isinstance(table, Mapping):
                raise InputError(
                    f"{name} is {table!r}; expected a table such as {{strength = 1e-5}}"
                )
            if cls is not None:
                _require_fields(name, table, cls)
            if "strength" not in table:
                raise InputError(f"{name} has no strength; write {name} = {{strength = 1e-5}}")
            if cls is None:
                yield family.stand_in(name, table)
            else:
                yield _made(cls, {k: _schedule(f"{name}.{k}", v) for k, v in table.items()})


def _schedule(key: str, value: Any) -> Any:
    """A number that changes while it trains, from `{start = 1, end = 10}`; others as they are."""
    return _made(Schedule, value, key) if isinstance(value, Mapping) else value


def _require_fields(where: str, table: Mapping[str, Any], cls: type[Any]) -> None:
    try:
        require_known(table, [field.name for field in dataclasses.fields(cls)])
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def _made(cls: type[Any], table: Mapping[str, Any], where: str = "") -> Any:
    _require_fields(where, table, cls)
    try:
        inspect.signature(cls).bind(**table)
    except TypeError as error:  # a key is missing
        raise InputError(f"{cls.__name__}: {error}") from None
    try:
        return cls(**table)
    except EllzeroError:
        raise
    except ValueError as error:  # a value that it refuses
        raise InputError(f"{cls.__name__}: {error}") from error
    except Exception as error:  # of the user's own code
        raise UserCodeError(f"{name_of(cls)} failed: {type(error).__name__}: {error}") from error


def _read_budget(value: Any) -> Any:
    if not isinstance(value, Mapping | Budget | None):
        raise InputError(f"got {value!r}; expected a table such as {{max_accuracy_drop = 0.5}}")
    return _made(Budget, value) if isinstance(value, Mapping) else value


_FORMER_BOUNDS = {"start": "after", "end": "until"}
"""Names that recipes gave to the bounds of a rise before, and the names of today."""


def _rise(shape: ScheduleShape) -> BeforeValidator:
    """Read a schedule from 0 to 1, whose table only says how and when it rises."""

    def read(value: Any) -> Any:
        if isinstance(value, Mapping):
            bounds = dict(value)
            for former, name in _FORMER_BOUNDS.items():
                if former in bounds:
                    if name in bounds:
                        raise InputError(f"it has {former} and {name}, which are one; give {name}")
                    bounds[name] = bounds.pop(former)
            require_known(bounds, ("shape", "after", "until"))
            value = _made(Schedule, {"start": 0.0, "end": 1.0, "shape": shape, **bounds})
        elif not isinstance(value, Schedule | None):
            raise InputError(f"got {value!r}; expected a table; {{}} takes the usual way")
        if isinstance(value, Schedule) and (value.start, value.end) != (0, 1):
            raise InputError(f"it goes from {value.start} to {value.end}; expected from 0 to 1")
        return value

    return BeforeValidator(read)


def _write_rise(schedule: Schedule | None) -> Any:
    return schedule and {key: getattr(schedule, key) for key in ("shape", "after", "until")}


def _write_penalty(penalty: Penalty | None) -> Any:
    if penalty is None:
        return {}  # written out: an absent penalty would be inherited when read again
    tables: dict[str, Any] = {}
    for term in penalty.terms:
        name, table = _PENALTY.entry(term)
        tables.setdefault(name, []).append(table)
    return {
        name: of_class[0] if len(of_class) == 1 else of_class for name, of_class in tables.items()
    }


def _write_gates(gates: Gates | None) -> Any:
    return None if gates is None else dict([_GATES.entry(gates)])


def budget_table(budget: Budget | None) -> Any:
    """A budget as a table, with the one key that is given."""
    return budget and {k: v for k, v in dataclasses.asdict(budget).items() if v is not None}


def _table(name: str) -> WithJsonSchema:
    """In a JSON schema, what `ellzero.recipe_schema` has under that name."""
    return WithJsonSchema({IN_SCHEMA: name})


IN_SCHEMA = "x-table"

PenaltyTable = Annotated[
    Penalty | None,
    BeforeValidator(read_penalty),
    PlainSerializer(_write_penalty),
    _table("penalty"),
]
GatesTable = Annotated[
    Gates | None, BeforeValidator(_read_gates), PlainSerializer(_write_gates), _table("gates")
]
Ramp = Annotated[Schedule | None, _rise("linear"), PlainSerializer(_write_rise), _table("ramp")]
Gradual = Annotated[
    Schedule | None, _rise("cubic"), PlainSerializer(_write_rise), _table("gradual")
]
BudgetTable = Annotated[
    Budget | None, BeforeValidator(_read_budget), PlainSerializer(budget_table), _table("budget")
]
