"""`ellzero init`: a project to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ellzero.cli.options import Json


def init(
    folder: Path = Path(),
    /,
    *,
    for_: Annotated[
        Literal["network", "images", "table"] | None, Parameter(name="--for", negative=())
    ] = None,
    data: Path | None = None,
    target: str | None = None,
    json_: Json = False,
) -> None:
    """Write a commented recipe, a network and data to begin with, which `ellzero run` takes as is.

    Example: ellzero init wine --data wine.csv --target quality

    Parameters
    ----------
    folder
        Where it is written, by default here; nothing is overwritten.
    for_
        A network of your own (the default), images, or a table.
    data
        Your folder or archive of images, a folder in it for each class; or your CSV file.
    target
        Column of the table to predict, by default the last one.
    """
    from ellzero.cli.tables import say
    from ellzero.projects import KINDS, RECIPE, start

    started = start(folder, for_, data=data, target=target)
    if json_:
        document = {
            "folder": str(started.folder),
            "for": started.kind,
            "files": [str(path) for path in started.files],
            "notes": started.notes,
        }
        print(json.dumps(document, indent=2))
        return
    for note in started.notes:
        say(note)
    say(f"written: {', '.join(map(str, started.files))}")
    go = "" if folder == Path() else f"cd {folder} && "
    say(f"next: {go}ellzero check {RECIPE}, then ellzero run {RECIPE}")
    if for_ is None and data is None:
        others = " or ".join(f"--for {kind}" for kind in KINDS if kind != started.kind)
        say(f"this is --for {started.kind}; others: {others}; --data takes your images or table")
