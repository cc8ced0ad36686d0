"""`ellzero evaluate`: score and loss of a network on a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def evaluate(
    model: Path,
    /,
    *,
    data: str | None = None,
    part: Literal["train", "validation", "test"] = "validation",
    data_root: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Measure a network on the data set it was made with, or on another one.

    Example: ellzero evaluate runs/demo-1 --part test

    Parameters
    ----------
    model
        Run folder, a .safetensors in one, or a packed file.
    data
        Built-in data set or your own package.module:function; by default the run's, which a packed
        file alone does not know.
    part
        Part of the data set; the test part is for the end, when nothing is chosen any more.
    data_root
        Folder that holds data sets, each in a folder of its name.
    json_
        Print one JSON document instead of a table.
    """
    import ellzero as ez
    from ellzero.cli.model import open_model
    from ellzero.cli.tables import show_rows

    opened = open_model(model)
    examples = opened.data(data, data_root)
    source = opened.factory(data)
    found = ez.evaluate(opened.network, examples, part)
    document = {
        "model": str(opened.file),
        "data": source and source.name,
        "part": part,
        "score": found.score,
        "loss": found.loss,
        "error_percent": found.error_percent if examples.scores_accuracy else None,
    }
    if json_:
        print(json.dumps(document, indent=2))
        return
    rows = [("score", f"{found.score:.4f}"), ("loss", f"{found.loss:.4f}")]
    if examples.scores_accuracy:
        rows.insert(0, ("error", f"{found.error_percent:.2f} %"))
    show_rows(f"{opened.file} on {document['data']}, {part}", rows, ("", part))
