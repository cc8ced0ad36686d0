"""`ellzero evaluate`: score and loss of a network on a data set."""

from __future__ import annotations

import json
from typing import Literal

from ellzero.cli.options import DataRoot, Json, Model, Trust


def evaluate(
    model: Model,
    /,
    *,
    data: str | None = None,
    part: Literal["train", "validation", "test"] = "validation",
    data_root: DataRoot = None,
    trust: Trust = False,
    json_: Json = False,
) -> None:
    """Measure a network on the data set it was made with, or on another one.

    Example: ellzero evaluate runs/demo-1 --part test

    Parameters
    ----------
    data
        Built-in data set or your own package.module:function; by default the run's, which a packed
        file alone does not know.
    part
        Part of the data set; the test part is for the end, when nothing is chosen any more.
    """
    import ellzero as ez
    from ellzero.cli.tables import show_rows

    run = ez.open_run(model, data_root=data_root, trust=trust)
    examples = run.data(data)
    evaluation = ez.evaluate(run.model, examples, part)
    of_recipe = run.recipe and run.recipe.data
    name = data or (of_recipe and of_recipe.name)
    document = {
        "model": str(run.file),
        "data": name,
        "part": part,
        "score": evaluation.score,
        "loss": evaluation.loss,
        "error_percent": evaluation.error_percent if examples.scores_accuracy else None,
    }
    if json_:
        print(json.dumps(document, indent=2))
        return
    score = ("score", f"{evaluation.score:.4f}")
    if examples.scores_accuracy:
        score = ("error", f"{evaluation.error_percent:.2f} %")
    rows = [score, ("loss", f"{evaluation.loss:.4f}")]
    show_rows(f"{run.file} on {name}, {part}", rows, ("", part))
