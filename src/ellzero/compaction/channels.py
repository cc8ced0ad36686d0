"""Which indices of a network's axes matter to its output, and which values are constant.

How the axes of an operation go together is what it declares (`Axes`). Axes that must agree, such as
those of the two summands of a residual connection, are one: they share a vector of what is kept. A
channel is an index of whatever axis a layer's weight reads or gives.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.compaction.constants import (
    as_matrix,
    bias_of,
    constants_of,
    exact,
    fits,
    nonzero,
    taken_up,
    times,
    uniform,
)
from ellzero.graph.graph import Graph, Node
from ellzero.graph.network import Network
from ellzero.operations import Input, Opaque
from ellzero.operations.axes import Axes, Axis

Key = tuple[str, int | str]
"""An axis: a node and the place in its result, or a node and a name that its operation uses."""

Needs = Iterator[tuple[Key, Tensor]]
"""Axes, and for each the indices that it must keep, bool."""


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
        self.constants = constants_of(network, declared)
        tied = tied_nodes(network.graph)
        self.axes = {name: None if name in tied else axes for name, axes in declared.items()}
        """How the axes of each node go together; None where all of them stay whole."""
        self._why_tied = dict.fromkeys(tied, "a weight of it is shared with another layer")
        self._same: dict[Key, Key] = {}  # an axis -> one that is the same, in the end itself
        self._made: dict[str, list[_Made]] = {}
        sizes = dict(self._join())
        self._one = {key: self._first(key) for key in self._same}
        self.entries = dict.fromkeys(self._entries())
        """Axes whose indices are an input's own, in order, so that a selection has to leave any
        out."""
        self._from_input = {self._one[key] for key in self.entries}
        self.taken = {
            node.name: {role: self._takes(node, role) for role in axes.matrices}
            for node in self.nodes
            if (axes := self.axes[node.name]) is not None and axes.matrices
        }
        """Of each layer, by the weight's role, the columns whose constants its bias takes up."""
        self._reads = {
            (node.name, role): nonzero(self.matrix(node, role)) & ~taken
            for node in self.nodes
            for role, taken in self.taken.get(node.name, {}).items()
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
        return [
            _whole(axis, [vector((node.name, n)) for n in axis.names])
            for axis in self._known_axes(node).of_weight(role)
        ]

    def matrix(self, node: Node, role: str) -> Tensor:
        """A layer's weight as `as_matrix` gives it."""
        return as_matrix(node, role, self.network, self._known_axes(node))

    def rows(self, node: Node, role: str) -> Tensor:
        """Which rows of a layer's weight are kept, bool."""
        row, _ = self._known_axes(node).matrices[role]
        return self.of_weight(node, role, self.kept)[row]

    def _known_axes(self, node: Node) -> Axes:
        axes = self.axes[node.name]
        assert axes is not None
        return axes

    def _join(self) -> Iterator[tuple[Key, int]]:
        """Make the axes of one name one; all axes and their sizes."""
        for node in self.nodes:
            shape = self.network.shapes[node.name]
            for place, size in enumerate(shape):
                self._same[node.name, place] = (node.name, place)
                yield (node.name, place), size
            axes = self.axes[node.name]
            if axes is None:
                continue
            inputs = [self.network.shapes[name] for name in node.inputs]
            weights = _weight_shapes(node, self.network)
            for name, size in axes.sizes_of(inputs, shape, weights).items():
                self._same[node.name, name] = (node.name, name)
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
                self._same[self._first((source, place))] = self._first(parts[0])
            elif parts:
                made = _Made((source, place), parts, axis.joined, is_result)
                self._made[node].append(made)

    def _first(self, key: Key) -> Key:
        """The axis that stands for all those that are one with this one."""
        while (other := self._same[key]) != key:
            self._same[key] = self._same[other]  # a shorter way for whoever comes next
            key = other
        return key

    def _entries(self) -> list[Key]:
        """An input's channels, and what flattens it: from there on, single values can leave."""
        columns = {
            self._one[self._column(node, role)]
            for node in self.nodes
            for role in getattr(self.axes[node.name], "matrices", ())
        }
        entries = [
            key
            for name in self.network.graph.inputs
            for key in self._value(name)
            if key[1] == 0 or self._one[key] in columns
        ]
        ones = {self._one[key] for key in entries}
        for name in self.network.graph.inputs:  # of one channel, the first axis there is to see
            several = (place for place, n in enumerate(self.network.shapes[name]) if n > 1)
            ones.add(self._one[name, next(several, 0)])
        for node in self.nodes:
            for made in self._made.get(node.name, ()):
                if made.is_result and not made.joined and self._one[made.parts[0]] in ones:
                    entries.append(made.whole)
                    ones.add(self._one[made.whole])
        return entries

    def _grow(self, *rules: Callable[[Node], Needs]) -> None:
        """Keep what the nodes need, then what that needs, until nothing is added.

        A node is asked again only where an axis of its own has grown since.
        """
        now = 0
        asked: dict[str, int] = {}
        grown: dict[Key, int] = {}  # when each axis grew last
        axes_of_node = {node.name: self._axes_of(node) for node in self.nodes}
        grew = True
        while grew:
            grew = False
            for node in reversed(self.nodes):
                last = max((grown.get(one, 0) for one in axes_of_node[node.name]), default=0)
                if asked.get(node.name, -1) >= last:
                    continue
                asked[node.name] = now
                for key, needed in (need for rule in rules for need in rule(node)):
                    keep = self.kept(key)
                    if (needed & ~keep).any():
                        keep |= needed
                        now += 1
                        grown[self._one[key]] = now
                        grew = True

    def _axes_of(self, node: Node) -> set[Key]:
        """All axes that a node has to do with."""
        keys = {key for name in (node.name, *node.inputs) for key in self._value(name)}
        if (axes := self.axes[node.name]) is not None:
            values = (axes.result, *axes.read, *map(axes.of_weight, axes.weights))
            names = {name for value in values for axis in value for name in axis.names}
            keys.update((node.name, name) for name in names.union(axes.whole.split()))
        return {self._one[key] for key in keys}

    def _follow(self, node: Node) -> Needs:
        """What a node's result is made of, but for what a weight says."""
        axes, everything = self.axes[node.name], torch.tensor(True)
        if node.name in self.network.graph.results:
            yield from ((key, everything) for key in self._value(node.name))
        if axes is None:
            for name in (node.name, *node.inputs):
                yield from ((key, everything) for key in self._value(name))
            return
        if isinstance(node.op, Input):
            yield from (
                (key, everything) for key in self._value(node.name) if key not in self.entries
            )
        yield from (((node.name, name), everything) for name in axes.whole.split())
        if all(self.kept(key).any() for key in self._value(node.name)):
            # what has no name goes with every index of the others
            yield from (
                ((source, place), everything)
                for source, read in zip(node.inputs, axes.read, strict=True)
                for place, axis in enumerate(read)
                if not axis.names
            )
        if axes.picks is not None:
            indices = self.network.weight(node.weights[axes.picks]).cpu()
            result, source = self.picked(node)
            needed = torch.zeros_like(self.kept(source))
            needed[indices[self.kept(result)]] = True
            yield source, needed
        for made in self._made[node.name]:
            yield from self._parts_of(made) if made.is_result else self._whole_of(made)

    def _reading(self, node: Node) -> Needs:
        """What a node's weights read."""
        for role in self.taken.get(node.name, ()):
            yield self._column(node, role), self._read(node, role)

    def _read(self, node: Node, role: str) -> Tensor:
        """Which columns of a weight it reads for what is kept, but for those that it takes up."""
        return self._reads[node.name, role][self.rows(node, role)].any(0)

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
            _, source = self.picked(node)
            if self._one[source] in self._from_input:
                yield source, torch.tensor(True)

    def _value(self, name: str) -> Iterator[Key]:
        """The axes of a node's result."""
        yield from ((name, place) for place in range(len(self.network.shapes[name])))

    def picked(self, node: Node) -> tuple[Key, Key]:
        """The axis of the result that picks, and that of the input which is picked from."""
        axes = self._known_axes(node)
        assert axes.picks is not None
        place = axes.result.index(axes.of_weight(axes.picks)[0])
        return (node.name, axes.result[place].names[0]), (node.name, axes.read[0][place].names[0])

    def _column(self, node: Node, role: str) -> Key:
        """The axis that the columns of a layer's weight are."""
        axes = self._known_axes(node)
        (name,) = axes.of_weight(role)[axes.matrices[role][1]].names
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

    def column_constants(self, node: Node, role: str) -> Tensor:
        """The value of each column that a layer's weight reads, NaN where none is known."""
        axes = self._known_axes(node)
        column = axes.of_weight(role)[axes.matrices[role][1]]
        values = [*zip(node.inputs, axes.read, strict=True), (node.name, axes.result)]
        first, *others = (
            uniform(self.constants[name], place, self.network.shapes[name][place])
            for name, value in values
            for place, axis in enumerate(value)
            if axis == column
        )
        for other in others:
            first = first.masked_fill(first != other, math.nan)
        return first

    def _takes(self, node: Node, role: str) -> Tensor:
        known = self.column_constants(node, role)
        folds = not self._is_state(node, role) and self._bias_fits(node, role, known)
        return taken_up(node.op, role, known, folds=folds)

    def _bias_fits(self, node: Node, role: str, known: Tensor) -> bool:
        """Whether a bias that takes up the known columns is finite in its type."""
        bias = times(self.matrix(node, role), known.nan_to_num())
        if bias_of(role) in node.weights:
            bias += exact(self.network.weight(node.weights[bias_of(role)]))
        return fits(bias, self.network.weight(node.weights[role]).dtype)

    def _is_state(self, node: Node, role: str) -> bool:
        """Whether a weight reads what the node itself gave a step before."""
        axes = self._known_axes(node)
        return axes.of_weight(role)[axes.matrices[role][1]] in axes.result

    def reasons(self) -> Iterator[str]:
        """What could have left in principle, and why it stays."""
        opaque = ", ".join(node.named for node in self.network.graph.opaque)
        if opaque:
            yield f"all channels that {opaque} read and give stay: they cannot be seen through"
        for node in self.nodes:
            if isinstance(node.op, Opaque) or not node.inputs:
                continue
            yield from self._reasons_of(node)

    def _reasons_of(self, node: Node) -> Iterator[str]:
        axes, source = self.axes[node.name], node.inputs[0]
        shape = self.network.shapes[source]
        known = (
            ~uniform(self.constants[source], 0, shape[0]).isnan() if shape else torch.tensor(False)
        )
        if axes is None:
            reason = self._why_tied.get(node.name) or node.op.why_whole()
            yield f"all channels that {node.name} reads and gives stay: {reason}"
        elif node.name in self.taken:
            for role in self.taken[node.name]:
                yield from self._why_not_taken(node, role)
        elif axes.read[0][0].names and axes.read[0][0].names[0] in axes.whole.split():
            if known.any():  # everything else that it reads matters
                yield f"all channels that {node.name} reads and gives stay: {node.op.why_whole()}"
        elif count := int((known & self._made_uneven(node)).sum()):
            yield _no_bias(count, source, f"{node.name} pads them")

    def _made_uneven(self, node: Node) -> Tensor:
        """Channels of a node's input that, if constant, are not so any more behind it."""
        axes = self._known_axes(node)
        if len(node.inputs) == 1 and axes.result and axes.read[0][0] == axes.result[0]:
            size = self.network.shapes[node.name][0]
            return uniform(self.constants[node.name], 0, size).isnan() & self.kept((node.name, 0))
        return torch.tensor(False)

    def _why_not_taken(self, node: Node, role: str) -> Iterator[str]:
        known = ~self.column_constants(node, role).isnan()
        if count := int((known & self._read(node, role)).sum()):
            source, reason = node.inputs[0], f"{node.name} pads them"
            if self._is_state(node, role):
                source, reason = node.name, f"{node.name} begins at other values"
            elif node.op.folds_constants():
                reason = f"that of {node.name} would be too large"
            yield _no_bias(count, source, reason)


def _no_bias(count: int, source: str, reason: str) -> str:
    return f"{count} constant channels of {source} stay: {reason}, so no bias can stand for them"


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


def tied_nodes(graph: Graph) -> set[str]:
    """The nodes of which a weight is another node's too."""
    uses = Counter(name for node in graph.nodes for name in node.weights.values())
    return {n.name for n in graph.nodes if any(uses[name] > 1 for name in n.weights.values())}
