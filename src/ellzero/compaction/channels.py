"""Which channels of a network matter to its output, and which are constant.

How channels pass through an operation is what it declares (`Passing`). Nodes whose channels
must agree, such as the two summands of a residual connection, share a space: one vector of what is
kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ellzero.graph.graph import Graph, Node
from ellzero.graph.network import Network
from ellzero.operations import Opaque, Operation
from ellzero.operations.operation import Passing

Needs = Iterator[tuple[str, Tensor]]
"""Nodes, and for each the channels that it must keep, bool."""

EVEN = 1e-12
"""How far, relatively, values of one channel may be apart by rounding, in float64."""


class Channels:
    """Which channels each node keeps, and which are constant.

    `channels[name]` is what a node keeps. A space's vector grows from what reads it until nothing
    is added, so that whatever is read only by what leaves, leaves too.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes = network.graph.nodes
        self.passing: dict[str, Passing] = {n.name: passing(n, network) for n in self.nodes}
        self.constants = _constants(network, self.passing)
        self.tied = tied_nodes(network.graph)
        self.space = self._spaces()
        self.entries = self._entries()
        self._from_input = {self.space[name] for name in self.entries}
        self.taken = {
            node.name: ~_unfoldable(node.op, self.constants[node.inputs[0]])
            for node in self.nodes
            if self.passing[node.name] == "mix"
        }
        """Of each layer that mixes channels, those whose constants its bias takes up."""
        self._reads = {
            node.name: _reads(node, network) & ~self.taken[node.name]
            for node in self.nodes
            if node.name in self.taken
        }
        self._keep = {
            space: torch.zeros_like(self.constants[name], dtype=torch.bool)
            for name, space in self.space.items()
        }
        self._grow(self.nodes, self._needs)
        self._needed = {space: keep.clone() for space, keep in self._keep.items()}
        for keep in self._keep.values():
            keep[:1] |= ~keep.any()  # a shape without channels is none
        # such a channel is constant or nobody reads it, so no layer needs its inputs for it
        self._grow([n for n in self.nodes if n.name not in self._reads], self._needs, self._ties)

    def __getitem__(self, name: str) -> Tensor:
        """What is kept of a node's channels, bool."""
        return self._keep[self.space[name]]

    def needed(self, name: str) -> Tensor:
        """Which of a node's channels something needs, bool: of those that are kept, the reason."""
        return self._needed[self.space[name]]

    def _spaces(self) -> dict[str, int]:
        """Node -> number of the space it is in."""
        space: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            space[node.name] = index
            if self.passing[node.name] == "keep":
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
            if self.passing[node.name] == "spread" and self.space[node.inputs[0]] in spaces:
                entries.append(node.name)
                spaces.add(self.space[node.name])
        return entries

    def _grow(self, nodes: Sequence[Node], *rules: Callable[[Node], Needs]) -> None:
        """Keep what the nodes need, then what that needs, until nothing is added."""
        grew = True
        while grew:
            grew = False
            for node in reversed(nodes):
                for name, needed in (need for rule in rules for need in rule(node)):
                    keep = self[name]
                    grew |= bool((needed & ~keep).any())
                    keep |= needed

    def _needs(self, node: Node) -> Needs:
        """What a node's output is made of."""
        if node is self.nodes[-1]:
            yield node.name, torch.tensor(True)
        if self.barrier(node):
            for name in (node.name, *node.inputs):
                yield name, torch.tensor(True)
            return
        keep = self[node.name]
        match self.passing[node.name]:
            case "mix":
                yield node.inputs[0], self._reads[node.name][keep].any(0)
            case "spread":
                yield node.inputs[0], keep.view(len(self[node.inputs[0]]), -1).any(1)
            case "pick":
                indices = self.network.weight(node.weights["indices"]).cpu()
                needed = torch.zeros_like(self[node.inputs[0]])
                needed[indices[keep]] = True
                yield node.inputs[0], needed

    def _ties(self, node: Node) -> Needs:
        """What cannot leave alone: a value of a channel, or what a selection of the input takes."""
        if self.barrier(node) or self.passing[node.name] not in ("spread", "pick"):
            return
        (source,) = node.inputs
        if self.space[source] in self._from_input:
            yield source, torch.tensor(True)
        elif self.passing[node.name] == "spread":
            repeats = len(self[node.name]) // len(self[source])
            yield node.name, self[source].repeat_interleave(repeats)

    def barrier(self, node: Node) -> str | None:
        """Why all channels of a node and of its inputs stay, if they do."""
        if self.passing[node.name] in ("barrier", "all"):
            return node.op.why_barrier()
        return "a weight of it is shared with another layer" if node.name in self.tied else None

    def kept(self) -> Iterator[str]:
        """What could have left in principle, and why it stays."""
        opaque = ", ".join(node.name for node in self.network.graph.opaque)
        if opaque:
            yield f"all channels that {opaque} read and give stay: they cannot be seen through"
        for node in self.nodes:
            if isinstance(node.op, Opaque) or not node.inputs:
                continue
            reason, known = self.barrier(node), ~self.constants[node.inputs[0]].isnan()
            if self.passing[node.name] == "all":  # everything it reads matters but constants
                reason = reason if known.any() else None
            if reason:
                yield f"all channels that {node.name} reads and gives stay: {reason}"
            elif count := int((known & self._read_unevenly(node)).sum()):
                yield (
                    f"{count} constant channels of {node.inputs[0]} stay: {node.name} pads them, "
                    "so no bias can stand for them"
                )

    def _read_unevenly(self, node: Node) -> Tensor:
        """Channels of a node's input that, if constant, are not so any more behind it."""
        if self.passing[node.name] == "mix":
            return self._reads[node.name][self[node.name]].any(0)
        if self.passing[node.name] == "keep" and len(node.inputs) == 1:
            return self.constants[node.name].isnan() & self[node.name]
        return torch.tensor(False)


def passing(node: Node, network: Network) -> Passing:
    """How channels pass through a node."""
    weights = {role: tuple(network.weight(name).shape) for role, name in node.weights.items()}
    return node.op.passing([network.shapes[name] for name in node.inputs], weights)


def _constants(network: Network, passing: Mapping[str, Passing]) -> dict[str, Tensor]:
    """Value of each channel that is the same for every input, NaN for the others; float64."""
    constants: dict[str, Tensor] = {}
    for node in network.graph.nodes:
        value = _constant(node, network, passing[node.name], constants)
        constants[node.name] = torch.where(value.isfinite(), value, math.nan)
    return constants


def _constant(
    node: Node, network: Network, passing: Passing, constants: Mapping[str, Tensor]
) -> Tensor:
    inputs = [constants[name] for name in node.inputs]
    if inputs:
        match passing:
            case "keep":
                return _kept_constant(node, network, inputs)
            case "mix":
                unknown = (_reads(node, network) & _unfoldable(node.op, inputs[0])).any(1)
                value = summed(node, network) @ inputs[0].nan_to_num()
                if "bias" in node.weights:
                    value += exact(network.weight(node.weights["bias"]))
                return value.masked_fill(unknown, math.nan)
            case "spread":
                repeats = network.shapes[node.name][0] // len(inputs[0])
                return inputs[0].repeat_interleave(repeats)
            case "pick":
                return inputs[0][network.weight(node.weights["indices"]).cpu()]
    count = next(iter(network.shapes[node.name]), 0)
    return torch.full((count,), math.nan, dtype=torch.float64)


def _kept_constant(node: Node, network: Network, inputs: Iterable[Tensor]) -> Tensor:
    """Constants behind an operation that keeps channels, found by running it on them.

    A padding makes a channel another one at the margin, so that it is no constant any more.
    """
    size = () if node.op.ELEMENTWISE else network.shapes[node.inputs[0]][1:]
    weights = {role: network.weight(name).detach().cpu() for role, name in node.weights.items()}
    weights = {r: w.double() if w.is_floating_point() else w for r, w in weights.items()}
    unknown, filled = torch.tensor(False), []
    for x in inputs:
        unknown = unknown | x.isnan()
        filled.append(x.nan_to_num().view(1, -1, *[1] * len(size)).expand(1, -1, *size))
    (values,) = node.op.run(filled, weights)
    low, high = values.reshape(len(values), -1).aminmax(dim=1)
    uneven = ~(high - low <= EVEN * high.abs())
    return high.masked_fill(uneven | (unknown & node.op.sees(weights)), math.nan)


def summed(node: Node, network: Network) -> Tensor:
    """A layer's weight as a float64 matrix (out, in), summed over the kernel's positions."""
    weight = exact(network.weight(node.weights["weight"]))
    return weight.reshape(*weight.shape[:2], -1).sum(2)


def _reads(node: Node, network: Network) -> Tensor:
    """Whether a layer's row has a nonzero weight on a channel, bool (out, in)."""
    weight = network.weight(node.weights["weight"]).detach().cpu()
    return (weight != 0).reshape(*weight.shape[:2], -1).any(2)


def _unfoldable(op: Operation, constants: Tensor) -> Tensor:
    """Which channels a layer's bias cannot take up: unknown ones, and most where it takes none."""
    takes = op.folds_constants() and "bias" in (*op.REQUIRED, *op.OPTIONAL)
    return constants.isnan() | ((constants != 0) & (not takes))


def tied_nodes(graph: Graph) -> set[str]:
    """The nodes of which a weight is another node's too."""
    uses = Counter(name for node in graph.nodes for name in node.weights.values())
    return {n.name for n in graph.nodes if any(uses[name] > 1 for name in n.weights.values())}


def exact(weight: Tensor) -> Tensor:
    """A weight's values as float64, on the CPU."""
    return weight.detach().cpu().double()
