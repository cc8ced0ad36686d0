"""A study: what is compared, as frozen tables read from TOML, and the cells that come of it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, model_validator

from ellzero.errors import InputError, is_number, nearest
from ellzero.pruning.budget import Budget
from ellzero.recipe import Recipe
from ellzero.recipe_fields import BudgetTable, budget_table, portable
from ellzero.recipe_tables import TARGETS as RECIPE_TARGETS
from ellzero.recipe_tables import Document, Listed, Table, Whole, without_others
from ellzero.terminal import plain

TARGETS = ("sparsities", "nonzeros", "budgets")
STAGES = ("reference", "train", "finetune")


@dataclass(frozen=True)
class Target:
    """How far the networks of a column of the study are pruned: a part of a recipe's `prune`."""

    name: str
    """For folders: `sparsity-0.98`."""
    label: str
    """For people: `98 % zeros`."""
    prune: Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """A method with a strength and a seed: trained once, then pruned to every target."""

    method: str
    strength: float | None
    seed: int

    @property
    def name(self) -> str:
        """For folders: `l1-3e-05-seed0`."""
        strength = "" if self.strength is None else f"-{self.strength:g}"
        return f"{self.method}{strength}-seed{self.seed}"


@dataclass(frozen=True)
class Cell:
    """One run of a study: a training, pruned to one target and fine-tuned."""

    training: Training
    target: Target

    @property
    def name(self) -> str:
        """The folder's name: `l1-3e-05-seed0-sparsity-0.98`."""
        return f"{self.training.name}-{self.target.name}"


class Method(Table):
    """A method: the strengths to try, and the fragment of a recipe that they go into.

    Its name is a built-in one (`studies` documents them), and then the fragment is there already;
    what is given here goes on top.
    """

    label: str | None = None
    strengths: tuple[float, ...] = Listed
    train: dict[str, Any] = Field(default_factory=dict)
    finetune: dict[str, Any] = Field(default_factory=dict)
    prune: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _check_strengths(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "strengths" in value:
            strengths = value["strengths"]
            if not isinstance(strengths, list | tuple) or not strengths:
                raise InputError(
                    f"strengths is {strengths!r}; expected a list such as [1e-5, 1e-4]"
                )
            for strength in strengths:
                if not is_number(strength) or not 0 <= strength < math.inf:
                    raise InputError(f"strengths holds {strength!r}; expected finite numbers >= 0")
        return value

    def fragment(self, strength: float | None) -> dict[str, Any]:
        """The part of a recipe that makes the method, with this strength in its place."""
        parts = {"train": self.train, "finetune": self.finetune, "prune": self.prune}
        fragment = merged({}, parts)
        if strength is not None:
            (place,) = _open_strengths(fragment)
            place["strength"] = strength
        return fragment


class Study(Document):
    """What is compared: methods x strengths x seeds x targets, all by one recipe.

    Every method is tuned on the first seed: it is trained with each of its strengths, pruned to
    every target and fine-tuned, and for each target the strength with the best validation score
    goes on to the other seeds (under a budget: the one with the fewest weights). All methods with
    strengths have equally many.

    Keys: `seeds`; one of `sparsities`, `nonzeros` and `budgets`; `recipe`, an ordinary recipe
    without seed and target; `methods`, a table for each, see `Method`; `stalled_minutes` (60): a
    cell that makes no progress for so long is warned of, and after twice as long its process is
    killed (0: never).

    Raises:
        InputError: an unknown key or method, with the nearest known one;
            an empty grid; two cells of one name; a strength of the wrong kind.

    Example:
        >>> import ellzero as ez
        >>> study = ez.Study.parse(
        ...     {
        ...         "sparsities": [0.9, 0.95],
        ...         "methods": {"magnitude": {}, "l1": {"strengths": [1e-5, 1e-4]}},
        ...     }
        ... )
        >>> [training.name for training in study.tuning()]
        ['magnitude-seed0', 'l1-1e-05-seed0', 'l1-0.0001-seed0']
    """

    name: str = Field(default="study", pattern=r"^\w[^/\\\n]*$")
    seeds: tuple[Whole, ...] = Field(default=(0, 1, 2), strict=False)
    sparsities: tuple[float, ...] = Listed
    nonzeros: tuple[Whole, ...] = Listed
    budgets: tuple[BudgetTable, ...] = Listed
    stalled_minutes: float = Field(default=60.0, ge=0)
    recipe: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, Method]

    @model_validator(mode="before")
    @classmethod
    def _know_methods(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("methods"), Mapping):
            return value
        known = built_in()
        methods = {}
        for name, table in value["methods"].items():
            if not isinstance(table, Mapping):
                raise InputError(f"methods.{name} is {table!r}; expected a table")
            if name not in known and not {"train", "finetune", "prune"} & table.keys():
                raise InputError(
                    f"unknown method {name!r}; {nearest(name, tuple(known))} (a method of your own "
                    f"needs a fragment of a recipe, such as methods.{name}.train.penalty.l1 = {{}})"
                )
            methods[name] = _portable(f"methods.{name}", merged(known.get(name, {}), table))
        recipe = value.get("recipe", {})
        if isinstance(recipe, Mapping):
            recipe = _portable("recipe", recipe)
        return {**value, "methods": methods, "recipe": recipe}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if None in self.budgets:
            raise InputError("budgets has an entry that is None; expected tables")
        kinds = [kind for kind in TARGETS if getattr(self, kind)]
        if len(kinds) != 1:
            raise InputError(
                f"got {' and '.join(kinds) or 'nothing'} to prune to; expected exactly one of "
                f"{', '.join(TARGETS)}, and not empty"
            )
        for what in ("seeds", "methods"):
            if not getattr(self, what):
                raise InputError(f"{what} is empty; a study needs at least one")
        counts = {len(m.strengths): n for n, m in self.methods.items() if m.strengths}
        if len(counts) > 1:
            (few, one), (many, other) = sorted(counts.items())[:2]
            raise InputError(
                f"methods.{one} has {few} strengths and methods.{other} has {many}; give every "
                "method equally many, or the comparison is not fair"
            )
        for key in ("train", "finetune", "prune"):  # `merged` would put its own tables over them
            if not isinstance(self.recipe.get(key, {}), Mapping):
                raise InputError(f"recipe.{key} is {self.recipe[key]!r}; expected a table")
        for key in ("seed", "name"):
            if key in self.recipe:
                raise InputError(f"recipe.{key}: a study sets it itself (seeds, name of the cell)")
        for key in RECIPE_TARGETS:
            if key in self.recipe.get("prune", {}):
                raise InputError(f"recipe.prune.{key}: a study says it by {', '.join(TARGETS)}")
        try:
            self.to_toml()
        except TypeError as error:
            raise InputError(
                f"a study is made of plain tables, as TOML has them: {error}"
            ) from None
        try:
            self.reference_recipe(self.seeds[0])
        except InputError as error:
            raise InputError(f"recipe: {error}") from None
        seen: set[str] = set()
        for name, method in self.methods.items():
            _check_method(name, method)
        for cell in self.cells():
            if cell.name in seen:
                raise InputError(
                    f"two cells have the name {cell.name}: a seed, a strength or a target stands "
                    "there twice"
                )
            seen.add(cell.name)
            self.cell_recipe(cell)
        return self

    @property
    def targets(self) -> tuple[Target, ...]:
        """What the networks are pruned to, in the study's order."""
        return (
            *(
                Target(f"sparsity-{s:g}", f"{100 * s:g} % zeros", {"sparsity": s})
                for s in self.sparsities
            ),
            *(Target(f"nonzeros-{n}", f"{n:,} nonzeros", {"nonzeros": n}) for n in self.nonzeros),
            *(_budget_target(budget) for budget in self.budgets if budget),
        )

    def label(self, method: str) -> str:
        """A method's name for people."""
        return plain(self.methods[method].label or method)

    def trainings(self, seed: int) -> Iterator[Training]:
        """Every method with each of its strengths, on one seed."""
        for name, method in self.methods.items():
            for strength in method.strengths or (None,):
                yield Training(name, strength, seed)

    def tuning(self) -> Iterator[Training]:
        """The trainings by which strengths are chosen: all on the first seed."""
        return self.trainings(self.seeds[0])

    def cells(self) -> Iterator[Cell]:
        """All cells that the study may come to run, whatever the tuning chooses."""
        for seed in self.seeds:
            for training in self.trainings(seed):
                for target in self.targets:
                    yield Cell(training, target)

    def cell_recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell.

        Raises:
            InputError: the study's recipe and the method do not make one.
        """
        training = cell.training
        fragment = self.methods[training.method].fragment(training.strength)
        run = {"name": cell.name, "seed": training.seed, "prune": dict(cell.target.prune)}
        table = merged(merged({"train": {"start": "initial"}}, self.recipe), merged(fragment, run))
        try:
            return Recipe.parse(table)
        except InputError as error:
            raise InputError(f"methods.{training.method}: {error}") from None

    def reference_recipe(self, seed: int) -> Recipe:
        """The recipe of the run that trains a seed's reference, and nothing else."""
        run = {
            "name": f"reference-seed{seed}",
            "seed": seed,
            "train": {"epochs": 0, "start": "reference"},
            "finetune": {"epochs": 0},
            "prune": {"sparsity": 0.0},
        }
        return Recipe.parse(merged(self.recipe, run))

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """A study from a TOML file; its name is the file's, unless the file says otherwise.

        Raises:
            InputError: no such file; not TOML; whatever `Study` refuses.
        """
        return cls._from_file(path)

    def to_toml(self) -> str:
        """The study as TOML, built-in methods spelled out; `parse` reads it."""
        tables = self.model_dump(mode="json", exclude_defaults=True)
        return tomli_w.dumps({"name": self.name, "seeds": list(self.seeds), **tables})


def _portable(where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """A fragment of a recipe whose penalties and gates worker processes find as well."""
    fragment = dict(table)
    for stage in STAGES:
        if isinstance(table.get(stage), Mapping):
            try:
                fragment[stage] = portable(table[stage])
            except InputError as error:
                raise InputError(f"{where}: {stage}.{error}") from None
    return fragment


@cache
def built_in() -> dict[str, Any]:
    """The fragments of the methods that are known by name."""
    return tomllib.loads((files("ellzero.study") / "methods.toml").read_text(encoding="utf-8"))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested tables in one; where both have a value, the second's. Neither changes."""
    result = {k: merged({}, v) if isinstance(v, Mapping) else v for k, v in under.items()}
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = result.get(key)
            below = without_others(key, below, value) if isinstance(below, Mapping) else {}
            result[key] = merged(below, value)
        else:
            result[key] = value
    return result


def _open_strengths(fragment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of penalties and gates that have no strength yet."""
    train = fragment["train"]
    open_tables = []
    for kind in ("penalty", "gates"):
        tables = train.get(kind)
        for table in tables.values() if isinstance(tables, dict) else ():
            if isinstance(table, dict) and "strength" not in table:
                open_tables.append(table)
    return open_tables


def _check_method(name: str, method: Method) -> None:
    if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
        raise InputError(f"method name {name!r} cannot be part of a folder's name")
    if len(name) > 100:
        raise InputError(f"method name {name[:20]!r}... has {len(name)} characters; at most 100")
    places = len(_open_strengths(merged({}, {"train": method.train})))
    if method.strengths and places != 1:
        raise InputError(
            f"methods.{name} has strengths and {places} places for them; exactly one penalty or "
            "gates of its fragment must be without a strength of its own"
        )
    if places and not method.strengths:
        raise InputError(f"methods.{name} has no strengths; write strengths = [1e-5, 1e-4]")


def _budget_target(budget: Budget) -> Target:
    limit = budget.limit
    name, label = f"drop-{limit:g}", f"at most {limit:g} points below"
    if budget.max_loss_increase is not None:
        name, label = f"loss-{limit:g}", f"loss at most {100 * limit:g} % above"
    return Target(name, label, {"budget": budget_table(budget)})
