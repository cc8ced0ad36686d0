"""Which indices of a network's axes matter to its output, and which values are constant.

How the axes of an operation go together is what it declares (`Axes`). Axes that must agree, such as
those of the two summands of a residual connection, are one: they share a vector of what is kept. A
channel is an index of whatever axis a layer's weight reads or gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.graph.graph import Graph, Node
from ellzero.graph.network import Network
from ellzero.operations import Opaque, Operation
from ellzero.operations.axes import Axes, Axis

Key = tuple[str, int | str]
"""An axis: a node and the place in its result, or a node and a name that its operation uses."""

Needs = Iterator[tuple[Key, Tensor]]
"""Axes, and for each the indices that it must keep, bool."""

EVEN = 1e-12
"""How far, relatively, values of one channel may be apart by rounding, in float64."""


@dataclass(frozen=True)
class _Made:
    """An axis that is made of others."""

    whole: Key
    parts: tuple[Key, ...]
    joined: bool
    is_result: bool  # else it is an input's, which the operation takes apart


class Channels:
    """Which indices of each axis are kept, and which values are constant.

    What is kept grows from what reads it until nothing is added, so that whatever is read only by
    what leaves, leaves too.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes = network.graph.nodes
        declared = {node.name: axes_of(node, network) for node in self.nodes}
        self.constants = _constants(network, declared)
        tied = tied_nodes(network.graph)
        self.axes = {name: None if name in tied else axes for name, axes in declared.items()}
        """How the axes of each node go together; None where all of them stay whole."""
        self._why_tied = dict.fromkeys(tied, "a weight of it is shared with another layer")
        self._groups: dict[Key, set[Key]] = {}  # of axes that are one
        self._made: dict[str, list[_Made]] = {}
        sizes = dict(self._join())
        self._one = {key: min(group, key=str) for key, group in self._groups.items()}
        self.entries = self._entries()
        self._from_input = {self._one[key] for key in self.entries}
        self.taken = {
            node.name: ~_unfoldable(node.op, self.column_constants(node))
            for node in self.nodes
            if (axes := self.axes[node.name]) is not None and axes.mixes
        }
        """Of each layer, the columns whose constants its bias takes up."""
        self._reads = {
            node.name: _nonzero(network.weight(node.weights["weight"])) & ~self.taken[node.name]
            for node in self.nodes
            if node.name in self.taken
        }
        self._keep = {
            one: torch.zeros(sizes[one], dtype=torch.bool) for one in set(self._one.values())
        }
        self._grow(self._follow, self._reading)
        self._needed = {one: keep.clone() for one, keep in self._keep.items()}
        for node in self.nodes:
            for key in self._value(node.name):  # a shape without channels is none
                self.kept(key)[:1] |= ~self.kept(key).any()
        # such a channel is constant or nobody reads it, so no layer needs its inputs for it
        self._grow(self._follow, self._ties)

    def kept(self, key: Key) -> Tensor:
        """What is kept of an axis, bool."""
        return self._keep[self._one[key]]

    def needed(self, key: Key) -> Tensor:
        """Which indices of an axis something needs, bool: of those that are kept, the reason."""
        return self._needed[self._one[key]]

    def of_weight(self, node: Node, role: str, vector: Callable[[Key], Tensor]) -> list[Tensor]:
        """What a vector (`kept` or `needed`) says of each dimension of a node's weight."""
        axes = self.axes[node.name]
        assert axes is not None
        return [
            _whole(axis, [vector((node.name, n)) for n in axis.names])
            for axis in axes.of_weight(role)
        ]

    def _join(self) -> Iterator[tuple[Key, int]]:
        """Make the axes of one name one; all axes and their sizes."""
        for node in self.nodes:
            shape = self.network.shapes[node.name]
            for place, size in enumerate(shape):
                self._groups[node.name, place] = {(node.name, place)}
                yield (node.name, place), size
            axes = self.axes[node.name]
            if axes is None:
                continue
            inputs = [self.network.shapes[name] for name in node.inputs]
            weights = _weight_shapes(node, self.network)
            for name, size in axes.sizes_of(inputs, shape, weights).items():
                self._groups[node.name, name] = {(node.name, name)}
                yield (node.name, name), size
            self._made[node.name] = []
            for source, axis_list in zip(node.inputs, axes.read, strict=True):
                self._name(node.name, source, axis_list, is_result=False)
            self._name(node.name, node.name, axes.result, is_result=True)

    def _name(self, node: str, source: str, axes: Sequence[Axis], *, is_result: bool) -> None:
        """Give the axes of a value the names that a node has for them."""
        for place, axis in enumerate(axes):
            parts = tuple((node, name) for name in axis.names)
            if len(parts) == 1:
                joint = self._groups[source, place] | self._groups[parts[0]]
                self._groups.update(dict.fromkeys(joint, joint))
            elif parts:
                made = _Made((source, place), parts, axis.joined, is_result)
                self._made[node].append(made)

    def _entries(self) -> list[Key]:
        """Axes whose indices are the input's own, so that a selection has to leave any out.

        They are the input's channels, and what flattens it: from there on, single values can leave.
        """
        first = self.nodes[0].name
        entries: list[Key] = [(first, 0)] if self.network.shapes[first] else []
        ones = {self._one[key] for key in entries}
        for node in self.nodes:
            for made in self._made.get(node.name, ()):
                if made.is_result and not made.joined and self._one[made.parts[0]] in ones:
                    entries.append(made.whole)
                    ones.add(self._one[made.whole])
        return entries

    def _grow(self, *rules: Callable[[Node], Needs]) -> None:
        """Keep what the nodes need, then what that needs, until nothing is added."""
        grew = True
        while grew:
            grew = False
            for node in reversed(self.nodes):
                for key, needed in (need for rule in rules for need in rule(node)):
                    keep = self.kept(key)
                    grew |= bool((needed & ~keep).any())
                    keep |= needed

    def _follow(self, node: Node) -> Needs:
        """What a node's result is made of, but for what a weight says."""
        axes, everything = self.axes[node.name], torch.tensor(True)
        if node is self.nodes[-1]:
            yield from ((key, everything) for key in self._value(node.name))
        if axes is None:
            for name in (node.name, *node.inputs):
                yield from ((key, everything) for key in self._value(name))
            return
        yield from (((node.name, name), everything) for name in axes.whole.split())
        if axes.picks is not None:
            indices = self.network.weight(node.weights[axes.picks]).cpu()
            result, source = self._picked(node, axes)
            needed = torch.zeros_like(self.kept(source))
            needed[indices[self.kept(result)]] = True
            yield source, needed
        for made in self._made[node.name]:
            yield from self._parts_of(made) if made.is_result else self._whole_of(made)

    def _reading(self, node: Node) -> Needs:
        """What a node's weights read."""
        if node.name in self._reads:
            rows = self.of_weight(node, "weight", self.kept)[0]
            yield self._column(node), self._reads[node.name][rows].any(0)

    def _ties(self, node: Node) -> Needs:
        """What cannot leave alone: a value of a channel, or what a selection of the input takes."""
        axes = self.axes[node.name]
        if axes is None:
            return
        for made in self._made[node.name]:
            if made.is_result and made.whole in self.entries:
                yield from ((part, torch.tensor(True)) for part in made.parts)
            else:
                yield from self._parts_of(made)
                yield from self._whole_of(made)
        if axes.picks is not None:
            _, source = self._picked(node, axes)
            if self._one[source] in self._from_input:
                yield source, torch.tensor(True)

    def _value(self, name: str) -> Iterator[Key]:
        """The axes of a node's result."""
        yield from ((name, place) for place in range(len(self.network.shapes[name])))

    def _picked(self, node: Node, axes: Axes) -> tuple[Key, Key]:
        """The axis of the result that picks, and that of the input which is picked from."""
        return (node.name, axes.result[0].names[0]), (node.name, axes.read[0][0].names[0])

    def _column(self, node: Node) -> Key:
        """The axis that the columns of a layer's weight are."""
        axes = self.axes[node.name]
        assert axes is not None
        (name,) = axes.of_weight("weight")[1].names
        return node.name, name

    def _parts_of(self, made: _Made) -> Needs:
        """Of an axis made of others, what of these it needs."""
        keep = self.kept(made.whole)
        sizes = [len(self.kept(part)) for part in made.parts]
        if made.joined:
            yield from zip(made.parts, keep.split(sizes), strict=True)
            return
        grid = keep.view(sizes)
        for place, part in enumerate(made.parts):
            yield part, grid.movedim(place, 0).reshape(sizes[place], -1).any(1)

    def _whole_of(self, made: _Made) -> Needs:
        """Of an axis made of others, what these need of it."""
        axis = Axis(tuple(str(name) for _, name in made.parts), made.joined)
        yield made.whole, _whole(axis, [self.kept(part) for part in made.parts])

    def column_constants(self, node: Node) -> Tensor:
        """The value of each column that a layer's weight reads, NaN where none is known."""
        axes = self.axes[node.name]
        assert axes is not None
        place = axes.read[0].index(axes.of_weight("weight")[1])
        return uniform(
            self.constants[node.inputs[0]], place, self.network.shapes[node.inputs[0]][place]
        )

    def reasons(self) -> Iterator[str]:
        """What could have left in principle, and why it stays."""
        opaque = ", ".join(node.name for node in self.network.graph.opaque)
        if opaque:
            yield f"all channels that {opaque} read and give stay: they cannot be seen through"
        for node in self.nodes:
            if isinstance(node.op, Opaque) or not node.inputs:
                continue
            yield from self._reasons_of(node)

    def _reasons_of(self, node: Node) -> Iterator[str]:
        axes = self.axes[node.name]
        source = node.inputs[0]
        shape = self.network.shapes[source]
        known = (
            ~uniform(self.constants[source], 0, shape[0]).isnan() if shape else torch.tensor(False)
        )
        if axes is None:
            reason = self._why_tied.get(node.name) or node.op.why_whole()
            yield f"all channels that {node.name} reads and gives stay: {reason}"
        elif axes.read[0][0].names and axes.read[0][0].names[0] in axes.whole.split():
            if known.any():  # everything else that it reads matters
                yield f"all channels that {node.name} reads and gives stay: {node.op.why_whole()}"
        elif count := int((known & self._read_unevenly(node)).sum()):
            yield (
                f"{count} constant channels of {source} stay: {node.name} pads them, "
                "so no bias can stand for them"
            )

    def _read_unevenly(self, node: Node) -> Tensor:
        """Channels of a node's input that, if constant, are not so any more behind it."""
        axes = self.axes[node.name]
        assert axes is not None
        if node.name in self.taken:
            rows, *_ = self.of_weight(node, "weight", self.kept)
            return self._reads[node.name][rows].any(0)
        if len(node.inputs) == 1 and axes.result and axes.read[0][0] == axes.result[0]:
            size = self.network.shapes[node.name][0]
            return uniform(self.constants[node.name], 0, size).isnan() & self.kept((node.name, 0))
        return torch.tensor(False)


def axes_of(node: Node, network: Network) -> Axes | None:
    """How the axes of a node go together."""
    inputs = [network.shapes[name] for name in node.inputs]
    return node.op.axes(inputs, _weight_shapes(node, network), network.shapes[node.name])


def _weight_shapes(node: Node, network: Network) -> dict[str, tuple[int, ...]]:
    return {role: tuple(network.weight(name).shape) for role, name in node.weights.items()}


def _whole(axis: Axis, parts: Sequence[Tensor]) -> Tensor:
    """The vector of an axis from those of its parts; of one without a name a single True."""
    if axis.joined:
        return torch.cat(list(parts))
    whole = torch.ones(1, dtype=torch.bool)
    for part in parts:
        whole = (whole.view(-1, 1) & part).view(-1)
    return whole


def uniform(constant: Tensor, place: int, size: int) -> Tensor:
    """The value of each index of an axis where it is the same everywhere, else NaN: (size,)."""
    if not constant.ndim:
        return constant.new_full((size,), math.nan)
    values = constant.movedim(place, 0).flatten(1) if constant.ndim > 1 else constant.view(-1, 1)
    low, high = values.aminmax(dim=1)
    even = high - low <= EVEN * high.abs()
    return high.masked_fill(~even, math.nan).expand(size)


def _constants(network: Network, axes: Mapping[str, Axes | None]) -> dict[str, Tensor]:
    """The values that are the same for every input, NaN for the others; float64.

    Of each node a tensor of the dimensions of an example, with size 1 where an axis is uniform.
    """
    constants: dict[str, Tensor] = {}
    for node in network.graph.nodes:
        value = _constant(node, network, axes[node.name], constants)
        constants[node.name] = torch.where(value.isfinite(), value, math.nan)
    return constants


def _constant(
    node: Node, network: Network, axes: Axes | None, constants: Mapping[str, Tensor]
) -> Tensor:
    nothing = torch.full((1,) * len(network.shapes[node.name]), math.nan, dtype=torch.float64)
    inputs = [constants[name] for name in node.inputs]
    if axes is None or not inputs:
        return nothing
    if axes.mixes:
        return _mixed(node, network, axes, inputs[0])
    return _followed(node, network, inputs) if node.op.FOLLOWS else nothing


def _mixed(node: Node, network: Network, axes: Axes, constant: Tensor) -> Tensor:
    """Behind a layer: a row is constant if nothing that it reads is unknown."""
    row, column = axes.of_weight("weight")[:2]
    place = axes.read[0].index(column)
    known = uniform(constant, place, network.shapes[node.inputs[0]][place])
    weight = network.weight(node.weights["weight"])
    unknown = (_nonzero(weight) & _unfoldable(node.op, known)).any(1)
    value = summed(node, network) @ known.nan_to_num()
    if "bias" in node.weights:
        value += exact(network.weight(node.weights["bias"]))
    value = value.masked_fill(unknown, math.nan)
    place = axes.result.index(row)
    return value.view([-1 if p == place else 1 for p in range(len(axes.result))])


def _followed(node: Node, network: Network, constants: Sequence[Tensor]) -> Tensor:
    """Behind an operation that makes NaN of whatever depends on NaN: what it makes of them.

    A padding makes a channel another one at the margin, so that it is uniform no more.
    """
    weights = {role: network.weight(name).detach().cpu() for role, name in node.weights.items()}
    weights = {r: w.double() if w.is_floating_point() else w for r, w in weights.items()}
    seen = node.op.sees(weights)
    filled = []
    for name, constant in zip(node.inputs, constants, strict=True):
        shape = network.shapes[name]
        # elsewhere a place may not be as another, such as at the margin
        size = (*shape[:1], *constant.shape[1:]) if node.op.ELEMENTWISE else shape
        value = constant.expand(size)
        if seen is not True:
            hidden = ~torch.as_tensor(seen).view(-1, *[1] * (len(shape) - 1))
            value = value.masked_fill(hidden, 0)
        filled.append(value.unsqueeze(0))
    (values,) = node.op.known(filled, weights)
    return _narrow(values)


def _narrow(values: Tensor) -> Tensor:
    """The same with size 1 where an axis is uniform."""
    for place in range(values.ndim):
        low, high = values.aminmax(dim=place, keepdim=True)
        unknown = values.isnan()
        even = (high - low <= EVEN * high.abs()) | unknown.all(place, keepdim=True)
        if even.all():
            values = high
    return values


def summed(node: Node, network: Network) -> Tensor:
    """A layer's weight as a float64 matrix (out, in), summed over the kernel's positions."""
    weight = exact(network.weight(node.weights["weight"]))
    return weight.reshape(*weight.shape[:2], -1).sum(2)


def _nonzero(weight: Tensor) -> Tensor:
    """Whether a weight's row has anything but zeros on a column, bool (rows, columns)."""
    return (weight.detach().cpu() != 0).reshape(*weight.shape[:2], -1).any(2)


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
