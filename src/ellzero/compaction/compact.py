"""Compaction: what cannot matter leaves a network, and its output stays what it was.

A channel (an index of an example's first dimension) leaves if nothing reads it, or if its value is
a known constant that the biases after it can take up; `channels.py` finds out which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ellzero.compaction.channels import Channels
from ellzero.compaction.constants import along, bias_of, exact, times
from ellzero.compaction.folding import Folded, folded, like, with_bias
from ellzero.compaction.living import warn_if_dead
from ellzero.errors import InputError, is_number
from ellzero.graph import Graph, Network, Node, trace
from ellzero.graph.graph import free_name
from ellzero.graph.trace import Example
from ellzero.modules import device_of
from ellzero.operations import Opaque, Select
from ellzero.tensors import Shape


@dataclass(frozen=True)
class Removed:
    """What left a layer: `before` of its outputs or inputs became `after`.

    A batch normalization that became part of the layer before it is a `"node"`, 1 before, 0 after.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 4))
        >>> _ = torch.nn.init.zeros_(model[1].weight[:, 0].detach())
        >>> ez.compact(model, torch.zeros(1, 3)).removed[0]
        Removed(layer='0', what='outputs', before=2, after=1)
    """

    layer: str
    what: Literal["outputs", "inputs", "node"]
    before: int
    after: int


@dataclass(frozen=True, eq=False)
class Compacted:
    """A smaller network of the same output, and what was done to make it.

    Args:
        model: the network; its weights are its own.
        removed: what left each layer, in order.
        kept: what could have left in principle, but stays, and why.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        >>> compacted = ez.compact(model, torch.zeros(1, 3))
        >>> list(compacted.model.state_dict()), compacted.removed
        (['0.weight', '0.bias'], (Removed(layer='1', what='node', before=1, after=0),))
    """

    model: Network
    removed: tuple[Removed, ...]
    kept: tuple[str, ...]


def compact(
    model: nn.Module, example: Example | None = None, *, tolerance: float = 0.0
) -> Compacted:
    """Remove what cannot matter to a network's output: dead units and channels, batch norms.

    A unit or channel leaves if nothing reads it, or if it is constant and the biases after it can
    take its value up exactly; so do the inputs that nothing reads (a selection at the beginning
    then leaves them out, for the network takes the inputs it always took). Batch normalizations
    become part of the layer before them. The output is the same up to rounding; of every layer at
    least one channel stays. A warning names layers without a weight and outputs that are constant.

    Args:
        model: the network; it is not changed.
        example: a batch (N, ...) of its inputs, as for `ez.trace`; a traced network needs none.
        tolerance: weights of layers count as zeros, and become zeros, where they are no larger than
            this times the largest one of their layer. By default none do, so that the output stays;
            1e-6 lets go what a weight of 1e-30 keeps alive, and changes float32 outputs hardly more
            than rounding does.

    Raises:
        InputError: a network that cannot be traced, or a weight that holds NaN or inf; a tolerance
            that is no number in [0, 1).

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
        ... )
        >>> _ = model[2].weight.data[:, :5].zero_()
        >>> compacted = ez.compact(model, torch.zeros(1, 3))
        >>> compacted.removed[0]
        Removed(layer='0', what='outputs', before=8, after=3)
    """
    if not is_number(tolerance) or not 0 <= tolerance < 1:
        raise InputError(f"tolerance is {tolerance!r}; expected a number in [0, 1)")
    network = trace(model, example)
    if tolerance:
        _zero_small(network, tolerance)
    changed = folded(network)
    compacted = compacted_of(changed)
    warn_if_dead(changed)
    return compacted


@torch.no_grad()
def _zero_small(network: Network, tolerance: float) -> None:
    """Set the small weights of each layer to zero."""
    for node in network.graph.nodes:
        for name in node.layer_weights.values():
            magnitudes = network.weight(name).abs()
            small = magnitudes <= tolerance * magnitudes.max()
            network.weight(name).masked_fill_(small, 0)


@torch.no_grad()
def compacted_of(changed: Folded) -> Compacted:
    """What `compact` gives for a traced and folded network, without a warning."""
    _check_finite(changed.original)
    channels = changed.channels
    graph, weights = _sliced(changed.network, channels)
    smaller = Network(graph, weights, changed.network.weight_kinds()).eval()
    removed = [Removed(name, "node", 1, 0) for name in changed.gone]
    removed += _differences(changed.network, smaller)
    return Compacted(smaller, tuple(removed), (*changed.kept, *channels.reasons()))


def _check_finite(network: Network) -> None:
    for node in network.graph.nodes:
        if isinstance(node.op, Opaque):
            continue  # it stays as it is, whatever its weights are
        for name in node.weights.values():
            weight = network.weight(name)
            if not weight.isfinite().all():
                raise InputError(
                    f"{name} {tuple(weight.shape)} holds NaN or inf; expected finite weights, or "
                    "it cannot be said which of them matter"
                )


def _sliced(network: Network, channels: Channels) -> tuple[Graph, dict[str, Tensor]]:
    """The graph and its weights with only the channels that are kept."""
    weights = {name: network.weight(name) for name in network.graph.weight_names()}
    nodes: list[Node] = []
    result: dict[str, str] = {}  # entry -> the selection of its channels
    names = set(network.shapes)
    for node in network.graph.nodes:
        nodes.append(_slice(node, network, channels, weights).reading(result))
        for place in range(len(network.shapes[node.name])):
            key = (node.name, place)
            if key in channels.entries and not channels.kept(key).all():
                source = result.get(node.name, node.name)
                name = free_name(f"{node.name}_select", names)
                names.add(name)
                roles = {"indices": f"{name}.indices"}
                kept = channels.kept(key).nonzero().view(-1)
                weights[roles["indices"]] = kept.to(device_of(network))
                nodes.append(
                    Node(name=name, op=Select(axis=place), inputs=(source,), weights=roles)
                )
                result[node.name] = name
    return network.graph.model_copy(update={"nodes": tuple(nodes)}), weights


def _slice(node: Node, network: Network, channels: Channels, weights: dict[str, Tensor]) -> Node:
    """A node of fewer channels; its weights are replaced."""
    axes = channels.axes[node.name]
    if axes is None:
        return node
    old = {name: weights[name] for name in node.weights.values()}
    taken = channels.taken.get(node.name, {})
    for role, name in node.weights.items():
        values = old[name].detach().cpu()
        if role in taken:
            values = values.masked_fill(along(taken[role], axes.matrices[role][1], values.ndim), 0)
        if role == axes.picks:
            values = (channels.kept(channels.picked(node)[1]).cumsum(0) - 1)[values]
        for place, keep in enumerate(channels.of_weight(node, role, channels.kept)):
            if not keep.all():
                values = values.index_select(place, keep.nonzero().view(-1))
        weights[name] = like(values, old[name])
    names = {
        name for axis in (*axes.result, *(a for r in axes.read for a in r)) for name in axis.names
    }
    kept = {name: int(channels.kept((node.name, name)).sum()) for name in names}
    sizes = network.shapes[node.name]
    places = [(node.name, place) for place in range(len(sizes))]
    left = tuple(  # of an entry nothing leaves here: a selection behind the node takes what is kept
        size if key in channels.entries else int(channels.kept(key).sum())
        for key, size in zip(places, sizes, strict=True)
    )
    node = node.model_copy(update={"op": node.op.narrowed(kept, left)})
    for role, columns in taken.items():
        constants = channels.column_constants(node, role).masked_fill(~columns, 0)
        bias = times(channels.matrix(node, role), constants)[channels.rows(node, role)]
        if bias.any():
            if bias_of(role) in node.weights:
                bias += exact(weights[node.weights[bias_of(role)]])
            node = with_bias(node, bias, weights, role)
    return node


def _differences(before: Network, after: Network) -> Iterator[Removed]:
    """What left the layers, those with a matrix or a kernel."""
    smaller = {node.name: node for node in after.graph.nodes}
    for node in before.graph.nodes:
        if node.op.LAYER is None:
            continue
        new = smaller[node.name]
        outputs = (before.shapes[node.name], after.shapes[node.name])
        inputs = (before.shapes[node.inputs[0]], after.shapes[new.inputs[0]])
        yield from _removed(node.name, "outputs", *outputs)
        yield from _removed(node.name, "inputs", *inputs)


def _removed(
    name: str, what: Literal["outputs", "inputs"], before: Shape, after: Shape
) -> Iterator[Removed]:
    for size, left in zip(before, after, strict=True):
        if left < size:
            yield Removed(name, what, size, left)
