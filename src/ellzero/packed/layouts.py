"""What a graph says about the columns of a weight: which places of an image they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ellzero.graph import Graph
from ellzero.operations import Flatten, Linear, Select
from ellzero.packed.entropy import Integers


@dataclass(frozen=True, eq=False)
class Layout:
    """What is known of a tensor beside its elements.

    Args:
        height, width: of the image whose places dimension 1 has, channel by channel; 1, 1: none.
        places: the tensor, by its number, that tells at which places the columns are.
        indices: that tensor's values.
    """

    height: int = 1
    width: int = 1
    places: int | None = None
    indices: Integers | None = None


def layouts(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Layout]:
    """Layouts of the linear layers that read an image, flattened and perhaps selected from."""
    shapes = graph.shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    nodes = {node.name: node for node in graph.nodes}
    numbers = {name: number for number, name in enumerate(tensors)}
    known = {}
    for node in graph.nodes:
        if not isinstance(node.op, Linear) or node.op.transposed:
            continue
        source, places, indices = nodes[node.inputs[0]], None, None
        if isinstance(source.op, Select):
            name = source.weights["indices"]
            places, indices = numbers[name], tensors[name].numpy()
            source = nodes[source.inputs[0]]
        if not isinstance(source.op, Flatten):
            continue
        image = shapes[source.inputs[0]]
        if len(image) > 1:
            known[node.weights["weight"]] = Layout(image[-2], image[-1], places, indices)
    return known
