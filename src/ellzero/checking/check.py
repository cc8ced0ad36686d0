"""A run, looked at before it is started: mistakes, layers, what ships, steps and time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ellzero.checking.parameters import Parameter, parameters
from ellzero.checking.shipping import Obstacles, obstacles
from ellzero.checking.timing import StageTime, stage_times
from ellzero.data.data import Data
from ellzero.data.flags import flags
from ellzero.errors import EllzeroWarning
from ellzero.preparation import device_named, prepare
from ellzero.recipe import Recipe
from ellzero.recipe_tables import TARGETS
from ellzero.training.precision import costs, settled
from ellzero.training.seeds import settings
from ellzero.training.tensorboard import require_board


@dataclass(frozen=True)
class Check:
    """What a run by a recipe would be.

    Args:
        recipe: resolved, every default spelled out.
        device: where it would train.
        parameters: of the network, each once.
        obstacles: in the way of compaction, packed files and C.
        stages: in order, with an estimate of their time.
        warnings: what is doubtful, in sentences.
    """

    recipe: Recipe
    device: str
    parameters: tuple[Parameter, ...]
    obstacles: Obstacles
    stages: tuple[StageTime, ...]
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """The estimate for all stages, evaluations included; under a budget at most so much."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def left_out(self) -> dict[str, int]:
        """Why parameters are neither penalized nor pruned -> how many numbers."""
        counts: dict[str, int] = {}
        for parameter in self.parameters:
            if not parameter.pruned:
                counts[parameter.reason] = counts.get(parameter.reason, 0) + parameter.count
        return counts

    def to_table(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            **asdict(self),
            "recipe": self.recipe.to_table(),
            "seconds": self.seconds,
            "left_out": self.left_out,
        }


def check(model: nn.Module, data: Data, recipe: Recipe) -> Check:
    """Look at a run before it is started; nothing is written, and the network stays as it is.

    All that a run finds at its start is found here, by the same code. For the time some steps of
    each stage are trained on a copy of the network.

    Args:
        model: the network.
        data: the data.
        recipe: the recipe.

    Raises:
        InputError: what `compress` would raise at its start.
        DivergenceError: a weight becomes NaN within a few steps.

    Example:
        >>> import torch, ellzero as ez
        >>> x, y = torch.randn(200, 4), torch.arange(200) % 2
        >>> recipe = ez.Recipe.parse({"prune": {"sparsity": 0.5}, "train": {"batch_size": 50}})
        >>> checked = check(torch.nn.Linear(4, 2), ez.Data((x, y), (x, y)), recipe)
        >>> [(parameter.name, parameter.pruned) for parameter in checked.parameters]
        [('weight', True), ('bias', False)]
        >>> [(stage.stage, stage.steps) for stage in checked.stages]
        [('reference', 40), ('train', 80), ('finetune', 40)]
    """
    device = device_named(recipe.device)
    recipe = settled(recipe, device)
    if recipe.tensorboard:
        require_board(Path())
    with settings(recipe.threads, device), warnings.catch_warnings():
        warnings.simplefilter("ignore", EllzeroWarning)  # all that is doubtful is in the result
        state = prepare(model, data, recipe, recipe.reference.file, recipe.train.file, device)
        found = tuple(parameters(state.model, state.weights, recipe))
        said = (*state.weights.left_out, *costs(recipe, device), *flags(data))
        stages = tuple(stage_times(state, recipe, data))
        ships = obstacles(model, data)
    return Check(recipe, str(device), found, ships, stages, tuple(dict.fromkeys(said)))


def differences(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that are not at their default, by their dotted names.

    The reference and the fine-tuning take over from the training, which is their default.

    Example:
        >>> recipe = Recipe.parse({"train": {"batch_size": 50}, "prune": {"sparsity": 0.5}})
        >>> differences(recipe)
        {'train.batch_size': 50, 'prune.sparsity': 0.5}
    """
    table = recipe.to_table()
    asked = {key: table["prune"][key] for key in TARGETS if key in table["prune"]}
    inherited = Recipe.parse({"train": table["train"], "prune": asked}).to_table()
    defaults = {**inherited, "train": Recipe.parse({"prune": asked}).to_table()["train"]}
    shown: dict[str, Any] = {}
    for name, value in table.items():
        if not isinstance(value, Mapping) or name in ("model", "data"):
            shown |= {name: value} if name != "name" and value != defaults.get(name) else {}
            continue
        for key, inner in value.items():
            if key in asked or inner != defaults[name].get(key):
                shown[f"{name}.{key}"] = inner
    return shown
