"""The stages of a recipe: how the weights are moved in the reference, train and finetune."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from torch import nn

from ellzero.errors import EllzeroError, InputError, is_number
from ellzero.optimizers import (
    MOMENTUM,
    Group,
    canonical,
    default_momentum,
    has_argument,
    made,
    optimizer_class,
    require_options,
)
from ellzero.recipe_fields import GatesTable, PenaltyTable, Ramp, refuse_use
from ellzero.recipe_mistakes import explain
from ellzero.recipe_tables import LENGTHS, Factory, Listed, Table, Whole
from ellzero.regularizers import LayerScale
from ellzero.schedules import ScheduleShape


class Optimization(Table):
    """How the weights are moved: the keys that reference, train and finetune share."""

    batch_size: Whole = Field(default=128, ge=1)
    """Examples of a batch, over all processes together."""
    gradient_accumulation_steps: Whole = Field(default=1, ge=1)
    """Batches that make one step of the optimizer."""
    optimizer: str | Factory = "adam"
    """A class of torch.optim, or your package.module:Class; or a table with further arguments."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The peak: reached linearly over the warm-up, then left by the decay."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the stage in which the rate rises."""
    decay: ScheduleShape = "cosine"
    """How the rate falls after the warm-up; constant: not at all."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """What the rate ends at, as a fraction of the peak."""
    momentum: float = Field(default=MOMENTUM, ge=0, lt=1)
    """Of sgd; other classes that have one begin with the default of torch."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of optimizers that have one, but adam: take adamw, or penalty.l2."""
    no_decay: tuple[Group, ...] = Listed
    """Parameters without weight decay: biases, normalization layers."""
    clip_grad_norm: float = Field(default=0.0, ge=0)
    """The largest norm of the gradient, the penalty's part in it; 0: none."""
    clip_grad_value: float = Field(default=0.0, ge=0)
    """The largest entry of the gradient, instead of its norm; 0: none."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Exponential average of the weights, which is then the network that counts; 0: none."""
    mixup: float = Field(default=0.0, ge=0)
    """Pairs of examples are laid over each other, by Beta(mixup, mixup); 0: none."""
    penalty: PenaltyTable = None
    """Penalties, each a table under its name, or a list of tables; they are added."""

    _optimizer_is_name: bool = PrivateAttr(default=False)
    """Whether its class was not imported, as the recipe is only shown."""

    @model_validator(mode="before")
    @classmethod
    def _settle_momentum(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "optimizer" in value and "momentum" not in value:
            with suppress(EllzeroError):  # which the optimizer's own check raises
                return {"momentum": default_momentum(name_of(value["optimizer"])), **value}
        return value

    @field_validator("optimizer", mode="before")
    @classmethod
    def _name_optimizer(cls, value: Any) -> Any:
        if isinstance(value, str | Factory):
            return value
        try:
            return Factory.model_validate(value)  # whose mistakes are told once, not as a union's
        except ValidationError as error:
            raise InputError(explain(error)) from None

    @field_validator("optimizer", mode="after")
    @classmethod
    def _know_optimizer(cls, value: str | Factory) -> str | Factory:
        name, options = (value, {}) if isinstance(value, str) else (value.name, value.options)
        found = optimizer_class(name)
        if found is not None:
            require_options(name, found, options)
        return Factory(name=canonical(name), **options) if options else canonical(name)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.clip_grad_norm and self.clip_grad_value:
            raise InputError("got clip_grad_norm and clip_grad_value; expected one (0: none)")
        name = name_of(self.optimizer)
        cls = optimizer_class(name)
        if cls is None:
            self._optimizer_is_name = True
            return self
        # what torch's Adam has by that name is no decay but a term that it rescales
        decays = has_argument(cls, "weight_decay") and cls is not torch.optim.Adam
        if self.weight_decay and not decays:
            raise InputError(
                f"weight_decay does not go with optimizer {name!r}; take 'adamw', or as a term of "
                "the loss penalty = {l2 = {strength = ...}}"
            )
        # the default is spelled out in every recipe that is written
        if self.momentum != MOMENTUM and not has_argument(cls, "momentum"):
            raise InputError(f"momentum does not go with optimizer {name!r}, which has none")
        return self

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a network's parameters.

        Raises:
            InputError: the class refuses its options, or parameters of this network; a recipe that
                is only shown names a class of the user's.
        """
        if self._optimizer_is_name:
            refuse_use("optimizer", name_of(self.optimizer))
        return made(
            model,
            name_of(self.optimizer),
            {} if isinstance(self.optimizer, str) else self.optimizer.options,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            no_decay=self.no_decay,
        )


OF_OPTIMIZER = ("momentum", "weight_decay")
"""Keys that mean something to one class of optimizers, and are not taken over to another."""


def name_of(optimizer: Any) -> str:
    """The name of an optimizer, however it is written; empty where that is no way to write it."""
    if isinstance(optimizer, Factory):
        return optimizer.name
    name = optimizer.get("name") if isinstance(optimizer, Mapping) else optimizer
    return canonical(name) if isinstance(name, str) else ""


class StageTable(Optimization):
    """How the weights are moved in a stage, and how long: so many epochs, or optimizer steps."""

    epochs: Whole | None = Field(default=10, ge=0)
    """Passes over the training data."""
    steps: Whole | None = Field(default=None, ge=1)
    """Steps of the optimizer, in the place of epochs; the last epoch ends early."""

    @model_validator(mode="before")
    @classmethod
    def _count_steps(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("steps") is not None:
            return {"epochs": None, **value}
        return value

    @model_validator(mode="after")
    def _have_one_length(self) -> Self:
        given = [key for key in LENGTHS if getattr(self, key) is not None]
        if len(given) != 1:
            raise InputError(f"got {' and '.join(given) or 'no length'}; expected epochs or steps")
        return self

    @property
    def length(self) -> int:
        """How long it is, in what it counts: epochs or steps."""
        length = self.steps if self.epochs is None else self.epochs
        assert length is not None
        return length


class Reference(StageTable):
    """How the dense reference is trained, or the file of a trained one."""

    epochs: Whole | None = Field(default=10, ge=1)
    """Passes over the training data."""
    file: Path | None = Field(default=None, strict=False)
    """A trained network, .safetensors; training starts from its weights."""


class Distillation(Table):
    """How much the outputs of the reference count; a number is short for the weight alone.

    The loss is `(1 - weight) * loss + weight * distance` to the reference's outputs; weight 0: no
    distillation. Logits are divided by the temperature.
    """

    weight: float = Field(ge=0, le=1)
    """How much the reference counts beside the loss; 0: not at all."""
    temperature: float = Field(default=2.0, gt=0)
    """What the logits are divided by."""

    @model_validator(mode="before")
    @classmethod
    def _read_weight(cls, value: Any) -> Any:
        return {"weight": value} if is_number(value) else value


class Distilled(StageTable):
    """A stage after the reference, which it may learn from."""

    distillation: Distillation | None = None
    """The network learns from the outputs of the reference, too; a number is the weight alone."""


class Train(Distilled):
    """The regularized training, or the file of a network that has been trained so.

    It starts from a reference that was given, or else from the initial weights; `start` says which
    where that is not what is wanted.
    """

    epochs: Whole | None = Field(default=20, ge=0)
    """Passes over the training data."""
    start: Literal["initial", "reference"] | None = None
    """What it starts from; left out: a reference that was given, else the initial weights."""
    file: Path | None = Field(default=None, strict=False)
    """A training that is done, trained.safetensors of a run: prune and fine-tune it."""
    gates: GatesTable = None
    """A method with parameters of its own, a table under its name."""
    layer_scale: LayerScale | None = None
    """A factor on the strength of l0 for each layer, by its number of weights; left out: none."""
    ramp: Ramp = None
    """The strength rises from 0; left out: it is there from the beginning."""


class Finetune(Distilled):
    """The training of what is left, after each pruning."""

    dropout: bool = True
    """Whether dropout layers of the network act; a sparse network hardly overfits."""
