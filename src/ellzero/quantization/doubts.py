"""What calibration data say of values that int8 will hold badly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ellzero.graph import Network, Node
from ellzero.quantization.ranges import FEW, Histogram
from ellzero.quantization.rewriting import limited_by

STRETCH = 8
"""A range so many times as wide as most values need leaves them 32 of the 256 integers."""

LISTED = 5


def doubts(
    network: Network,
    seen: Mapping[str, Histogram],
    ranges: Mapping[str, tuple[float, float]],
) -> str:
    """A warning of a network's values, by the nodes that give them; "" where there is none.

    - Few values set the range: it is more than 8 times as wide as all but one in 1,000 of those
      that are not 0 need.
    - A constant channel sets the range: it is more than 8 times as wide as that of the channels
      that change.
    - A dead layer: its channels are all constant on the data, which what it reads is not.

    Args:
        network: of floats, as it is converted.
        seen: what its nodes gave on calibration data.
        ranges: what they are held in.
    """
    limited = limited_by(network.graph)  # what the limit behind it cuts off needs no range
    nodes = [node for node in network.graph.nodes if node.name not in limited]
    found = [text for node in nodes for text in _doubts(node, network, seen, ranges)]
    more = f"; and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return "; ".join(found[:LISTED]) + more


def _doubts(
    node: Node,
    network: Network,
    seen: Mapping[str, Histogram],
    ranges: Mapping[str, tuple[float, float]],
) -> Iterator[str]:
    values, (low, high) = seen[node.name], ranges[node.name]
    if values.examples < 2:  # of one example every value is constant
        return
    if values.is_constant:
        layers = [network.weight(name) for name in node.layer_weights.values()]
        is_first = bool(node.inputs) and not all(seen[name].is_constant for name in node.inputs)
        if is_first and all(weight.any() for weight in layers):  # else it was said before
            yield f"{node.named}: gives the same for all calibration data; it is dead on them"
        return
    channel, changing = values.largest_constant, values.width_of_changing
    needed = values.width_of_most
    if channel is not None and high - low > STRETCH * changing:
        place, value = channel
        yield (
            f"{node.named}: channel {place} is constant at {value:.3g} on the calibration data and "
            f"sets the range, {(high - low) / changing:.0f} times as wide as the others need; "
            "leave it out, or make it smaller"
        )
    elif high - low > STRETCH * needed:
        yield (
            f"{node.named}: few values set the range, {low:.3g} to {high:.3g}, "
            f"{(high - low) / needed:.0f} times as wide as {1 - FEW:.1%} of the others need; "
            "look for outliers in the data, or try ranges='percentile'"
        )
