"""From a network of floats, and the scales of its values, to one of integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypedDict

import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.graph import Network, Node
from ellzero.graph.graph import free_name
from ellzero.operations import (
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Flatten,
    Input,
    Linear,
    Operation,
    Pad,
    Pool,
    Reshape,
    Select,
)
from ellzero.operations.integer.add import FACTOR_BITS, IntegerAdd
from ellzero.operations.integer.fixed_point import fixed_point
from ellzero.operations.integer.layer import IntegerConv, IntegerLayer, IntegerLinear
from ellzero.operations.integer.lookup import Lookup
from ellzero.operations.integer.pool import IntegerPool
from ellzero.operations.integer.scale import Dequantize, Quantize
from ellzero.quantization.rewriting import limited_by, limits_of
from ellzero.quantization.scale import Scale
from ellzero.quantization.scales import BIAS_LIMIT, row_scales


class Rounding(TypedDict):
    """Settings of what rounds to int8 anew."""

    output_zero: int
    low: int
    high: int


class Converter:
    """Makes the integer network, node by node.

    Args:
        network: as `rewritten` gives it, of what has an integer form.
        scales: of each node's result.
    """

    def __init__(self, network: Network, scales: Mapping[str, Scale]) -> None:
        self.floats, self.scales = network, scales
        self.readers = network.graph.consumers()
        self.limits = limited_by(network.graph)
        self.nodes: list[Node] = []
        self.weights: dict[str, Tensor] = {}
        self.result: dict[str, str] = {}  # node of floats -> the one that gives its integers
        self.margins: dict[str, Pad] = {}  # nodes that convolutions take in

    def network(self) -> Network:
        """The integer network.

        Raises:
            InputError: sums that int32 cannot hold, by the layer.
        """
        graph = self.floats.graph
        for node in graph.nodes:
            if node.name in self.limits.values():
                self.result[node.name] = self.result[node.inputs[0]]
            else:
                FORMS[type(node.op)](self, node)
        (result,) = graph.results
        held = self.scales[result]
        name = free_name("output", {node.name for node in self.nodes})
        op = Dequantize(scale=held.scale, zero=held.zero)
        self.nodes.append(Node(name=name, op=op, inputs=(self.result[result],)))
        outputs = tuple(output.model_copy(update={"node": name}) for output in graph.outputs)
        changed = graph.model_copy(update={"nodes": tuple(self.nodes), "outputs": outputs})
        return Network(changed, self.weights).eval()

    def add(self, node: Node, op: Operation, **weights: Tensor) -> None:
        """Put an operation in a node's place, with weights of its own."""
        if isinstance(op, IntegerLayer):
            try:
                op.first_sums(weights["weight"], weights["bias"])
            except InputError as error:
                raise InputError(f"{node.named}: {error}") from None
        roles = {role: f"{node.name}.{role}" for role in weights}
        self.weights |= {roles[role]: value for role, value in weights.items()}
        inputs = tuple(self.result[name] for name in node.inputs)
        self.nodes.append(Node(name=node.name, op=op, inputs=inputs, weights=roles))
        self.result[node.name] = node.name

    def weight(self, node: Node, role: str) -> Tensor:
        """A weight of the network of floats, float64."""
        return self.floats.weight(node.weights[role]).detach().double()

    def bias(self, node: Node) -> Tensor | None:
        """The bias of a layer of floats, float64; None where it has none."""
        return self.weight(node, "bias") if "bias" in node.weights else None

    def scale(self, name: str) -> Scale:
        """The scale of what a node gives, with the limit that comes after it."""
        return self.scales[self.limits.get(name, name)]

    def zero(self, node: Node) -> int:
        """The zero point of what a node reads."""
        return self.scales[node.inputs[0]].zero

    def rounding(self, node: Node) -> Rounding:
        """How a node rounds: the zero point of what it gives, and the limits that come after it."""
        held = self.scale(node.name)
        low, high = -math.inf, math.inf
        if node.name in self.limits:
            (limit,) = self.readers[node.name]
            low, high = limits_of(limit) or (low, high)
        return {
            "output_zero": held.zero,
            "low": held.integer(low) if low > -math.inf else -128,
            "high": held.integer(high) if high < math.inf else 127,
        }

    def layer(self, node: Node, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        """The weights of an integer layer: int8 rows with a scale each, int32 bias and factor.

        Args:
            node: the layer of floats.
            weight: its rows, float64 (out, ...).
            bias: float64 (out), or None.
        """
        source, held = self.scales[node.inputs[0]], self.scale(node.name)
        rows = weight.flatten(1)
        shift = rows.new_zeros(len(rows)) if bias is None else bias
        scale = row_scales(rows.abs().amax(1), shift, source, held)
        integers = (rows / scale[:, None]).round()
        sums = (shift / (scale * source.scale)).round().clamp(-BIAS_LIMIT, BIAS_LIMIT)
        factors = [fixed_point(f) for f in (scale * source.scale / held.scale).tolist()]
        return {
            "weight": integers.to(torch.int8).view(weight.shape),
            "bias": sums.to(torch.int32),
            "multiplier": torch.tensor(factors, dtype=torch.int32),
        }


def _input(to: Converter, node: Node) -> None:
    to.nodes.append(node)
    held = to.scales[node.name]
    name = free_name(f"{node.name}_quantized", to.floats.shapes)
    op = Quantize(scale=held.scale, zero=held.zero)
    to.nodes.append(Node(name=name, op=op, inputs=(node.name,)))
    to.result[node.name] = name


def _linear(to: Converter, node: Node) -> None:
    weight = to.weight(node, "weight")
    assert isinstance(node.op, Linear)
    rows = weight.T.contiguous() if node.op.transposed else weight
    to.add(
        node,
        IntegerLinear(zero=to.zero(node), **to.rounding(node)),
        **to.layer(node, rows, to.bias(node)),
    )


def _conv(to: Converter, node: Node) -> None:
    weight, op = to.weight(node, "weight"), node.op
    assert isinstance(op, Conv)
    margin = to.margins.get(node.inputs[0])
    before = after = op.padding
    if margin is not None:
        before, after = (
            tuple(map(sum, zip(op.padding, sides[1:], strict=True)))
            for sides in (margin.before, margin.after)
        )
    integer = IntegerConv(
        stride=op.stride,
        before=before,
        after=after,
        dilation=op.dilation,
        groups=op.groups,
        zero=to.zero(node),
        **to.rounding(node),
    )
    to.add(node, integer, **to.layer(node, weight, to.bias(node)))


def _affine(to: Converter, node: Node) -> None:
    """A scale and a shift: a weight for each feature, or a convolution of each channel alone."""
    scale, shift = to.weight(node, "scale"), to.weight(node, "shift")
    channels, *places = to.floats.shapes[node.name]
    if not places:
        dense = IntegerLinear(zero=to.zero(node), **to.rounding(node))
        to.add(node, dense, **to.layer(node, scale.diag(), shift))
        return
    ones, none = (1,) * len(places), (0,) * len(places)
    integer = IntegerConv(
        stride=ones,
        before=none,
        after=none,
        dilation=ones,
        groups=channels,
        zero=to.zero(node),
        **to.rounding(node),
    )
    to.add(node, integer, **to.layer(node, scale.view(channels, 1, *ones), shift))


def _pool(to: Converter, node: Node) -> None:
    assert isinstance(node.op, Pool)
    if node.op.function == "max":
        to.add(node, IntegerPool.of(node.op))
        return
    integer = IntegerPool.of(node.op, zero=to.zero(node), **to.rounding(node))
    unit = to.scales[node.inputs[0]].scale / to.scale(node.name).scale
    # of counts that no window has there is no need
    least = int(integer.counts(to.floats.shapes[node.inputs[0]][1:]).min())
    counts = range(1, math.prod(integer.kernel) + 1)
    factors = [fixed_point(unit / max(count, least)) for count in counts]
    to.add(node, integer, multiplier=torch.tensor(factors, dtype=torch.int32))


def _sum(to: Converter, node: Node) -> None:
    held = to.scale(node.name)
    sources = [to.scales[name] for name in node.inputs]
    ratios = [source.scale / held.scale for source in sources]
    _, exponent = math.frexp(max(ratios))
    shift = min(30, FACTOR_BITS - exponent)
    if shift < 1:
        raise InputError(f"{node.named}: it is too small beside what it is the sum of")
    integer = IntegerAdd(
        zeros=(sources[0].zero, sources[1].zero),
        factors=(round(ratios[0] * 2**shift), round(ratios[1] * 2**shift)),
        shift=shift,
        **to.rounding(node),
    )
    to.add(node, integer)


def _lookup(to: Converter, node: Node) -> None:
    """An activation as a table of its 256 values."""
    source, held = to.scales[node.inputs[0]], to.scales[node.name]
    x = (torch.arange(-128, 128, dtype=torch.float64) - source.zero) * source.scale
    y = node.op.run([x[:, None]], {})[:, 0].nan_to_num(0.0, math.inf, -math.inf)
    table = ((y / held.scale).round() + held.zero).clamp(-128, 127)
    to.add(node, Lookup(), table=table.to(torch.int8))


def _pad(to: Converter, node: Node) -> None:
    op = node.op
    assert isinstance(op, Pad)
    readers = to.readers[node.name]
    is_of_places = not (op.before[0] or op.after[0])
    if is_of_places and all(isinstance(n.op, Conv) for n in readers) and readers:
        to.margins[node.name] = op
        to.result[node.name] = to.result[node.inputs[0]]
    else:
        to.add(node, op.model_copy(update={"value": float(to.scales[node.name].zero)}))


def _moved(to: Converter, node: Node) -> None:
    to.add(node, node.op)


FORMS: dict[type[Operation], Callable[[Converter, Node], None]] = {
    Input: _input,
    Linear: _linear,
    Conv: _conv,
    Affine: _affine,
    Pool: _pool,
    Add: _sum,
    Activation: _lookup,
    Pad: _pad,
    Concat: _moved,
    Flatten: _moved,
    Reshape: _moved,
}
"""What makes the integer form of each operation that has one."""


def require_form(network: Network) -> None:
    """Refuse a network with what has no integer form.

    Raises:
        InputError: its name.
    """
    lacking = [
        node.named + lack
        for node in network.graph.nodes
        if (lack := _lack(node, network)) is not None
    ]
    if lacking:
        known = "convolutions in one and two dimensions, linear layers, pooling, activations, "
        raise InputError(
            f"there is no integer form of {'; '.join(lacking[:3])}; there is of {known}sums, "
            "padding with zeros, concatenation and flattening. Replace the layer, or quantize "
            "weights alone"
        )


def _lack(node: Node, network: Network) -> str | None:
    """What of a node has no integer form, as the end of a sentence; None for nothing."""
    op, shapes = node.op, [network.shapes[name] for name in node.inputs]
    if isinstance(op, Select):
        return ", a selection as compaction makes them (quantize what was not compacted)"
    if type(op) not in FORMS:
        return ""
    if isinstance(op, Conv | Pool | Affine) and len(shapes[0]) > 3:
        return f" of {len(shapes[0]) - 1} dimensions"
    if isinstance(op, Add) and shapes[0] != shapes[1]:
        return f" of values of {shapes[0]} and {shapes[1]}"
    if isinstance(op, Pad) and len(shapes[0]) > 3:
        return f" of {len(shapes[0])} axes"
    if isinstance(op, Pad) and op.value != 0:
        return f" with {op.value:g}"
    if isinstance(op, Pool) and any(op.padding) and any(d > 1 for d in op.dilation):
        return " with padding and dilation"
    return None
