"""From a graph to what generated C does: steps, and where in the scratch memory values lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.export.c.step import Pad, Plan, Step
from ellzero.export.c.steps import EMITTERS, EXPRESSIONS
from ellzero.graph import Graph, Network, Node, ops
from ellzero.graph.ops import Shape


def plan(network: Network) -> Plan:
    """The steps of a network, its preprocessing first.

    Raises:
        InputError: operations that there is no C for; weights that are not finite as float32.
    """
    unknown = [node for node in network.graph.nodes[1:] if not _is_known(node)]
    if unknown:
        named = "; ".join(f"{n.name} ({getattr(n.op, 'target', n.op.kind)})" for n in unknown[:3])
        raise InputError(
            f"there is no C for {named}; replace the layer by one of: linear, conv2d, batch norm, "
            "pooling, ReLU and its kin, softmax, a sum of two; or export ONNX"
        )
    network = with_preprocessing(network)
    weights = {name: _as_c(network.weight(name), name) for name in network.graph.weight_names()}
    steps, alias = _steps(network)
    places, scratch = _places(steps, network, alias)
    return Plan(steps, places, scratch, weights)


def _is_known(node: Node) -> bool:
    """Whether there is C for a node; a flattened value lies as it lay before."""
    return type(node.op) in EMITTERS or type(node.op) is ops.Flatten


def _as_c(weight: Tensor, name: str) -> Tensor:
    """A weight as C has it: float32, but for indices."""
    tensor = weight.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    if not tensor.isfinite().all():
        raise InputError(
            f"weight {name} {tuple(tensor.shape)} has NaN or inf as float32; C cannot hold it"
        )
    return tensor


def with_preprocessing(network: Network) -> Network:
    """The network with its preprocessing as a first layer, so that it takes raw inputs.

    One scale for all comes after the inputs that nobody reads are left out.
    """
    graph, prepare = network.graph, network.graph.preprocess
    if prepare is None:
        return network
    at = 0
    scalar = all(isinstance(value, int | float) for value in (prepare.scale, prepare.shift))
    readers = graph.consumers()
    while (
        scalar
        and at + 1 < len(graph.nodes)
        and isinstance(graph.nodes[at + 1].op, ops.Flatten | ops.Select)
        and len(readers[graph.nodes[at].name]) == 1
    ):
        at += 1
    before = graph.nodes[at]
    channels = network.shapes[before.name][0]
    name = "preprocess"
    while name in network.shapes:
        name += "_"
    weights = {n: network.weight(n) for n in graph.weight_names()}
    roles = {}
    for role in ("scale", "shift"):
        value = torch.as_tensor(getattr(prepare, role), dtype=torch.float32)
        roles[role] = f"{name}_{role}"
        weights[roles[role]] = value.expand(channels).clone()
    node = Node(name=name, op=ops.Affine(), inputs=(before.name,), weights=roles)
    later = [
        n.model_copy(update={"inputs": tuple(name if i == before.name else i for i in n.inputs)})
        for n in graph.nodes[at + 1 :]
    ]
    nodes = (*graph.nodes[: at + 1], node, *later)
    return Network(Graph(nodes=nodes, classes=graph.classes), weights)


def _steps(network: Network) -> tuple[list[Step], dict[str, str]]:
    """Steps with elementwise operations drawn in, and which value is another one in other words."""
    alias: dict[str, str] = {}
    steps: dict[str, Step] = {}  # by the value that the step stores
    readers = network.graph.consumers()

    def root(name: str) -> str:
        return alias.get(name, name)

    for node in network.graph.nodes[1:]:
        source = root(node.inputs[0])
        if isinstance(node.op, ops.Flatten):
            alias[node.name] = source
            continue
        before = steps.get(node.inputs[0])
        if (
            before is not None
            and type(node.op) in EXPRESSIONS
            and EMITTERS[type(before.node.op)].finishes
            and len(readers[node.inputs[0]]) == 1
        ):
            before.after.append(node)
            before.result = node.name
            steps[node.name] = steps.pop(node.inputs[0])
            continue
        inputs = [(root(name), network.shapes[name]) for name in node.inputs]
        if isinstance(node.op, ops.Conv) and any(node.op.padding):
            step = _pad(node, inputs[0])
            steps[step.result] = step
            inputs = [(step.result, step.shape)]
        steps[node.name] = Step(
            node,
            network.shapes[node.name],
            inputs,
            result=node.name,
            in_place=EMITTERS[type(node.op)].in_place,
        )
    ordered = list(steps.values())
    last = network.graph.nodes[-1].name
    if not ordered or root(last) == network.graph.nodes[0].name:
        raise InputError("the network computes nothing; there is no C to write")
    return ordered, alias


def _pad(node: Node, source: tuple[str, Shape]) -> Step:
    assert isinstance(node.op, ops.Conv)
    (channels, height, width), (top, left) = source[1], node.op.padding
    name = f"{node.name} padding"
    pad = Node.model_construct(name=name, op=Pad(padding=node.op.padding), inputs=(source[0],))
    return Step(pad, (channels, height + 2 * top, width + 2 * left), [source], result=name)


def _places(
    steps: Sequence[Step], network: Network, alias: Mapping[str, str]
) -> tuple[dict[str, str], int]:
    """A C expression for where each value lies; values that are never alive together may share."""
    output = network.graph.nodes[-1].name
    places = {network.graph.nodes[0].name: "input", alias.get(output, output): "output"}
    last_read = {name: i for i, step in enumerate(steps) for name, _ in step.inputs}
    alive: dict[str, tuple[int, int]] = {}  # value -> (offset, floats)
    total = 0
    for i, step in enumerate(steps):
        size = math.prod(step.shape)
        if step.result not in places:
            offset = _reused(step, alive, last_read, i, size)
            if offset is None:
                offset = _free_offset(alive.values(), size)
            alive[step.result] = (offset, size)
            places[step.result] = f"scratch + {offset}"
            total = max(total, offset + size)
        for name in [name for name in alive if last_read[name] <= i]:
            del alive[name]
    return places, total


def _reused(
    step: Step, alive: dict[str, tuple[int, int]], last_read: dict[str, int], i: int, size: int
) -> int | None:
    """The place of an input that nobody reads again, for a step that works value by value."""
    if step.in_place:
        for name, _ in step.inputs:
            if name in alive and last_read[name] == i and alive[name][1] == size:
                return alive[name][0]
    return None


def _free_offset(taken: Iterable[tuple[int, int]], size: int) -> int:
    """The lowest offset at which `size` floats overlap nothing."""
    offset = 0
    for begin, length in sorted(taken):
        if begin - offset >= size:
            break
        offset = max(offset, begin + length)
    return offset
