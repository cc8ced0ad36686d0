"""What a graph takes to run, by its shapes alone, and the limits that a loaded one keeps to."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ellzero.errors import InputError
from ellzero.graph.graph import Graph, Node
from ellzero.operations import Cast, Embedding, Input
from ellzero.tensors import Shape

MAX_MACS = 1 << 35
"""Multiply-adds of one example, 34 billion: eight times those of ResNet-50 at 224 x 224."""

MAX_BYTES = 1 << 30
"""Bytes of one example's values that are alive at once."""

UNLIMITED = sys.maxsize
"""As a limit: whatever there is to take."""

MAX_DIMENSIONS = 63
"""Of one example: torch has no more than 64, and one is the batch."""


@dataclass(frozen=True)
class Demand:
    """What a graph takes for one example.

    Args:
        macs: multiply-adds of all nodes, and as much time for what does not multiply.
        slowest: the node that has the most of them.
        bytes: of values that are alive at once, at most: those that some node still reads, and
            what a node works in.
        fullest: the node at which it is so many.
    """

    macs: int
    slowest: Node
    bytes: int
    fullest: Node


def demand(
    graph: Graph, shapes: Mapping[str, Shape], weights: Mapping[str, tuple[Shape, torch.dtype]]
) -> Demand:
    """Multiply-adds and memory of one example; linear in the nodes, whatever the shapes are.

    Args:
        graph: one that makes sense.
        shapes: of one example at every node, as `Graph.shapes` gives them.
        weights: shape and type of each weight, by its name.

    Example:
        >>> import torch
        >>> from ellzero.operations import Linear
        >>> nodes = (
        ...     Node(name="x", op=Input(size=(8,))),
        ...     Node(name="y", op=Linear(), inputs=("x",), weights={"weight": "w"}),
        ... )
        >>> sizes = {"w": ((4, 8), torch.float32)}
        >>> taken = demand(Graph(nodes=nodes), {"x": (8,), "y": (4,)}, sizes)
        >>> taken.macs  # of the input 8 values, each as 4; of the layer 4 * 8 and 12 values
        76
        >>> taken.bytes  # 12 values, and as many that the layer works in
        96
    """
    last, widths = _last_reads(graph), _widths(graph, weights)
    freed: list[int] = [0] * (len(graph.nodes) + 1)
    alive = macs = 0
    heaviest: tuple[int, Node] = (-1, graph.nodes[0])
    fullest: tuple[int, Node] = (-1, graph.nodes[0])
    for place, node in enumerate(graph.nodes):
        inputs, output = [shapes[name] for name in node.inputs], shapes[node.name]
        sizes = {role: weights[name][0] for role, name in node.weights.items()}
        work = node.op.work(inputs, sizes, output)
        macs += work
        heaviest = max(heaviest, (work, node), key=lambda pair: pair[0])
        held = math.prod(output) * widths[node.name]
        alive += held
        freed[last[node.name]] += held
        width = max([widths[node.name], *(widths[name] for name in node.inputs)])
        taken = alive + width * node.op.workspace(inputs, sizes, output)
        fullest = max(fullest, (taken, node), key=lambda pair: pair[0])
        alive -= freed[place]
    return Demand(macs, heaviest[1], fullest[0], fullest[1])


def require_bounded(
    graph: Graph,
    shapes: Mapping[str, Shape],
    weights: Mapping[str, tuple[Shape, torch.dtype]],
    *,
    max_bytes: int,
    max_macs: int,
) -> None:
    """Refuse a graph that takes more than it may for one example.

    Raises:
        InputError: it does, or a value has more dimensions than torch knows.
    """
    for node in graph.nodes:
        if len(shapes[node.name]) > MAX_DIMENSIONS:
            raise InputError(f"{node.named} gives {len(shapes[node.name])} dimensions")
    taken = demand(graph, shapes, weights)
    problems, allowed = [], []
    if taken.macs > max_macs:
        problems.append(
            f"{taken.macs} multiply-adds, most of them at {taken.slowest.named}, more than "
            f"{max_macs}"
        )
        allowed.append(f"max_macs={taken.macs}")
    if taken.bytes > max_bytes:
        problems.append(f"{taken.bytes} bytes at {taken.fullest.named}, more than {max_bytes}")
        allowed.append(f"max_bytes={taken.bytes}")
    if problems:
        raise InputError(
            f"one example takes {'; and '.join(problems)}; if the file can be trusted: "
            f"ez.load(path, {', '.join(allowed)}), or a command with --trust"
        )


def _last_reads(graph: Graph) -> dict[str, int]:
    """The place of the last node that needs each value; what is given stays to the end."""
    end = len(graph.nodes)
    last = dict.fromkeys((*graph.inputs, *graph.results), end)
    for place, node in reversed([*enumerate(graph.nodes)]):
        mine = last.setdefault(node.name, place)
        for name in node.inputs:
            # a view holds what it is of
            until = mine if node.op.VIEW else place
            last[name] = max(last.get(name, 0), until)
    return last


def _widths(graph: Graph, weights: Mapping[str, tuple[Shape, torch.dtype]]) -> dict[str, int]:
    """Bytes of a number of each value, 4 at least."""
    floats = [dtype.itemsize for _, dtype in weights.values() if dtype.is_floating_point]
    common = max(floats, default=4)
    widths: dict[str, int] = {}
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Input | Cast) and op.dtype != "float":
            width = getattr(torch, op.dtype).itemsize
        elif isinstance(op, Embedding) or not node.inputs:
            width = max((weights[n][1].itemsize for n in node.weights.values()), default=common)
        else:
            width = max(widths[name] for name in node.inputs)
        widths[node.name] = max(4, width)
    return widths
