"""`ellzero inspect`: the layers of a network and how sparse they are."""

from __future__ import annotations

import json

from ellzero.cli.options import Json, Model, Trust


def inspect(model: Model, /, *, trust: Trust = False, json_: Json = False) -> None:
    """Show a network layer by layer: shape, weights, nonzeros, density.

    Example: ellzero inspect runs/demo-1
    """
    from ellzero.cli.tables import show_layers
    from ellzero.record import layer_table, sizes
    from ellzero.runs import open_run

    run = open_run(model, trust=trust)
    weights = run.masks.weights
    layers, size = layer_table(weights), sizes(run.model, weights)
    if json_:
        tables = [layer.to_table() for layer in layers]
        document = {"model": str(run.file), **size.to_table(), "layers": tables}
        print(json.dumps(document, indent=2))
    else:
        show_layers(layers, size)
