"""Sources: from a name in a recipe to a network or a data set, built-in or the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ellzero.data import DATA_SETS
from ellzero.data.data import Data
from ellzero.errors import EllzeroError, InputError, SourceError, nearest
from ellzero.model_file import load
from ellzero.networks import NETWORKS
from ellzero.own_code import imported
from ellzero.recipe import Source

PACKED = ".ellz"
"""How the name of a packed file ends, where a recipe names it as the network."""


def build_model(source: Source | None, seed: int) -> nn.Module:
    """The network that a recipe names, its weights drawn from the seed; or that of a packed file.

    Raises:
        InputError: no such network or file; options it does not take; not a network.
        SourceError: the user's own code failed.
    """
    if source is not None and source.name.endswith(PACKED):
        return _packed_model(source)
    function = _find("model", source, NETWORKS)
    with torch.random.fork_rng([]):  # a network is made on the CPU
        torch.manual_seed(seed)
        model = _call("model", function, source)
    if not isinstance(model, nn.Module):
        raise InputError(f"model {_name(source)} gave {type(model).__name__}; expected nn.Module")
    return model


def _packed_model(source: Source) -> nn.Module:
    if source.options:
        raise InputError(f"model {source.name!r} is a packed file; it takes no options")
    return load(source.name)


def with_data_root(source: Source | None, data_root: Path | None) -> Source | None:
    """The source with the folder of data sets among its options, if its function takes one."""
    if source is None or data_root is None:
        return source
    if "data_root" not in inspect.signature(_find("data", source, DATA_SETS)).parameters:
        return source
    return Source(**{**source.model_dump(), "data_root": str(data_root.absolute())})


def build_data(source: Source | None) -> Data:
    """The data set that a recipe names.

    Raises:
        InputError: no such data set; options it does not take; not an `ez.Data`.
        SourceError: the user's own code failed.
    """
    data = _call("data", _find("data", source, DATA_SETS), source)
    if not isinstance(data, Data):
        raise InputError(f"data {_name(source)} gave {type(data).__name__}; expected ez.Data")
    return data


def _name(source: Source | None) -> str:
    return "" if source is None else source.name


def _find(what: str, source: Source | None, built_in: Mapping[str, str]) -> Callable[..., Any]:
    if source is None:
        raise InputError(f'the recipe names no {what}; write {what} = "..." in it')
    name = built_in.get(source.name, source.name)
    if ":" not in name:
        raise InputError(
            f"{what} {source.name!r} is not built in ({nearest(source.name, tuple(built_in))}); "
            "your own is written package.module:function"
        )
    return imported(f"{what} {source.name!r}", name)


def _call(what: str, function: Callable[..., Any], source: Source | None) -> Any:
    assert source is not None
    signature = inspect.signature(function)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for option in source.options:
        if option not in signature.parameters and not takes_any:
            raise InputError(
                f"{what} {source.name!r} has no option {option!r}; "
                f"{nearest(option, tuple(signature.parameters))}"
            )
    try:
        return function(**source.options)
    except EllzeroError:
        raise
    except Exception as error:
        kind = SourceError if ":" in source.name else InputError
        raise kind(f"{what} {source.name!r} failed: {type(error).__name__}: {error}") from error
