"""What MODEL means on the command line: a run folder, or a .safetensors in one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ellzero.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from ellzero.recipe import Recipe


def open_model(path: Path) -> tuple[nn.Module, Recipe, Path]:
    """The network of a run with its weights loaded, the run's recipe, and the file of the weights.

    Raises:
        InputError: no such path; no recipe beside it; a file that is none, or of another network.
    """
    from ellzero.model_file import load
    from ellzero.recipe import Recipe
    from ellzero.record import MODEL, RECIPE
    from ellzero.sources import build_model

    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no model at {file}; expected a run folder, or a .safetensors in one")
    if not (file.parent / RECIPE).is_file():
        raise InputError(f"there is no {RECIPE} beside {file}, so its network is not known")
    recipe = Recipe.read(file.parent / RECIPE)
    return load(file, build_model(recipe.model, recipe.seed)), recipe, file
