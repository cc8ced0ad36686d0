"""`ellzero inspect`: the layers of a network and how sparse they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def inspect(
    model: Path, /, *, json_: Annotated[bool, Parameter(name="--json", negative=())] = False
) -> None:
    """Show a network layer by layer: shape, weights, nonzeros, density.

    Example: ellzero inspect runs/demo-1

    Parameters
    ----------
    model
        Run folder, a .safetensors in one, or a packed file.
    json_
        Print one JSON document instead of a table.
    """
    from ellzero.cli.model import open_model
    from ellzero.cli.tables import show_layers
    from ellzero.record import layer_table

    opened = open_model(model)
    masks = opened.masks
    layers = layer_table(masks.weights)
    if json_:
        nonzeros = sum(layer["nonzeros"] for layer in layers)
        document = {
            "model": str(opened.file),
            "weights": masks.numel,
            "nonzeros": nonzeros,
            "nonzero_ratio": masks.numel / nonzeros if nonzeros else None,
            "layers": layers,
        }
        print(json.dumps(document, indent=2))
    else:
        show_layers(layers)
