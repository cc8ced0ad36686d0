"""Which run a file is of: the settings that a resumed run must share with it, and its origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ellzero.errors import InputError
from ellzero.model_file import read_metadata
from ellzero.recipe import Recipe

FREE = (
    "name", "device", "threads", "parallel", "checkpoint_seconds", "tensorboard", "data.data_root",
    "reference.file",
)  # fmt: skip
"""Keys that may change when a run is resumed: its weights do not hang on them."""


def settings_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe's tables that must be the same in a resumed run, by dotted keys.

    Of files it matters whether there is one: the checkpoint holds what was read.

    Example:
        >>> settings_of({"name": "a", "seed": 1, "train": {"epochs": 2, "file": "b"}})
        {'seed': 1, 'train.epochs': 2, 'train.file': True}
    """
    return dict(_flat(table, ""))


def with_newer_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file, with the defaults of keys that are newer than the file.

    Example:
        >>> with_newer_keys({"seed": 1}, {"seed": 2, "train.clip_grad_norm": 1.0})
        {'seed': 1, 'train.clip_grad_norm': 0.0}
    """
    defaults = settings_of(Recipe.parse({"prune": {"sparsity": 0.0}}).to_table())
    newer = {key: defaults[key] for key in now if key in defaults and key not in before}
    return {**before, **newer}


def require_same(
    before: Mapping[str, Any], now: Mapping[str, Any], source: Path, remedy: str
) -> None:
    """Refuse to resume a run by another recipe than its own, for that would be a bit of both.

    Args:
        before: the settings that the run began with, from `settings_of`.
        now: those that it is to go on with.
        source: the file that `before` was read from.
        remedy: what to do, for the message.

    Raises:
        InputError: they differ; it names the first key that does.
    """
    # of what other stages take over from `train`, that is the one to name
    for key in sorted({**before, **now}, key=lambda key: not key.startswith("train.")):
        if before.get(key) != now.get(key):
            raise InputError(
                f"{source} has {key} = {before.get(key)!r}, the recipe to resume with "
                f"{now.get(key)!r}; {remedy}"
            )


def origin(recipe: Recipe) -> dict[str, Any]:
    """What the file of a network that other runs may start from says of the run it is of."""
    return {"recipe": recipe.name, "seed": recipe.seed}


def require_origin(file: Path, name: str, recipe: Recipe) -> None:
    """Refuse a network's file that another run has written than the one it is taken for.

    What a file does not say is not asked: older ones say neither recipe nor seed.

    Args:
        file: of a run's `reference.safetensors` or `trained.safetensors`.
        name: the recipe's name of the run that should have written it.
        recipe: the recipe that goes on with it: of the same seed, network and data.

    Raises:
        InputError: it says another name, seed, network or data; it cannot be read.
    """
    expected = {
        **origin(recipe),
        "recipe": name,
        "network": recipe.model and recipe.model.model_dump(mode="json"),
        "data": recipe.data and recipe.data.model_dump(mode="json"),
    }
    metadata = read_metadata(file)
    for key, value in expected.items():
        if key in metadata and _without_root(metadata[key]) != _without_root(value):
            raise InputError(
                f"{file} says that its {key} is {metadata[key]!r}; expected {value!r}. It is of "
                "another run: remove its folder, so that it is run anew"
            )


def _flat(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        dotted = f"{path}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{dotted}.")
        elif dotted == "train.file":
            yield dotted, True
        elif dotted not in FREE:
            yield dotted, value


def _without_root(value: Any) -> Any:
    """A data set's table without the folder that it lies in, which differs between machines."""
    if not isinstance(value, Mapping):
        return value
    return {key: option for key, option in value.items() if key != "data_root"}
