"""Multiply-adds of a network, with every weight and with those that are not zero."""

from __future__ import annotations

from dataclasses import dataclass

from ellzero.graph import Network


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one example: linear, convolution or recurrent.

    Args:
        name: the node.
        weights: entries of its weights.
        nonzeros: those that are not zero.
        macs: multiply-adds with all of them; a convolution's windows in the padding count in full.
        effective_macs: multiply-adds with the nonzeros alone.
    """

    name: str
    weights: int
    nonzeros: int
    macs: int
    effective_macs: int


def layer_costs(network: Network) -> list[LayerCost]:
    """Weights and multiply-adds of each layer, in the order they run.

    Torch's own counter takes a sparse product for a dense one, so they are counted here.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten())
        >>> masks = ez.prune(model, nonzeros=6)
        >>> layer_costs(ez.trace(model, torch.zeros(1, 1, 5, 5)))
        [LayerCost(name='0', weights=18, nonzeros=6, macs=162, effective_macs=54)]
    """
    costs = []
    for node in network.graph.nodes:
        weights = [network.weight(name) for name in node.layer_weights.values()]
        if not weights:
            continue
        count = sum(weight.numel() for weight in weights)
        nonzeros = sum(int(weight.count_nonzero()) for weight in weights)
        inputs = [network.shapes[name] for name in node.inputs]
        times = node.op.repeats(inputs, network.shapes[node.name])
        costs.append(LayerCost(node.name, count, nonzeros, count * times, nonzeros * times))
    return costs
