"""Weights in an ONNX model: int8 where they are multiples of a scale; nodes of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ellzero.codebook import find_codebook
from ellzero.graph import Network
from ellzero.graph.graph import free_name

if TYPE_CHECKING:
    from onnx import ModelProto


def store_as_int8(proto: ModelProto, network: Network) -> None:
    """Store the weights that are int8 times one scale so, with a DequantizeLinear before each.

    The values are those of before but for the rounding of a product in float32.
    """
    from onnx import helper, numpy_helper

    graph = proto.graph
    weights = dict(network.named_parameters())
    nodes = []
    for stored in list(graph.initializer):
        w = weights.get(stored.name)
        if w is None or w.ndim < 2:
            continue
        codebook = find_codebook(w.detach())
        same = np.array_equal(numpy_helper.to_array(stored), w.detach().numpy())
        if codebook is None or codebook.integers is None or not same:
            continue
        integers = codebook.expand(codebook.integers).numpy()
        scale = np.asarray(codebook.scale, w.detach().numpy().dtype)
        names = f"{stored.name}_int8", f"{stored.name}_scale"
        graph.initializer.remove(stored)
        tensors = zip((integers, scale), names, strict=True)
        graph.initializer.extend(numpy_helper.from_array(*pair) for pair in tensors)
        nodes.append(helper.make_node("DequantizeLinear", names, [stored.name], name=names[0]))
    behind = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *behind])


def name_by_weights(proto: ModelProto, network: Network) -> None:
    """Give each node with weights the name of their module; where it has several, with `_`."""
    names = {name for name, _ in network.named_parameters()}
    taken = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        modules = {name.rpartition(".")[0] for name in node.input if name in names}
        if len(modules) == 1 and all(modules):
            node.name = free_name(modules.pop(), taken)
            taken.add(node.name)
