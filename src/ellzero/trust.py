"""Trust: whether the code that a run's recipe names may be run.

A recipe may name a network, data, penalties, gates and optimizers as `package.module:name`, which
runs code once it is imported. What a user's own recipe names is; what a folder's recipe names only
where the user says that the folder is trusted, or where this very run was begun by this user on
this machine. What was begun here stands outside of the folder, in the user's state folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path

from ellzero.data import DATA_SETS
from ellzero.errors import InputError
from ellzero.networks import NETWORKS
from ellzero.recipe import Factory, Recipe
from ellzero.recipe_stages import name_of
from ellzero.run_folder import RECIPE
from ellzero.user_code import importing

MOST_REMEMBERED = 10_000
"""So many runs are remembered; then the older half is forgotten."""


def code_in(recipe: Recipe) -> Iterator[str]:
    """All that a recipe names of code that is not built in, as messages name it.

    Example:
        >>> recipe = Recipe.parse({"model": "my_project:network", "prune": {"sparsity": 0.9}})
        >>> list(code_in(recipe))
        ["model 'my_project:network'"]
    """
    for what, factory, built_in in (
        ("model", recipe.model, NETWORKS),
        ("data", recipe.data, DATA_SETS),
    ):
        if factory is not None and is_code(factory, built_in):
            yield f"{what} {factory.name!r}"
    for stage in recipe.to_table().values():
        tables = stage if isinstance(stage, Mapping) else {}
        for what in ("penalty", "gates"):
            yield from (f"{what} {name!r}" for name in tables.get(what, ()) if ":" in name)
        optimizer = name_of(tables.get("optimizer"))
        if ":" in optimizer:
            yield f"optimizer {optimizer!r}"


def is_code(factory: Factory, built_in: Mapping[str, str]) -> bool:
    """Whether a network or a data set is made by a function that is not built in."""
    return factory.name not in built_in and ":" in factory.name


def refusal(what: str, folder: Path) -> InputError:
    """The error that tells what a folder's recipe names, and how to allow it."""
    return InputError(
        f"{folder / RECIPE} names the {what}, whose code would be run; if you trust whom this "
        "folder comes from, add --trust (in Python trust=True)"
    )


def trusted_recipe(folder: Path, *, trust: bool) -> Recipe:
    """The recipe of a folder, to go on with its run.

    Args:
        folder: the run's.
        trust: whether the user trusts it.

    Raises:
        InputError: it names code, and neither is it trusted nor was it begun here; as
            `Recipe.read` raises.
    """
    shown = shown_recipe(folder, trust=trust)
    if not (trust or is_remembered(folder)):
        for what in code_in(shown):
            raise refusal(what, folder)
    return shown


def shown_recipe(folder: Path, *, trust: bool) -> Recipe:
    """The recipe of a folder to look at: what may not be imported stays a name.

    Raises:
        InputError: as `Recipe.read` raises.
    """
    with importing(trust or is_remembered(folder)):
        return Recipe.read(folder / RECIPE)


def remember(folder: Path, recipe: Recipe) -> None:
    """Note that this user has begun a run here, if its recipe names code; this never fails."""
    with suppress(OSError):
        if any(code_in(recipe)):
            entry = _entry(folder)
            entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            entry.touch()
            _forget_oldest(entry.parent)


def is_remembered(folder: Path) -> bool:
    """Whether this user has begun the run here, and its recipe is what it was then."""
    try:
        return _entry(folder).is_file()
    except OSError:
        return False


def _entry(folder: Path) -> Path:
    """The empty file whose name says: this folder, with this recipe."""
    place = str(folder.resolve()).encode(errors="surrogateescape")
    named = hashlib.sha256(place + b"\0" + (folder / RECIPE).read_bytes()).hexdigest()
    return user_state_path("ellzero", appauthor=False) / "begun" / named


def _forget_oldest(remembered: Path) -> None:
    entries = list(remembered.iterdir())
    if len(entries) > MOST_REMEMBERED:
        by_age = sorted(entries, key=lambda entry: entry.stat().st_mtime)
        for entry in by_age[: len(entries) // 2]:
            entry.unlink(missing_ok=True)
