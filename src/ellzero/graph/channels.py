"""Which channels of a network matter to its output, and which are constant.

Nodes whose channels must agree, such as the two summands of a residual connection, share a space:
one vector of what is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ellzero.graph import ops
from ellzero.graph.graph import Graph, Node
from ellzero.graph.network import Network


class Channels:
    """Which channels each node keeps, and which are constant.

    `channels[name]` is what a node keeps. A space's vector grows from what reads it until nothing
    is added, so that whatever is read only by what leaves, leaves too.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes = network.graph.nodes
        self.constants = _constants(network)
        self.tied = tied_nodes(network.graph)
        self.space = self._spaces()
        self.entries = self._entries()
        self._from_input = {self.space[name] for name in self.entries}
        self._reads = {
            node.name: _reads(node, network) & _unfoldable(node.op, self.constants[node.inputs[0]])
            for node in self.nodes
            if mixes(node)
        }
        self._keep = {
            space: torch.zeros_like(self.constants[name], dtype=torch.bool)
            for name, space in self.space.items()
        }
        self._grow(self.nodes)
        for keep in self._keep.values():
            keep[:1] |= ~keep.any()  # a shape without channels is none
        # such a channel is constant or nobody reads it, so no layer needs its inputs for it
        self._grow([node for node in self.nodes if node.name not in self._reads])

    def __getitem__(self, name: str) -> Tensor:
        """What is kept of a node's channels, bool."""
        return self._keep[self.space[name]]

    def _spaces(self) -> dict[str, int]:
        """Node -> number of the space it is in."""
        space: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            space[node.name] = index
            if _keeps_channels(node, self.network):
                joined = {space[name] for name in node.inputs}
                for name, number in space.items():
                    space[name] = index if number in joined else number
        return space

    def _entries(self) -> list[str]:
        """Nodes whose channels are the input's own, so that a selection has to leave any out.

        They are the input, and what flattens it: from there on, single values can leave.
        """
        first = self.nodes[0].name
        entries, spaces = [first], {self.space[first]}
        for node in self.nodes:
            flattens = isinstance(node.op, ops.Flatten) and self.space[node.inputs[0]] in spaces
            if flattens and not _keeps_channels(node, self.network):
                entries.append(node.name)
                spaces.add(self.space[node.name])
        return entries

    def _grow(self, nodes: Sequence[Node]) -> None:
        """Keep what the nodes need, then what that needs, until nothing is added."""
        grew = True
        while grew:
            grew = False
            for node in reversed(nodes):
                for name, needed in self._needs(node):
                    keep = self[name]
                    grew |= bool((needed & ~keep).any())
                    keep |= needed

    def _needs(self, node: Node) -> Iterator[tuple[str, Tensor]]:
        """Nodes and the channels that they must keep for this one."""
        if node is self.nodes[-1]:
            yield node.name, torch.tensor(True)
        if self.barrier(node):
            for name in (node.name, *node.inputs):
                yield name, torch.tensor(True)
        elif node.name in self._reads:
            yield node.inputs[0], self._reads[node.name][self[node.name]].any(0)
        elif isinstance(node.op, ops.Flatten | ops.Select) and not self._shares(node):
            (source,) = node.inputs
            if self.space[source] in self._from_input:
                yield source, torch.tensor(True)  # what a selection of the input is made of
            elif isinstance(node.op, ops.Select):
                indices = self.network.weight(node.weights["indices"]).cpu()
                needed = torch.zeros_like(self[source])
                needed[indices[self[node.name]]] = True
                yield source, needed
            else:
                yield source, self[node.name].view(len(self[source]), -1).any(1)
                repeats = len(self[node.name]) // len(self[source])
                yield node.name, self[source].repeat_interleave(repeats)

    def _shares(self, node: Node) -> bool:
        return self.space[node.name] == self.space[node.inputs[0]]

    def barrier(self, node: Node) -> str | None:
        """Why all channels of a node and of its inputs stay, if they do."""
        match node.op:
            case ops.Opaque():
                return "it cannot be seen through"
            case ops.Softmax():
                return "a softmax depends on every channel"
            case ops.Conv() if node.op.groups > 1 and not is_depthwise(node, self.network):
                return f"it is a convolution in {node.op.groups} groups"
        return "a weight of it is shared with another layer" if node.name in self.tied else None

    def kept(self) -> Iterator[str]:
        """What could have left in principle, and why it stays."""
        opaque = ", ".join(node.name for node in self.network.graph.opaque)
        if opaque:
            yield f"all channels that {opaque} read and give stay: they cannot be seen through"
        for node in self.nodes:
            if isinstance(node.op, ops.Opaque | ops.Input):
                continue
            reason, known = self.barrier(node), ~self.constants[node.inputs[0]].isnan()
            if isinstance(node.op, ops.Softmax):  # everything it reads matters but constants
                reason = reason if known.any() else None
            elif node.name in self._reads:
                known &= self._reads[node.name][self[node.name]].any(0)
            elif isinstance(node.op, ops.Conv | ops.Pool) and not reason:
                known = known & self.constants[node.name].isnan() & self[node.name]
            else:
                known = torch.zeros(1)
            if reason:
                yield f"all channels that {node.name} reads and gives stay: {reason}"
            elif known.any():
                yield (
                    f"{int(known.sum())} constant channels of {node.inputs[0]} stay: {node.name} "
                    "pads them, so no bias can stand for them"
                )


def _constants(network: Network) -> dict[str, Tensor]:
    """Value of each channel that is the same for every input, NaN for the others; float64."""
    found: dict[str, Tensor] = {}
    for node in network.graph.nodes:
        value = _constant(node, network, found)
        if value is None:
            count = next(iter(network.shapes[node.name]), 0)
            value = torch.full((count,), math.nan, dtype=torch.float64)
        found[node.name] = torch.where(value.isfinite(), value, math.nan)
    return found


def _constant(node: Node, network: Network, found: Mapping[str, Tensor]) -> Tensor | None:
    if isinstance(node.op, ops.Input | ops.Opaque | ops.Softmax):
        return None
    weights = {role: exact(network.weight(name)) for role, name in node.weights.items()}
    x = found[node.inputs[0]]
    match node.op:
        case ops.Linear() | ops.Conv():
            if not mixes(node) and not is_depthwise(node, network):
                return None
            unknown = (_reads(node, network) & _unfoldable(node.op, x)).any(1)
            value = summed(node, network) @ x.nan_to_num()
            if "bias" in weights:
                value += weights["bias"]
            return value.masked_fill(unknown, math.nan)
        case ops.Affine() | ops.Activation() | ops.PReLU():
            value = node.op.run([x.nan_to_num()[None]], weights)[0]
            unknown = x.isnan()
            if isinstance(node.op, ops.Affine):
                unknown &= weights["scale"] != 0
            return value.masked_fill(unknown, math.nan)
        case ops.Pool():
            return _pooled(node.op, network.shapes[node.inputs[0]][1:], x)
        case ops.Flatten():
            return x.repeat_interleave(math.prod(network.shapes[node.inputs[0]][1:]))
        case ops.Add():
            return x + found[node.inputs[1]]
        case ops.Select():
            return x[weights["indices"].long()]
    return None


def _pooled(op: ops.Pool, size: ops.Shape, x: Tensor) -> Tensor:
    """Constants after pooling; padding makes them others at the margin, but zeros of an average."""
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    if (op.run([ones], {}) == 1).all():
        return x
    return torch.where((x == 0) & (op.function == "average"), x, math.nan)


def is_depthwise(node: Node, network: Network) -> bool:
    """Whether it is a convolution of each channel by itself."""
    if not isinstance(node.op, ops.Conv) or node.op.groups == 1:
        return False
    out, per_group = network.weight(node.weights["weight"]).shape[:2]
    return node.op.groups == out and per_group == 1


def mixes(node: Node) -> bool:
    """Whether each channel of the result can depend on each of the input's."""
    return isinstance(node.op, ops.Linear) or (
        isinstance(node.op, ops.Conv) and node.op.groups == 1
    )


def _keeps_channels(node: Node, network: Network) -> bool:
    """Whether channel c of the result is made of channel c of the inputs alone."""
    if isinstance(node.op, ops.Flatten):
        return math.prod(network.shapes[node.inputs[0]][1:]) == 1
    elementwise = ops.Affine | ops.Activation | ops.PReLU | ops.Pool | ops.Add
    return isinstance(node.op, elementwise) or is_depthwise(node, network)


def summed(node: Node, network: Network) -> Tensor:
    """A layer's weight as a float64 matrix (out, in), summed over the kernel's positions."""
    weight = exact(network.weight(node.weights["weight"]))
    total = weight.reshape(*weight.shape[:2], -1).sum(2)
    return total.view(-1).diag() if is_depthwise(node, network) else total


def _reads(node: Node, network: Network) -> Tensor:
    """Whether a layer's row has a nonzero weight on a channel, bool (out, in)."""
    weight = network.weight(node.weights["weight"]).detach().cpu()
    nonzero = (weight != 0).reshape(*weight.shape[:2], -1).any(2)
    return nonzero.view(-1).diag() if is_depthwise(node, network) else nonzero


def _unfoldable(op: ops.AnyOp, constants: Tensor) -> Tensor:
    """Which channels a layer's bias cannot take up: unknown ones, and where zeros are padded."""
    padded = isinstance(op, ops.Conv) and any(op.padding)
    return constants.isnan() | ((constants != 0) & padded)


def tied_nodes(graph: Graph) -> set[str]:
    """The nodes of which a weight is another node's too."""
    uses = Counter(name for node in graph.nodes for name in node.weights.values())
    return {n.name for n in graph.nodes if any(uses[name] > 1 for name in n.weights.values())}


def exact(weight: Tensor) -> Tensor:
    """A weight's values as float64, on the CPU."""
    return weight.detach().cpu().double()
