"""What a kind of project puts into the common recipe, and beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MODULE = "my_project"
"""The module of a project's own code, as recipes name it."""


@dataclass(frozen=True)
class Filling:
    """What a project has of its own.

    Args:
        about: what the project is, for the recipe's first line.
        model: the arguments of its network.
        model_comment: the lines above the network, without `#`.
        data: the table of its data.
        data_comment: the lines above the data.
        budget: which key of a budget fits the data, as a line of the recipe.
        strength: of the penalty.
        notes: what was found in the user's data, in sentences.
        files: further files, by name.
    """

    about: str
    model: Mapping[str, Any]
    model_comment: str
    data: Mapping[str, Any]
    data_comment: str
    budget: str
    strength: str
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


OF_ACCURACY = "budget = { max_accuracy_drop = 0.5 }  # percentage points, on validation data"
OF_LOSS = "budget = { max_loss_increase = 0.1 }  # a tenth more, on validation data"
