"""The stages of a recipe: how the weights are moved in the reference, train and finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from ellzero.errors import InputError
from ellzero.recipe_fields import GatesTable, PenaltyTable, Ramp
from ellzero.recipe_tables import Table
from ellzero.regularizers import LayerScale
from ellzero.schedules import ScheduleShape


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
    mixup: float | None = Field(default=None, gt=0)
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
