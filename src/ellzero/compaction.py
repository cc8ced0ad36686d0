"""Compaction: what cannot matter leaves a network, and its output stays what it was.

A channel (an index of an example's first dimension) leaves if nothing reads it, or if its value is
a known constant that the biases after it can take up; `ellzero.graph.channels` finds out which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ellzero.errors import InputError
from ellzero.graph import Graph, Network, Node, ops, trace
from ellzero.graph.channels import Channels, exact, summed, tied_nodes


@dataclass(frozen=True)
class Removed:
    """What left a layer: `before` of its outputs or inputs became `after`.

    A batch normalization that became part of the layer before it is a `"node"`, 1 before, 0 after.
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
    """

    model: Network
    removed: tuple[Removed, ...]
    kept: tuple[str, ...]


@torch.no_grad()
def compact(model: nn.Module, example: Tensor | None = None) -> Compacted:
    """Remove what cannot matter to a network's output: dead units and channels, batch norms.

    A unit or channel leaves if nothing reads it, or if it is constant and the biases after it can
    take its value up exactly; so do the inputs that nothing reads (a selection at the beginning
    then leaves them out, for the network takes the inputs it always took). Batch normalizations
    become part of the layer before them. The output is the same up to rounding; of every layer at
    least one channel stays.

    Args:
        model: the network; it is not changed.
        example: a batch (N, ...) of its inputs, as for `ez.trace`; a traced network needs none.

    Raises:
        InputError: a network that cannot be traced, or a weight that holds NaN or inf.

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
    network = trace(model, example)
    _check_finite(network)
    network, folded, unfolded = _without_affine(network)
    channels = Channels(network)
    graph, weights = _sliced(network, channels)
    smaller = Network(graph, weights).eval()
    removed = (*folded, *_differences(network, smaller))
    return Compacted(smaller, removed, (*unfolded, *channels.kept()))


def _check_finite(network: Network) -> None:
    for node in network.graph.nodes:
        if isinstance(node.op, ops.Opaque):
            continue  # it stays as it is, whatever its weights are
        for name in node.weights.values():
            weight = network.weight(name)
            if not weight.isfinite().all():
                raise InputError(
                    f"{name} {tuple(weight.shape)} holds NaN or inf; expected finite weights, or "
                    "it cannot be said which of them matter"
                )


def _without_affine(network: Network) -> tuple[Network, list[Removed], list[str]]:
    """The network with each affine node folded into the layer before it, where it can be."""
    graph = network.graph
    weights = {name: network.weight(name) for name in graph.weight_names()}
    readers, tied = graph.consumers(), tied_nodes(graph)
    nodes: dict[str, Node] = {}
    result: dict[str, str] = {}  # folded node -> the layer whose result is now its own
    kept = []
    for original in graph.nodes:
        node = _reading(original, result)
        nodes[node.name] = node
        if not isinstance(node.op, ops.Affine):
            continue
        layer = nodes[node.inputs[0]]
        if layer.op.LAYER is None or "bias" not in (*layer.op.REQUIRED, *layer.op.OPTIONAL):
            reason = f"{layer.name} before it is no linear layer or convolution"
        elif len(readers[original.inputs[0]]) > 1:
            reason = f"{layer.name} before it is read elsewhere, too"
        elif layer.name in tied:
            reason = f"a weight of {layer.name} before it is shared with another layer"
        else:
            del nodes[node.name], nodes[layer.name]
            nodes[layer.name] = _scaled(layer, node, weights)  # where the affine node stood
            result[node.name] = layer.name
            continue
        kept.append(f"{node.name} stays a scale and a shift: {reason}")
    changed = graph.model_copy(update={"nodes": tuple(nodes.values())})
    removed = [Removed(name, "node", 1, 0) for name in result]
    return Network(changed, {n: weights[n] for n in changed.weight_names()}), removed, kept


def _scaled(layer: Node, affine: Node, weights: dict[str, Tensor]) -> Node:
    """The layer whose result is scaled and shifted; its weights are replaced."""
    name = layer.weights["weight"]
    old = weights[name]
    scale, shift = (exact(weights[affine.weights[role]]) for role in ("scale", "shift"))
    weights[name] = _like(exact(old) * scale.view(-1, *[1] * (old.ndim - 1)), old)
    if "bias" in layer.weights:
        shift = shift + scale * exact(weights[layer.weights["bias"]])
    return _with_bias(layer, shift, weights)


def _with_bias(layer: Node, bias: Tensor, weights: dict[str, Tensor]) -> Node:
    """The layer with another bias, a new one where it had none."""
    if "bias" in layer.weights:
        name = layer.weights["bias"]
        weights[name] = _like(bias, weights[name])
        return layer
    weight = layer.weights["weight"]
    # "fc.weight" -> "fc.bias"; a weight with a name of its own, "w" -> "w_bias"
    path, _, local = weight.rpartition(".")
    name = f"{path}." * bool(path) + ("bias" if local == "weight" else f"{local}_bias")
    while name in weights:
        name += "_"
    weights[name] = _like(bias, weights[weight])
    return layer.model_copy(update={"weights": {**layer.weights, "bias": name}})


def _sliced(network: Network, channels: Channels) -> tuple[Graph, dict[str, Tensor]]:
    """The graph and its weights with only the channels that are kept."""
    weights = {name: network.weight(name) for name in network.graph.weight_names()}
    nodes: list[Node] = []
    result: dict[str, str] = {}  # entry -> the selection of its channels
    for node in network.graph.nodes:
        nodes.append(_reading(_slice(node, network, channels, weights), result))
        if node.name in channels.entries and not channels[node.name].all():
            name = f"{node.name}_select"
            while name in network.shapes:
                name += "_"
            indices = f"{name}.indices"
            weights[indices] = channels[node.name].nonzero().view(-1).to(_device(network))
            nodes.append(
                Node(name=name, op=ops.Select(), inputs=(node.name,), weights={"indices": indices})
            )
            result[node.name] = name
    return network.graph.model_copy(update={"nodes": tuple(nodes)}), weights


def _slice(node: Node, network: Network, channels: Channels, weights: dict[str, Tensor]) -> Node:
    """A node of fewer channels; its weights are replaced."""
    keep = channels[node.name]
    if channels.barrier(node):
        return node
    if channels.passing[node.name] == "pick":
        name = node.weights["indices"]
        place = channels[node.inputs[0]].cumsum(0) - 1
        weights[name] = _like(place[weights[name].cpu()[keep]], weights[name])
        return node
    old = dict(weights)
    for name in node.weights.values():
        weights[name] = _like(old[name].detach().cpu()[keep], old[name])
    if channels.passing[node.name] != "mix":
        return node.model_copy(update={"op": node.op.narrowed(int(keep.sum()))})
    name, read = node.weights["weight"], channels[node.inputs[0]]
    weights[name] = _like(weights[name].detach().cpu()[:, read], old[name])
    gone = channels.constants[node.inputs[0]].nan_to_num().masked_fill(read, 0)
    folded = (summed(node, network) @ gone)[keep]
    if not folded.any():
        return node
    if "bias" in node.weights:
        folded += exact(weights[node.weights["bias"]])
    return _with_bias(node, folded, weights)


def _differences(before: Network, after: Network) -> Iterator[Removed]:
    """What left the layers, those with a matrix or a kernel."""
    smaller = {node.name: node for node in after.graph.nodes}
    for node in before.graph.nodes:
        if node.op.LAYER is None:
            continue
        new = smaller[node.name]
        outputs = (before.shapes[node.name][0], after.shapes[node.name][0])
        inputs = (before.shapes[node.inputs[0]][0], after.shapes[new.inputs[0]][0])
        if outputs[0] != outputs[1]:
            yield Removed(node.name, "outputs", *outputs)
        if inputs[0] != inputs[1]:
            yield Removed(node.name, "inputs", *inputs)


def _reading(node: Node, instead: Mapping[str, str]) -> Node:
    """The node with some of its inputs replaced."""
    return node.model_copy(update={"inputs": tuple(instead.get(n, n) for n in node.inputs)})


def _device(network: Network) -> torch.device:
    return next((w.device for w in network.parameters()), torch.device("cpu"))


def _like(values: Tensor, old: Tensor) -> Tensor:
    """Values in the place of an old tensor: its dtype, its device, a parameter if it was one."""
    new = values.to(device=old.device, dtype=old.dtype)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
