"""From a graph to what generated C does: kernels, and where in the scratch memory values lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ellzero.c.kernel import After, Kernel
from ellzero.c.layer import copied, padded
from ellzero.errors import InputError
from ellzero.export.c.stream import NoStream, Stream, stream
from ellzero.export.memory import Memory
from ellzero.graph import Network, Node
from ellzero.graph.graph import free_name
from ellzero.operations import (
    OPERATIONS,
    Affine,
    Constant,
    Flatten,
    Input,
    Opaque,
    Select,
    how_to_register,
    is_registered,
)
from ellzero.tensors import Shape

MOST_VALUES = 2**31 - 1
"""Of an array in C, whose places are counted by an int."""


@dataclass(frozen=True)
class Plan:
    """Kernels in order, where each value lies, and the floats of scratch memory that takes.

    Args:
        kernels: in order.
        places: of each value, by the node that gives it, a C expression of where it is.
        memory: of each kernel, by its result, of where its state and its work are.
        scratch: floats.
        constants: values that no input changes, by their nodes.
        state: the first floats of them, which stay from frame to frame.
        stream: how the network works frame by frame, or why it does not; None where it has nothing
            that it would keep.
    """

    kernels: list[Kernel]
    places: dict[str, str]
    memory: dict[str, list[str]]
    scratch: int
    constants: dict[str, Tensor] = field(default_factory=dict)
    state: int = 0
    stream: Stream | NoStream | None = None


def plan(network: Network) -> Plan:
    """The kernels of a network, its preprocessing first.

    Raises:
        InputError: operations that there is no C for; weights that are not finite as float32.
    """
    unknown = without_c(network)
    if unknown:
        known = ", ".join(kind for kind, operation in OPERATIONS.items() if operation.C != "none")
        raise InputError(
            f"there is no C for {'; '.join(unknown[:3])}; replace the layer by one of: {known}; or "
            "export ONNX"
        )
    network = with_preprocessing(_with_constants(network))
    streamed = stream(network)
    if not isinstance(streamed, Stream):
        kernels, same = _kernels(network)
        return replace(_placed(kernels, network, same), stream=streamed)
    kernels, same = _kernels(streamed.network)
    for kernel in kernels:
        kernel.keeps = kernel.state > 0
    kernels.sort(key=lambda kernel: kernel.name not in streamed.each)
    return replace(_placed(kernels, streamed.network, same), stream=streamed)


def without_c(network: Network) -> list[str]:
    """The operations of a network that there is no C for, as messages name them."""
    return [
        node.named + (how_to_register(node.op) or node.op.c_lacks())
        for node in network.graph.nodes
        if not isinstance(node.op, Input | Constant)
        and (not isinstance(node.op, Opaque) or node in network.graph.opaque)
        and (node.op.C == "none" or node.op.c_lacks() or not is_registered(node.op))
    ]


def _with_constants(network: Network) -> Network:
    """The network with what no input changes computed beforehand."""
    values: dict[str, Tensor] = {}
    nodes, weights = [], {}
    for node in network.graph.nodes:
        if not isinstance(node.op, Input) and values.keys() >= set(node.inputs):
            own = {role: network.weight(name).detach() for role, name in node.weights.items()}
            values[node.name] = node.op.run([values[name] for name in node.inputs], own)
    read = {name for n in network.graph.nodes if n.name not in values for name in n.inputs}
    for node in network.graph.nodes:
        if node.name in values and node.name in read:
            name = f"{node.name}.value"
            weights[name] = values[node.name][0]
            nodes.append(Node(name=node.name, op=Constant(), weights={"value": name}))
        elif node.name not in values:
            nodes.append(node)
    graph = network.graph.model_copy(update={"nodes": tuple(nodes)})
    for name in graph.weight_names():
        if name not in weights:
            weights[name] = network.weight(name)
    return Network(graph, {name: weights[name] for name in graph.weight_names()}).eval()


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
        and isinstance(graph.nodes[at + 1].op, Flatten | Select)
        and len(readers[graph.nodes[at].name]) == 1
    ):
        at += 1
    before = graph.nodes[at]
    channels = network.shapes[before.name][0]
    name = free_name("preprocess", network.shapes)
    weights = {n: network.weight(n) for n in graph.weight_names()}
    roles = {}
    for role in ("scale", "shift"):
        value = torch.as_tensor(getattr(prepare, role), dtype=torch.float32)
        roles[role] = f"{name}_{role}"
        weights[roles[role]] = value.expand(channels).clone()
    node = Node(name=name, op=Affine(), inputs=(before.name,), weights=roles)
    later = [n.reading({before.name: name}) for n in graph.nodes[at + 1 :]]
    nodes = (*graph.nodes[: at + 1], node, *later)
    outputs = [
        output.model_copy(update={"node": name}) if output.node == before.name else output
        for output in graph.outputs
    ]
    changes = {"nodes": nodes, "outputs": tuple(outputs), "preprocess": None}
    return Network(graph.model_copy(update=changes), weights)


def _kernels(network: Network) -> tuple[list[Kernel], dict[str, str]]:
    """Kernels in order, and which node's value is another one's as it lies.

    What works on single values is done by the kernel before it, where nobody else reads its result.
    """
    same: dict[str, str] = {}
    kernels: dict[str, Kernel] = {}  # by the value that the kernel stores
    finishing: set[str] = set()  # those of them that can do more before they store
    readers = network.graph.consumers()
    for node in network.graph.nodes:
        if not node.inputs:
            continue
        op, (source, *_) = node.op, node.inputs
        if op.C == "same":
            same[node.name] = same.get(source, source)
            continue
        weights = _as_c(node, network)
        if op.C == "value" and source in finishing and len(readers[source]) == 1:
            kernel = kernels.pop(source)
            kernel.after.append(After(node.name, weights, op.c_value))
            kernel.result = node.name
        else:
            inputs = [(same.get(name, name), network.shapes[name]) for name in node.inputs]
            sizes = {role: tuple(weight.shape) for role, weight in weights.items()}
            margins = op.c_padding([shape for _, shape in inputs], sizes)
            if any(margins):
                pad = _padding(node, inputs[0], margins)
                kernels[pad.result] = pad
                inputs = [(pad.result, pad.shape)]
            shape = network.shapes[node.name]
            kernel = Kernel(
                node.name,
                op.kind,
                weights,
                op.c_body,
                inputs,
                shape,
                node.name,
                op.IN_PLACE,
                state=op.c_state(shape),
                work=op.c_work(shape),
            )
        kernels[node.name] = kernel
        if op.FINISHES:
            finishing.add(node.name)
    computed = {same.get(name, name) for name in network.graph.results} & set(kernels)
    if not computed:
        raise InputError("the network computes nothing; there is no C to write")
    return [*kernels.values(), *_copies(network, same, computed)], same


def _copies(network: Network, same: Mapping[str, str], computed: set[str]) -> Iterator[Kernel]:
    """Kernels that copy outputs which another output is already, or that no kernel computes."""
    given: set[str] = set()
    for number, name in enumerate(network.graph.results):
        source, shape = same.get(name, name), network.shapes[name]
        if source in given or source not in computed:
            result = _copy_name(number)
            yield Kernel(result, "copy", {}, copied, [(source, shape)], shape, result)
        given.add(source)


def _copy_name(number: int) -> str:
    return f"output {number}"


def _as_c(node: Node, network: Network) -> dict[str, Tensor]:
    """A node's weights as C has them: float32, but for indices."""
    weights = {}
    for role, name in node.weights.items():
        weight = network.weight(name).detach().cpu()
        weights[role] = weight.float() if weight.is_floating_point() else weight
        if not weights[role].isfinite().all():
            raise InputError(
                f"weight {name} {tuple(weight.shape)} has NaN or inf as float32; C cannot hold it"
            )
    return weights


def _padding(node: Node, source: tuple[str, Shape], margins: Shape) -> Kernel:
    """A copy of a node's input with the zeros that its C expects around each channel."""
    channels, *size = source[1]
    shape = (channels, *(n + 2 * margin for n, margin in zip(size, margins, strict=True)))
    name = f"{node.name} padding"
    return Kernel(name, "pad", {}, padded, [source], shape, name)


def _placed(kernels: list[Kernel], network: Network, same: Mapping[str, str]) -> Plan:
    """The plan of kernels; values that are never alive together may share their memory."""
    copied_to = {kernel.result for kernel in kernels if kernel.kind == "copy"}
    constants = {
        node.name: network.weight(node.weights["value"]).detach().cpu()
        for node in network.graph.nodes
        if isinstance(node.op, Constant)
    }
    inputs, results = list(network.graph.inputs), network.graph.results
    places = dict(zip(inputs, _one_behind_the_other("input", inputs, network), strict=True))
    places |= dict.fromkeys(constants, "")  # in arrays of their own
    for number, place in enumerate(_one_behind_the_other("output", results, network)):
        copy, value = _copy_name(number), same.get(results[number], results[number])
        places[copy if copy in copied_to else value] = place
    for kernel in kernels:
        for name, shape in (*kernel.inputs, (kernel.result, kernel.shape)):
            if math.prod(shape) > MOST_VALUES:
                raise InputError(
                    f"{name} has {math.prod(shape)} values at {kernel.name}; C counts them by an "
                    f"int, {MOST_VALUES} at most: make the input or the padding smaller"
                )
    last_read = {name: i for i, kernel in enumerate(kernels) for name, _ in kernel.inputs}
    memory: dict[str, list[str]] = {kernel.result: [] for kernel in kernels}
    state = 0
    for kernel in kernels:
        if kernel.keeps:
            memory[kernel.result].append(f"scratch + {state}")
            state += kernel.state
    scratch = Memory(state)
    alive: dict[str, tuple[int, int]] = {}  # value -> (offset, floats)
    for i, kernel in enumerate(kernels):
        size = math.prod(kernel.shape)
        done = [name for name in {n for n, _ in kernel.inputs} if last_read[name] == i]
        dying = {name: alive.pop(name) for name in done if name in alive}
        if kernel.result not in places:
            # one that works value by value may store where it reads what nobody reads again
            reused = [n for n, _ in kernel.inputs if n in dying and dying[n][1] == size]
            if kernel.in_place and reused:
                alive[kernel.result] = dying.pop(reused[0])
            else:
                alive[kernel.result] = (scratch.take(size), size)
            places[kernel.result] = f"scratch + {alive[kernel.result][0]}"
        works = [
            (scratch.take(n), n) for n in (0 if kernel.keeps else kernel.state, kernel.work) if n
        ]
        memory[kernel.result] += [f"scratch + {offset}" for offset, _ in works]
        for part in (*dying.values(), *works):
            scratch.give(*part)
    return Plan(kernels, places, memory, scratch.size, constants, state=state)


def _one_behind_the_other(memory: str, names: Sequence[str], network: Network) -> Iterator[str]:
    """Where values lie that share memory, each behind the one before."""
    offset = 0
    for name in names:
        yield f"{memory} + {offset}" if offset else memory
        offset += math.prod(network.shapes[name])
