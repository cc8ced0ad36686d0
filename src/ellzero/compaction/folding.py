"""Folding: batch normalizations become part of the layers before them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from ellzero.codebook import MAX_VALUES, find_codebook
from ellzero.compaction.channels import Channels, axes_of, tied_nodes
from ellzero.compaction.constants import along, bias_of, exact, fits
from ellzero.graph import Network, Node
from ellzero.graph.graph import free_name
from ellzero.operations import Affine


@dataclass(frozen=True, eq=False)
class Folded:
    """A network with fewer affine nodes and the same output.

    Args:
        original: the network that it was made of.
        network: it shares the tensors that did not change.
        gone: the affine nodes that are part of a layer now.
        kept: those that stay, and why.
    """

    original: Network
    network: Network
    gone: tuple[str, ...]
    kept: tuple[str, ...]

    @cached_property
    def channels(self) -> Channels:
        """Which of its channels matter: looked into once, for all who want to know."""
        return Channels(self.network)


def folded(network: Network, *, codebooks: bool = True) -> Folded:
    """The network with each affine node folded into the layer before it, where it can be.

    Args:
        network: as it was traced.
        codebooks: whether a weight that was quantized to few values stays so, and the affine node
            behind it where it is.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        >>> folded(ez.trace(model, torch.zeros(1, 3))).gone
        ('1',)
    """
    graph = network.graph
    weights = {name: network.weight(name) for name in graph.weight_names()}
    readers, tied = graph.consumers(), tied_nodes(graph)
    nodes: dict[str, Node] = {}
    result: dict[str, str] = {}  # folded node -> the layer whose result is now its own
    kept = []
    for original in graph.nodes:
        node = original.reading(result)
        nodes[node.name] = node
        if not isinstance(node.op, Affine):
            continue
        layer = nodes[node.inputs[0]]
        if layer.op.LAYER is None or "bias" not in (*layer.op.REQUIRED, *layer.op.OPTIONAL):
            reason = f"{layer.name} before it is no linear layer or convolution"
        elif (place := _scaled_dimension(layer, network)) is None:
            reason = f"what it scales is no row of {layer.name} before it"
        elif len(readers[original.inputs[0]]) > 1:
            reason = f"{layer.name} before it is read elsewhere, too"
        elif layer.name in tied:
            reason = f"a weight of {layer.name} before it is shared with another layer"
        elif isinstance(changed := _scaled(layer, node, weights, place, codebooks), str):
            reason = changed
        else:
            del nodes[node.name], nodes[layer.name]
            nodes[layer.name] = changed  # where the affine node stood
            result[node.name] = layer.name
            continue
        kept.append(f"{node.name} stays a scale and a shift: {reason}")
    changed = graph.model_copy(update={"nodes": tuple(nodes.values())})
    left = {name: weights[name] for name in changed.weight_names()}
    smaller = Network(changed, left, network.weight_kinds())
    return Folded(network, smaller, tuple(result), tuple(kept))


def _scaled_dimension(layer: Node, network: Network) -> int | None:
    """Which dimension of a layer's weight its result's first axis is; None where it is none."""
    axes = axes_of(layer, network)
    if axes is None:
        return 0
    names = axes.of_weight("weight")
    return names.index(axes.result[0]) if axes.result[0] in names else None


def _scaled(
    layer: Node, affine: Node, weights: dict[str, Tensor], place: int, codebooks: bool
) -> Node | str:
    """The layer whose result is scaled and shifted; its weights are replaced.

    Or why nothing is: a number would become infinite in its type, or few values many.
    """
    name = layer.weights["weight"]
    old = weights[name]
    scale, shift = (exact(weights[affine.weights[role]]) for role in ("scale", "shift"))
    scaled = exact(old) * along(scale, place, old.ndim)
    if "bias" in layer.weights:
        shift = shift + scale * exact(weights[layer.weights["bias"]])
    if not (fits(scaled, old.dtype) and fits(shift, old.dtype)):
        return f"in {layer.name} before it the numbers would be too large"
    new = like(scaled, old)
    if codebooks and _is_quantized(old) and not _has_as_few_values(new, old):
        return (
            f"{layer.name} before it was quantized, and its few values would become many; "
            "compact first, then quantize"
        )
    weights[name] = new
    return with_bias(layer, shift, weights)


def _is_quantized(weight: Tensor) -> bool:
    """Whether it has few values, and not because it has few entries."""
    return find_codebook(weight) is not None and int(weight.count_nonzero()) > MAX_VALUES


def _has_as_few_values(new: Tensor, old: Tensor) -> bool:
    one, other = find_codebook(new), find_codebook(old)
    return one is not None and other is not None and len(one.values) <= len(other.values)


def with_bias(layer: Node, bias: Tensor, weights: dict[str, Tensor], role: str = "weight") -> Node:
    """The layer with another bias beside a weight, a new one where it had none."""
    if bias_of(role) in layer.weights:
        name = layer.weights[bias_of(role)]
        weights[name] = like(bias, weights[name])
        return layer
    weight = layer.weights[role]
    # "fc.weight" -> "fc.bias", "weight_ih_l0" -> "bias_ih_l0"; with a name of its own, "w_bias"
    path, _, local = weight.rpartition(".")
    new = bias_of(local) if local.startswith("weight") else f"{local}_bias"
    name = free_name(f"{path}." * bool(path) + new, weights)
    weights[name] = like(bias, weights[weight])
    return layer.model_copy(update={"weights": {**layer.weights, bias_of(role): name}})


def like(values: Tensor, old: Tensor) -> Tensor:
    """Values in the place of an old tensor: its dtype, its device, a parameter if it was one."""
    new = values.to(device=old.device, dtype=old.dtype)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
