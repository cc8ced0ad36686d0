"""Which scale each value of an integer network has: values that are only moved share one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.graph import Network, Node
from ellzero.operations import Affine, Concat, Conv, Linear, Pool
from ellzero.operations.integer.fixed_point import LARGEST_FACTOR
from ellzero.operations.integer.pool import IntegerPool
from ellzero.quantization.rewriting import keeps_scale, limited_by
from ellzero.quantization.scale import Scale

LEAST_FACTOR = 2.0**-20
"""Of a row with tiny weights or none: what it adds up to then is far below one step."""

BIAS_LIMIT = 2**30
"""What a bias can be, in units of the sum, in either direction."""


def scales_of(network: Network, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Scale]:
    """The scale of each node's result.

    What a limit follows has the limit's range. What is concatenated, pooled by its maximum or moved
    has one range, the union. A scale is no finer than twice the unit of the sum that is rounded to
    it, so that every factor is below 1/2.

    Args:
        network: as `rewritten` gives it.
        ranges: by node, (low <= 0, high >= 0).

    Raises:
        InputError: a layer whose result has to share its input's scale and is far larger.
    """
    limits = limited_by(network.graph)
    alike = {name: name for name in network.shapes}

    def first(name: str) -> str:
        while alike[name] != name:
            name = alike[name]
        return name

    for node in network.graph.nodes:
        if keeps_scale(node) or isinstance(node.op, Concat):
            for source in node.inputs:
                alike[first(source)] = first(node.name)
    for name, limit in limits.items():
        alike[first(name)] = first(limit)
    low, high = dict.fromkeys(network.shapes, 0.0), dict.fromkeys(network.shapes, 0.0)
    for name, (least, most) in ranges.items():
        if name not in limits:
            low[first(name)] = min(low[first(name)], least)
            high[first(name)] = max(high[first(name)], most)
    held = {name: Scale.of_range(low[name], high[name]) for name in low}
    coarser: dict[str, Scale] = {}
    for _ in range(len(network.shapes) + 1):
        coarser = {}
        for node in network.graph.nodes:
            for unit in _units(node, network):
                source, result = first(node.inputs[0]), first(node.name)
                least = held[source].scale * unit / LARGEST_FACTOR
                if held[result].scale < least:
                    coarser[result] = held[result] = Scale.of_range(
                        low[result], high[result], least
                    )
        if not coarser:
            return {name: held[first(name)] for name in network.shapes}
    name = min(coarser)
    raise InputError(
        f"{name} has to share its scale with what it is made of, and is far larger: there are no "
        "integers for both; rescale the layer's weights"
    )


def row_scales(largest: Tensor, bias: Tensor, source: Scale, held: Scale) -> Tensor:
    """The scale of each row of a layer's weights: what an int8 step of it is.

    A row of tiny weights has a coarser one than it could, so that factor and bias fit. A bias so
    large that no scale fits becomes the largest one; what it gives is a limit all the same.

    Args:
        largest: each row's largest magnitude, (out).
        bias: (out).
        source: how what the layer reads is held.
        held: how its result is.
    """
    scale = (largest / 127).clamp(min=LEAST_FACTOR * held.scale / source.scale)
    scale = torch.maximum(scale, bias.abs() / (source.scale * BIAS_LIMIT))
    return scale.clamp(max=LARGEST_FACTOR * held.scale / source.scale)


def _units(node: Node, network: Network) -> Iterator[float]:
    """The unit of the sum that a node rounds, in units of its input, the largest of its outputs."""
    op = node.op
    if isinstance(op, Linear | Conv | Affine):
        role = "scale" if isinstance(op, Affine) else "weight"
        yield float(network.weight(node.weights[role]).detach().abs().max()) / 127
    elif isinstance(op, Pool) and op.function == "average":
        counts = IntegerPool.of(op).counts(network.shapes[node.inputs[0]][1:])
        yield 1 / int(torch.min(counts))
