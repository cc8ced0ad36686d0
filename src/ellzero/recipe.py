"""Recipes: everything a run is told, as frozen models that are read from TOML."""

from __future__ import annotations

import math
import reprlib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ellzero.documents import brief, parse_toml, read_toml, require_plain
from ellzero.errors import InputError
from ellzero.penalties import Penalty
from ellzero.pruning import Scope, kept_count, minimums
from ellzero.recipe_fields import (
    BudgetTable,
    GatesTable,
    Gradual,
    PenaltyTable,
    Ramp,
    added,
    read_penalty,
    require_known,
)
from ellzero.regularizers import LayerScale
from ellzero.schedules import ScheduleShape


class Table(BaseModel):
    """A table of a recipe: frozen, and an unknown key is an error that names the nearest one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _know_keys(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and cls.model_config.get("extra") == "forbid":
            require_known(value, list(cls.model_fields))
        return value


class Document(Table):
    """A table that stands alone, a recipe or a study: what is wrong in it is an `InputError`."""

    if not TYPE_CHECKING:  # where the fields are its arguments

        def __init__(self, /, *positional: Any, **tables: Any) -> None:
            if positional:
                name = type(self).__name__
                raise InputError(f"{name} takes its tables by name; {name}.parse takes a mapping")
            require_plain(tables)
            try:
                super().__init__(**tables)
            except ValidationError as error:
                raise InputError(explain(error)) from None

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
        return {"name": value} if isinstance(value, str) else value

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


class Optimization(Table):
    """How the weights are moved: the keys that reference, train and finetune share."""

    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    decay: ScheduleShape = "cosine"
    floor: float = Field(default=0.0, ge=0, le=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    penalty: PenaltyTable = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weight_decay and self.optimizer != "adamw":
            raise InputError(
                f"weight_decay goes with optimizer = 'adamw', not {self.optimizer!r}; "
                "as a term of the loss write penalty = {l2 = {strength = ...}}"
            )
        return self


class Reference(Optimization):
    """How the dense reference is trained, or the file of a trained one."""

    epochs: int = Field(default=10, ge=1)
    file: Path | None = None


class Train(Optimization):
    """The regularized training, or the file of a network that has been trained so.

    It starts from a reference that was given, or else from the initial weights; `start` says which
    where that is not what is wanted.
    """

    epochs: int = Field(default=20, ge=0)
    start: Literal["initial", "reference"] | None = None
    file: Path | None = None
    gates: GatesTable = None
    layer_scale: LayerScale | None = None
    ramp: Ramp = None


class Finetune(Optimization):
    """The training of what is left, after each pruning."""

    epochs: int = Field(default=10, ge=0)
    dropout: bool = True


TARGETS = ("sparsity", "nonzeros", "budget")


class Prune(Table):
    """How far the network is pruned, and in which way: one of sparsity, nonzeros and budget.

    One round by default; under a budget five, so that a round that lost too much is followed by
    others that go less far.
    """

    sparsity: float | None = Field(default=None, ge=0, lt=1)
    nonzeros: int | None = Field(default=None, ge=1)
    budget: BudgetTable = None
    rounds: int = Field(default=1, ge=1)
    gradual: Gradual = None
    scope: Scope = "global"
    keep_per_layer: int | None = Field(default=None, ge=0)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _allow_rounds(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("budget") is not None:
            return {"rounds": 5, **value}
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [n for n in TARGETS if getattr(self, n) is not None]
        if len(given) != 1:
            raise InputError(
                f"got {' and '.join(given) or 'nothing to go by'}; expected exactly one of "
                f"{', '.join(TARGETS)}"
            )
        if self.gradual and (self.budget or self.rounds > 1):
            raise InputError("a gradual schedule goes with a sparsity or nonzeros, and one round")
        if self.scope == "layer" and self.sparsity is None:
            raise InputError("scope = 'layer' goes with a sparsity")
        return self

    def target(self, numel: int) -> int | None:
        """How many of the selected weights stay at the end; None under a budget."""
        if self.sparsity is not None:
            return kept_count(numel, self.sparsity)
        if self.nonzeros is not None and self.nonzeros > numel:
            raise InputError(
                f"prune.nonzeros is {self.nonzeros}; only {numel} weights are selected"
            )
        return self.nonzeros

    def targets(self, weights: Collection[Tensor]) -> list[int]:
        """How many weights stay at the end, of each layer or of all; none under a budget."""
        least = minimums(weights, self.keep_per_layer)
        if self.scope == "layer" and self.sparsity is not None:
            counts = [kept_count(w.numel(), self.sparsity) for w in weights]
            return [max(pair) for pair in zip(counts, least, strict=True)]
        target = self.target(sum(w.numel() for w in weights))
        if target is not None and sum(least) > target:
            raise InputError(
                f"prune.keep_per_layer keeps {sum(least)} weights, but {target} are to stay in all"
            )
        return [] if target is None else [target]


class Recipe(Document):
    """Everything a run is told; from a TOML file by `Recipe.read`, or from keyword arguments.

    The reference and the fine-tuning take over the optimization settings of `train` where they do
    not say otherwise, and of its penalty the terms that do not sparsify (l2).

    Raises:
        InputError: an unknown key, with the nearest known one; a value of the wrong kind or out of
            range.

    Example:
        >>> import ellzero as ez
        >>> recipe = ez.Recipe.parse(
        ...     {
        ...         "train": {"epochs": 5, "penalty": {"l0": {"strength": 1e-5}}},
        ...         "prune": {"sparsity": 0.95},
        ...     }
        ... )
        >>> recipe.train.penalty
        L0(strength=1e-05, form='gradient', beta=5.0)
    """

    name: str = Field(default="run", pattern=r"^\w[^/\\\n]*$")
    model: Factory | None = None
    data: Factory | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    channels_last: bool = False
    compile: bool = False
    checkpoint_seconds: float = Field(default=120.0, ge=0)
    on_divergence: Literal["stop", "retry"] = "stop"
    reference: Reference = Field(default_factory=Reference)
    train: Train = Field(default_factory=Train)
    finetune: Finetune = Field(default_factory=Finetune)
    prune: Prune

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        train = _set_fields(value.get("train", {}))
        if not isinstance(train, Mapping):
            return value
        shared = {key: train[key] for key in Optimization.model_fields if key in train}
        if "penalty" in shared:
            try:
                shared["penalty"] = _without_sparsifying(read_penalty(shared["penalty"]))
            except InputError as error:
                raise InputError(f"train.penalty: {error}") from None
        inherited = {}
        for stage in ("reference", "finetune"):
            table = _set_fields(value.get(stage, {}))
            inherited[stage] = {**shared, **table} if isinstance(table, Mapping) else table
        return {**value, **inherited}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prune.gradual and self.train.gates:
            raise InputError(
                "train.gates: gates choose the weights themselves while they train, so "
                "prune.gradual does not go with them"
            )
        if self.prune.gradual and self.train.file:
            raise InputError(
                "train.file: the training is given, so prune.gradual, which prunes during it, "
                "does not go with it"
            )
        return self

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """A recipe from a TOML file, with overrides such as `"prune.sparsity=0.98"` on top.

        Its name is the file's, unless the file says otherwise.

        Raises:
            InputError: no such file; not TOML; an unknown key; a value that does not fit.
        """
        return cls._from_file(path, overrides)

    def to_table(self) -> dict[str, Any]:
        """The whole recipe as nested tables, every default spelled out; `parse` reads them."""
        return _given(self.model_dump(mode="json"))

    def to_toml(self) -> str:
        """The same as TOML."""
        return tomli_w.dumps(self.to_table())


def _set_fields(table: Any) -> Any:
    """The keys that a table was made with, where it is one already."""
    if not isinstance(table, Optimization):
        return table
    return {key: getattr(table, key) for key in table.model_fields_set}


def _given(table: dict[str, Any]) -> dict[str, Any]:
    # pydantic's exclude_none would leave out an empty penalty too, which is then inherited
    return {
        key: _given(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def _without_sparsifying(penalty: Penalty | None) -> Penalty | None:
    return added([] if penalty is None else [t for t in penalty.terms if not t.sparsifying])


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
    prune = table.get("prune")
    if keys[0] == "prune" and keys[1:] and keys[1] in TARGETS and isinstance(prune, dict):
        for other in {*TARGETS} - {keys[1]}:  # exactly one may be given: the new one replaces it
            prune.pop(other, None)
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if isinstance(inner, str) and keys[0] in ("model", "data"):
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


def explain(error: ValidationError) -> str:
    """All that is wrong, in one line."""
    mistakes = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if not isinstance(item["input"], Mapping | BaseModel) and item["type"] != "value_error":
            message += f" (got {reprlib.repr(item['input'])})"
        mistakes.append(f"{where}: {message}" if where else message)
    return "; ".join(mistakes)
