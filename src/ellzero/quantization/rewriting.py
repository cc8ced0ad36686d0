"""A network made ready to become one of integers: the same function, in fewer kinds of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ellzero.graph import Graph, Network, Node
from ellzero.operations import (
    Activation,
    Add,
    Affine,
    Conv,
    Flatten,
    Linear,
    Pad,
    Pool,
    Reshape,
    Select,
    Softmax,
)

LIMITS = {"relu": 0, "clamp": 2, "at_least": 1, "at_most": 1}
"""Activations that limit a value, and how many parameters they have."""


def limits_of(node: Node) -> tuple[float, float] | None:
    """Between what an activation limits values; None where it is none that does."""
    op = node.op
    if not isinstance(op, Activation) or op.function not in LIMITS:
        return None
    if op.function == "relu":
        return 0.0, math.inf
    if op.function == "clamp":
        return op.parameters[0], op.parameters[1]
    (limit,) = op.parameters
    return (limit, math.inf) if op.function == "at_least" else (-math.inf, limit)


def takes_limits(node: Node) -> bool:
    """Whether its integer form rounds anew, so that it can limit what it gives on the way."""
    op = node.op
    is_average = isinstance(op, Pool) and op.function == "average"
    return isinstance(op, Linear | Conv | Affine | Add) or is_average


def limited_by(graph: Graph) -> dict[str, str]:
    """The limits that are done by the step before them: that step's name -> the limit's."""
    by_name, readers = {node.name: node for node in graph.nodes}, graph.consumers()
    limited = {}
    for node in graph.nodes:
        if limits_of(node) is None:
            continue
        (source,) = node.inputs
        is_read_once = len(readers[source]) == 1 and source not in graph.results
        if takes_limits(by_name[source]) and is_read_once:
            limited[source] = node.name
    return limited


def keeps_scale(node: Node) -> bool:
    """Whether it only moves values or takes the largest, so that all have one scale."""
    op = node.op
    return (isinstance(op, Pool) and op.function == "max") or _moves(node) or isinstance(op, Pad)


def _moves(node: Node) -> bool:
    return isinstance(node.op, Flatten | Reshape)


def rewritten(network: Network) -> tuple[Network, list[str]]:
    """The network without what integers do not need, and sentences on what its output lacks.

    A softmax at the end goes, for the largest value stays where it is. A limit such as ReLU goes
    before the maximum pooling or the flattening in front of it. Layers that read some of the
    inputs get columns of zeros for the others, which in sparse rows cost nothing.
    """
    nodes, notes = _without_softmax(list(network.graph.nodes), network.graph)
    while (moved := _limit_first(nodes, network.graph.results)) is not None:
        nodes = moved
    weights = {name: network.weight(name) for name in network.graph.weight_names()}
    nodes = _whole_inputs(nodes, network, weights)
    outputs = network.graph.outputs
    if notes:
        outputs = tuple(o.model_copy(update={"node": nodes[-1].name}) for o in outputs)
    graph = network.graph.model_copy(update={"nodes": tuple(nodes), "outputs": outputs})
    return Network(graph, {name: weights[name] for name in graph.weight_names()}).eval(), notes


def _without_softmax(nodes: list[Node], graph: Graph) -> tuple[list[Node], list[str]]:
    last = nodes[-1]
    if not isinstance(last.op, Softmax) or graph.results != (last.name,):
        return nodes, []
    if len(graph.consumers()[last.inputs[0]]) > 1 or len(nodes) < 3:
        return nodes, []
    what = "log-softmax" if last.op.log else "softmax"
    return nodes[:-1], [f"{last.name} is left out: the output is what the {what} would read"]


def _limit_first(nodes: Sequence[Node], results: Sequence[str]) -> list[Node] | None:
    """The nodes with one limit before the step that it followed; None where there is none."""
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        before = by_name[node.inputs[0]] if node.inputs else None
        if before is None or limits_of(node) is None or not (_moves(before) or _is_max(before)):
            continue
        readers = [n for n in nodes for name in n.inputs if name == before.name]
        if len(readers) > 1 or before.name in results or not _is_limited(before, by_name):
            continue
        # each keeps its operation and gets the other's place, and so the other's readers
        first = node.model_copy(update={"name": before.name, "inputs": before.inputs})
        then = before.model_copy(update={"name": node.name, "inputs": node.inputs})
        swapped = {before.name: first, node.name: then}
        return [swapped.get(n.name, n) for n in nodes]
    return None


def _is_max(node: Node) -> bool:
    return isinstance(node.op, Pool) and node.op.function == "max"


def _is_limited(node: Node, by_name: dict[str, Node]) -> bool:
    """Whether in front of it is what can limit what it gives."""
    while _moves(node) or _is_max(node):
        node = by_name[node.inputs[0]]
    return takes_limits(node)


def _whole_inputs(
    nodes: Sequence[Node], network: Network, weights: dict[str, Tensor]
) -> list[Node]:
    """The nodes without selections of inputs that layers alone read; the layers' weights grow."""
    graph = network.graph.model_copy(update={"nodes": tuple(nodes)})
    readers, by_name = graph.consumers(), {node.name: node for node in nodes}
    gone: dict[str, str] = {}
    for node in nodes:
        if not isinstance(node.op, Select):
            continue
        source = network.shapes[node.inputs[0]]
        layers = readers[node.name]
        fits = [isinstance(n.op, Conv) and n.op.groups == 1 for n in layers]
        if len(source) == 1:
            fits = [isinstance(n.op, Linear) for n in layers]
        if node.op.axis != 0 or not all(fits) or node.name in graph.results:
            continue
        indices = weights[node.weights["indices"]]
        for layer in layers:
            name = layer.weights["weight"]
            axis = 0 if isinstance(layer.op, Linear) and layer.op.transposed else 1
            old = weights[name].detach()
            size = [source[0] if place == axis else n for place, n in enumerate(old.shape)]
            weights[name] = torch.zeros(size, dtype=old.dtype).index_copy(axis, indices, old)
        gone[node.name] = by_name[node.inputs[0]].name
    return [node.reading(gone) for node in nodes if node.name not in gone]
