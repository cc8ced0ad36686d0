"""A new project: a commented recipe and a module, which `ellzero run` takes as they are."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from string import Template

import tomli_w

from ellzero.errors import InputError, nearest
from ellzero.files import write_atomically
from ellzero.projects.filling import MODULE, Filling
from ellzero.projects.images import images
from ellzero.projects.network import network
from ellzero.projects.table import table
from ellzero.recipe_schema import recipe_schema

KINDS: Mapping[str, Callable[[Path | None, str | None], Filling]] = {
    "network": network,
    "images": images,
    "table": table,
}
"""Kind of project -> what makes its filling, from the user's data and a target; the first is made
where nothing is said."""

RECIPE = "recipe.toml"

SCHEMA = "recipe.schema.json"
"""By which an editor completes keys; the recipe's first line names it."""


@dataclass(frozen=True)
class Started:
    """What was written, and what was found in the user's data, in sentences."""

    folder: Path
    kind: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def start(
    folder: Path, kind: str | None = None, *, data: Path | None = None, target: str | None = None
) -> Started:
    """Write a project into a folder: a recipe, a module, and data where none are given.

    Args:
        folder: made if it is not there; files of other names in it are left alone.
        kind: one of `KINDS`; left out: what fits the data, `network` without any.
        data: a folder or archive of pictures, or a CSV file; looked at, not copied.
        target: the column of the table to predict; left out: the last one.

    Raises:
        InputError: no such kind; data that cannot be used; a file of the same name in the folder.
            Nothing is written then.

    Example:
        >>> import tempfile
        >>> started = start(Path(tempfile.mkdtemp()), "table")
        >>> [path.name for path in started.files]
        ['machines.csv', 'my_project.py', 'recipe.schema.json', 'recipe.toml']
    """
    if kind is None:
        kind = next(iter(KINDS)) if data is None else _kind_of(data)
    if kind not in KINDS:
        raise InputError(f"there is no project for {kind!r}; {nearest(kind, tuple(KINDS))}")
    filling = KINDS[kind](data, target)
    if data is not None and not data.is_absolute():
        path = os.path.relpath(data, folder)  # the run is started there
        filling = replace(filling, data={**filling.data, "path": path})
    templates = files("ellzero.projects") / "templates"
    contents = {
        **filling.files,
        f"{MODULE}.py": (templates / f"{kind}.py").read_bytes(),
        SCHEMA: json.dumps(recipe_schema(), indent=1).encode(),
        RECIPE: _recipe(filling, (templates / RECIPE).read_text("utf-8")).encode(),
    }
    return Started(folder, kind, tuple(_written(folder, contents)), filling.notes)


def _kind_of(data: Path) -> str:
    packed = data.suffix.lower() in (".zip", ".tar", ".gz", ".xz")
    return "images" if data.is_dir() or packed else "table"


def _recipe(filling: Filling, template: str) -> str:
    return Template(template).substitute(
        about=filling.about,
        model=tomli_w.dumps({"model": {"name": f"{MODULE}:network", **filling.model}}),
        model_comment=_comment(filling.model_comment),
        data=tomli_w.dumps({"data": filling.data}),
        data_comment=_comment(filling.data_comment),
        budget=filling.budget,
        strength=filling.strength,
    )


def _comment(text: str) -> str:
    return textwrap.fill(text, 99, initial_indent="# ", subsequent_indent="# ")


def _written(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """The files, once all are written; the recipe comes last.

    Raises:
        InputError: one is there already, or the folder is none.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder, new or empty")
    taken = [name for name in contents if os.path.lexists(folder / name)]
    if taken:
        raise InputError(
            f"{folder} has {' and '.join(taken)} already, and nothing is overwritten; "
            "give another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]
