"""Recipes: everything a run is told, as frozen models that are read from TOML."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import tomli_w
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ellzero.errors import InputError, is_number
from ellzero.penalties import Penalty
from ellzero.pruning import Scope, kept_count, minimums, require_sparsity
from ellzero.recipe_fields import BudgetTable, Gradual, added, read_penalty
from ellzero.recipe_stages import OF_OPTIMIZER, Finetune, Optimization, Reference, Train, name_of
from ellzero.recipe_tables import TARGETS, Document, Factory, Listed, Table, Whole


class Prune(Table):
    """How far the network is pruned, and in which way: one of sparsity, nonzeros and budget.

    One round by default; under a budget five, so that a round that lost too much is followed by
    others that go less far.
    """

    sparsity: float | None = Field(default=None, ge=0, lt=1)
    """Fraction of the selected weights that become 0; or nonzeros, or budget: one of them."""
    nonzeros: Whole | None = Field(default=None, ge=1)
    """How many of the selected weights stay."""
    budget: BudgetTable = None
    """What may be lost against the reference; the smallest network within it is searched."""
    rounds: Whole = Field(default=1, ge=1)
    """How many times it is pruned and fine-tuned; 5 under a budget."""
    gradual: Gradual = None
    """The sparsity rises within the training, pruned once an epoch; left out: pruned after it."""
    scope: Scope = "global"
    """Over all selected weights together, or each layer to the sparsity on its own."""
    keep_per_layer: Whole | None = Field(default=None, ge=0)
    """The least weights that stay of each layer; left out, a layer may lose all."""
    include: tuple[str, ...] = Listed
    """Shell-style patterns of the names of the parameters that are selected.

    Left out: the weights of linear, convolution and recurrent layers, which "default" stands for.
    """
    exclude: tuple[str, ...] = Listed
    """Patterns of parameter names that are not."""

    @model_validator(mode="before")
    @classmethod
    def _allow_rounds(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("budget") is not None:
            return {"rounds": 5, **value}
        return value

    @field_validator("sparsity", mode="before")
    @classmethod
    def _know_percent(cls, value: Any) -> Any:
        if is_number(value) and value >= 1:
            require_sparsity(value)
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

    REFERENCE: ClassVar[str] = "every key: `ellzero schema`, docs/recipe-reference.md"

    name: str = Field(default="run", pattern=r"^\w[^/\\\n]*$")
    """What the run is called; left out: as the file."""
    model: Factory | None = None
    """The network: a built-in name, your package.module:function or a packed file.

    Or a table of the name and arguments.
    """
    data: Factory | None = None
    """The data: a built-in name or your package.module:function; or a table with options."""
    seed: Whole = Field(default=0, ge=0, lt=2**31)
    """Of initial weights, order of the examples, and all else that is drawn."""
    device: str = "auto"
    """Where it is computed: cpu, cuda, cuda:1, mps; auto is an accelerator if there is one."""
    threads: Whole | None = Field(default=None, ge=1)
    """CPU threads; left out: the default of torch."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of training; evaluations are in float32. auto is bfloat16 where it pays."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes of torchrun train one network."""
    channels_last: bool = False
    """Memory format of convolution networks."""
    compile: bool = False
    """Compiled kernels while training; a CPU needs a C++ compiler."""
    checkpoint_seconds: float = Field(default=120.0, ge=0)
    """Between two checkpoints, written at the end of an epoch; 0: after each epoch."""
    on_divergence: Literal["stop", "retry"] = "stop"
    """A loss that becomes NaN: an error, or the stage begins again with half its learning rate."""
    tensorboard: bool = False
    """The metrics of each epoch for TensorBoard, too."""
    reference: Reference = Field(default_factory=Reference)
    """The dense network that drops are measured against."""
    train: Train = Field(default_factory=Train)
    """The regularized training."""
    finetune: Finetune = Field(default_factory=Finetune)
    """The training of what a pruning leaves."""
    prune: Prune
    """How far it is pruned, and in which way."""

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
            if stage == "finetune" and "distillation" in train:
                shared["distillation"] = train["distillation"]
            table = _set_fields(value.get(stage, {}))
            if isinstance(table, Mapping):
                table = {**_taken_over(shared, table), **table}
            inherited[stage] = table
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


def _taken_over(shared: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage takes over: all, but what belongs to another optimizer than its own."""
    theirs = name_of(shared.get("optimizer", "adam"))
    is_same = "optimizer" not in table or name_of(table["optimizer"]) == theirs
    return {key: value for key, value in shared.items() if is_same or key not in OF_OPTIMIZER}


def _given(table: dict[str, Any]) -> dict[str, Any]:
    # pydantic's exclude_none would leave out an empty penalty too, which is then inherited
    return {
        key: _given(value) if isinstance(value, dict) else value
        for key, value in table.items()
        if value is not None
    }


def _without_sparsifying(penalty: Penalty | None) -> Penalty | None:
    return added([] if penalty is None else [t for t in penalty.terms if not t.sparsifying])
