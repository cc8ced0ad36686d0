"""Factories: from a name in a recipe to a network or a data set, built-in or the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ellzero.data import DATA_SETS
from ellzero.data.data import Data
from ellzero.errors import EllzeroError, InputError, UserCodeError, nearest
from ellzero.model_file import load
from ellzero.networks import NETWORKS
from ellzero.recipe import Factory, Recipe
from ellzero.user_code import imported

PACKED = ".ellz"
"""How the name of a packed file ends, where a recipe names it as the network."""


def require_recipe(path: Path) -> None:
    """Make sure that what is given as a recipe is no packed file and no folder.

    Raises:
        InputError: it is; how it is used.
    """
    if path.suffix == PACKED:
        raise InputError(
            f"{path} is a packed file, no recipe; name it in one as its model, or with "
            f"--set model={path}"
        )
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, no recipe; name the file in it, or go on with a run by "
            f"`ellzero run --resume {path}`"
        )


def build_model(factory: Factory | None, seed: int) -> nn.Module:
    """The network that a recipe names, its weights drawn from the seed; or that of a packed file.

    Raises:
        InputError: no such network or file; options it does not take; not a network.
        UserCodeError: the user's own code failed.
    """
    if factory is not None and factory.name.endswith(PACKED):
        if factory.options:
            raise InputError(f"model {factory.name!r} is a packed file; it takes no options")
        return load(factory.name)
    function = _find("model", factory, NETWORKS)
    with torch.random.fork_rng([]):  # a network is made on the CPU
        torch.manual_seed(seed)
        model = _call("model", function, factory)
    if not isinstance(model, nn.Module):
        raise InputError(f"model {_name(factory)} gave {type(model).__name__}; expected nn.Module")
    return model


def with_data_root(factory: Factory | None, data_root: Path | None) -> Factory | None:
    """The factory with the folder of data sets among its options, if its function takes one."""
    if factory is None or data_root is None:
        return factory
    if "data_root" not in inspect.signature(_find("data", factory, DATA_SETS)).parameters:
        return factory
    return Factory(**{**factory.model_dump(), "data_root": str(data_root.absolute())})


def built(recipe: Recipe, data_root: Path | None = None) -> tuple[Recipe, nn.Module, Data]:
    """A recipe that names the folder of data sets, and the network and data that it names.

    Raises:
        InputError: as `build_model` and `build_data` raise.
        UserCodeError: the user's own code failed.
    """
    recipe = recipe.model_copy(update={"data": with_data_root(recipe.data, data_root)})
    data = build_data(recipe.data)
    return recipe, build_model(recipe.model, recipe.seed), data


def build_data(factory: Factory | None) -> Data:
    """The data set that a recipe names.

    Raises:
        InputError: no such data set; options it does not take; not an `ez.Data`.
        UserCodeError: the user's own code failed.
    """
    data = _call("data", _find("data", factory, DATA_SETS), factory)
    if not isinstance(data, Data):
        raise InputError(f"data {_name(factory)} gave {type(data).__name__}; expected ez.Data")
    return data


def _name(factory: Factory | None) -> str:
    return "" if factory is None else factory.name


def _find(what: str, factory: Factory | None, built_in: Mapping[str, str]) -> Callable[..., Any]:
    if factory is None:
        raise InputError(f'the recipe names no {what}; write {what} = "..." in it')
    name = built_in.get(factory.name, factory.name)
    if ":" not in name:
        raise InputError(
            f"{what} {factory.name!r} is not built in ({nearest(factory.name, tuple(built_in))}); "
            "your own is written package.module:function"
        )
    return imported(f"{what} {factory.name!r}", name)


def _call(what: str, function: Callable[..., Any], factory: Factory | None) -> Any:
    assert factory is not None
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for option in factory.options:
        if option not in signature.parameters and not takes_any:
            raise InputError(
                f"{what} {factory.name!r} has no option {option!r}; "
                f"{nearest(option, tuple(signature.parameters))}"
            )
    missing = [
        name
        for name, p in signature.parameters.items()
        if p.default is p.empty
        and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)
        and name not in factory.options
    ]
    if missing:
        raise InputError(
            f"{what} {factory.name!r} needs {' and '.join(missing)}; write "
            f'{what} = {{name = "{factory.name}", {missing[0]} = ...}}'
        )
    try:
        return function(**factory.options)
    except EllzeroError:
        raise
    except Exception as error:
        kind = UserCodeError if ":" in factory.name else InputError
        raise kind(f"{what} {factory.name!r} failed: {type(error).__name__}: {error}") from error
