"""What a network of integers is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ellzero.graph import Network, Node
from ellzero.graph.graph import free_name
from ellzero.operations import Operation
from ellzero.quantization.converting import Converter
from ellzero.quantization.scale import Scale
from ellzero.quantization.scales import scales_of


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A network of floats, and the ranges of its values.

    Args:
        network: as `rewritten` gives it, of what has an integer form.
        ranges: by node, (low <= 0, high >= 0).
        softmax: what was left out at the end; None where nothing was.
    """

    network: Network
    ranges: Mapping[str, tuple[float, float]]
    softmax: Operation | None

    @cached_property
    def scales(self) -> dict[str, Scale]:
        """How the result of each node is held."""
        return scales_of(self.network, self.ranges)

    def integers(self) -> Network:
        """The network of integers.

        Raises:
            InputError: sums that int32 cannot hold, by the layer.
        """
        return Converter(self.network, self.scales).network()

    def held(self, integers: Network) -> dict[str, tuple[float, int]]:
        """Scale and zero point of each value that the network of integers holds."""
        scales = self.scales.items()
        return {name: (s.scale, s.zero) for name, s in scales if name in integers.shapes}

    def ended(self, network: Network) -> Network:
        """A network of these floats, or of integers, with the softmax that a loss may expect."""
        if self.softmax is None:
            return network
        graph = network.graph
        name = free_name("softmax", network.shapes)
        node = Node(name=name, op=self.softmax, inputs=graph.results)
        outputs = tuple(output.model_copy(update={"node": name}) for output in graph.outputs)
        changed = graph.model_copy(update={"nodes": (*graph.nodes, node), "outputs": outputs})
        return Network(changed, weights_of(network)).eval()


def weights_of(network: Network) -> dict[str, Tensor]:
    """All weights of a network by their names, as they are."""
    return {name: network.weight(name) for name in network.graph.weight_names()}
