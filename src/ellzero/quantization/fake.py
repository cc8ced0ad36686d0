"""Fake quantization: a network of floats that computes with what its integer form can hold.

Weights, biases and values are rounded to the grids of the integers, and gradients go through the
rounding as if it were not there, but for values outside of their range (a straight-through
estimator: Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018, https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ellzero.errors import DivergenceError
from ellzero.graph import Graph, Network, Node
from ellzero.graph.graph import free_name
from ellzero.operations import Affine, Concat, Linear, Operation
from ellzero.operations.integer.fixed_point import Value
from ellzero.quantization.calibrated import Calibrated, weights_of
from ellzero.quantization.rewriting import keeps_scale, limited_by
from ellzero.quantization.scale import Scale
from ellzero.quantization.scales import BIAS_LIMIT, row_scales
from ellzero.tensors import Shape

TOP = 127
"""The largest integer of a weight; the least is less this."""


class FakeQuantize(Operation):
    """Floats that int8 can hold: `scale * (q - zero)`, q the nearest integer in -128..127."""

    kind: Literal["fake_quantize"] = "fake_quantize"
    scale: float
    zero: Value

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(inputs[0], self.scale, self.zero, -128, 127)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return inputs[0]


def rounding_graph(graph: Graph, scales: Mapping[str, Scale]) -> Graph:
    """The graph with a rounding after each step whose integer form rounds.

    Args:
        graph: as `rewritten` gives it.
        scales: of each node's result.
    """
    limited, taken = limited_by(graph), {node.name for node in graph.nodes}
    nodes: list[Node] = []
    rounded: dict[str, str] = {}
    for node in graph.nodes:
        nodes.append(node.reading(rounded))
        if node.name in limited or keeps_scale(node) or isinstance(node.op, Concat):
            continue  # rounded behind its limit, or before it
        held, name = scales[node.name], free_name(f"{node.name}_rounded", taken)
        taken.add(name)
        op = FakeQuantize(scale=held.scale, zero=held.zero)
        nodes.append(Node(name=name, op=op, inputs=(node.name,)))
        rounded[node.name] = name
    outputs = tuple(
        output.model_copy(update={"node": rounded.get(output.node, output.node)})
        for output in graph.outputs
    )
    return graph.model_copy(update={"nodes": tuple(nodes), "outputs": outputs})


class FakeLayer:
    """A layer's weight and bias in training; zeros of its integer weight are held.

    Both are trained in steps of int8, of which a row of weights has its own and a bias that of what
    the layer gives, so that one learning rate suits all layers, however large their weights are.

    Args:
        node: the layer.
        network: of floats, which it is of; it does not change.
        source: how what the layer reads is held.
        held: how its result is.
    """

    def __init__(self, node: Node, network: Network, source: Scale, held: Scale) -> None:
        op = node.op
        self.axis = 1 if isinstance(op, Linear) and op.transposed else 0
        self.source, self.held = source, held
        roles = ("scale", "shift") if isinstance(op, Affine) else ("weight", "bias")
        self.names = [node.weights[role] for role in roles if role in node.weights]
        weight, *bias = (network.weight(name).detach() for name in self.names)
        exact = [w.double() for w in (weight, *bias)]  # as the converter rounds
        unit = self._along(self._steps(*exact), weight)
        self._living = (exact[0] / unit).round() != 0
        self._units = [unit.to(weight), torch.tensor(held.scale)]
        self.parameters = [
            (w / unit).requires_grad_()
            for w, unit in zip((weight, *bias), self._units, strict=False)
        ]
        """What is trained."""

    @property
    def is_dead(self) -> bool:
        """Whether all of the weight is zero."""
        return not self._living.any()

    def floats(self) -> dict[str, Tensor]:
        """Weight and bias before they are rounded, by their names."""
        weight, *bias = (p * unit for p, unit in zip(self.parameters, self._units, strict=False))
        return dict(zip(self.names, [weight * self._living, *bias], strict=True))

    def rounded(self) -> dict[str, Tensor]:
        """Weight and bias as the integers hold them, by their names."""
        floats = list(self.floats().values())
        steps = self._steps(*(w.detach() for w in floats))
        settings = [(steps, self.axis, TOP), (steps * self.source.scale, 0, BIAS_LIMIT)]
        rounded = [_on_grid(w, *at) for w, at in zip(floats, settings, strict=False)]
        return dict(zip(self.names, rounded, strict=True))

    def _steps(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The step of each row, (out)."""
        largest = weight.abs().movedim(self.axis, 0).reshape(weight.shape[self.axis], -1).amax(1)
        shift = torch.zeros_like(largest) if bias is None else bias
        return row_scales(largest, shift, self.source, self.held)

    def _along(self, steps: Tensor, weight: Tensor) -> Tensor:
        return steps.view([-1 if axis == self.axis else 1 for axis in range(weight.ndim)])


def _on_grid(values: Tensor, steps: Tensor, axis: int, top: int) -> Tensor:
    """The nearest multiples of steps along an axis, of at most `top` of them."""
    zeros = torch.zeros(len(steps), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(values, steps, zeros, axis, -top, top)


class FakeNetwork:
    """A network in training that computes, in floats, with what its integer form holds.

    Args:
        calibrated: what is trained; it does not change.
    """

    def __init__(self, calibrated: Calibrated) -> None:
        self.calibrated = calibrated
        network, scales = calibrated.network, calibrated.scales
        limits = limited_by(network.graph)
        rounding = Network(rounding_graph(network.graph, scales), weights_of(network)).eval()
        self.network = calibrated.ended(rounding)
        layers: dict[str, FakeLayer] = {}
        for node in network.graph.nodes:
            if node.weights:
                held = scales[limits.get(node.name, node.name)]
                layer = FakeLayer(node, network, scales[node.inputs[0]], held)
                layers.setdefault(layer.names[0], layer)  # two may share a weight
        self.layers = list(layers.values())

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [parameter for layer in self.layers for parameter in layer.parameters]

    def rounded(self) -> dict[str, Tensor]:
        """Each weight as the integers hold it, for autograd."""
        return {name: w for layer in self.layers for name, w in layer.rounded().items()}

    @torch.no_grad()
    def trained(self) -> Calibrated:
        """What the training has made so far, of the same ranges.

        Raises:
            DivergenceError: a weight became NaN or infinite.
        """
        floats = {name: w for layer in self.layers for name, w in layer.floats().items()}
        for name, w in floats.items():
            if not w.isfinite().all():
                raise DivergenceError(
                    f"{name} became NaN or infinite in fine-tuning, and nothing was changed; lower "
                    "learning_rate"
                )
        old = self.calibrated.network
        network = Network(old.graph, weights_of(old) | floats).eval()
        return replace(self.calibrated, network=network)
