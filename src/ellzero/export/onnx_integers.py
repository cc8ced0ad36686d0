"""An integer network as ONNX: each operation between DequantizeLinear and QuantizeLinear.

Runtimes take such a model and compute in integers (the QDQ form). Within the network a value's unit
is one step of its int8, so that a layer's factor, in fixed point in the network, is the scale of
its weights. Halves are rounded to even by ONNX and up by the network, so some integers differ by 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ellzero.errors import InputError
from ellzero.graph import Network, Node
from ellzero.operations import Concat, Flatten, Operation, Pad, Reshape
from ellzero.operations.input import Input
from ellzero.operations.integer import (
    Dequantize,
    IntegerAdd,
    IntegerConv,
    IntegerLinear,
    IntegerPool,
    Lookup,
    Quantize,
)
from ellzero.operations.integer.fixed_point import FACTOR_BITS

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20


def integer_proto(network: Network) -> ModelProto:
    """The model; its input is `input`, its output `output`, batches may be of any size.

    Raises:
        InputError: nodes that have no form in ONNX, by their names; names that ONNX refuses.
    """
    from onnx import TensorProto, checker, helper

    writer = _Writer(network)
    for node in network.graph.nodes:
        write = WRITERS.get(type(node.op))
        if write is None:
            raise InputError(f"there is no ONNX form of {node.named} in an integer network")
        write(writer, node)
    last = network.graph.results[0]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("input", network.graph.input_shape), ("output", network.shapes[last]))
    ]
    graph = helper.make_graph(writer.nodes, "network", ends[:1], ends[1:], writer.tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    proto.ir_version = 10  # that of the opset
    try:
        checker.check_model(proto)
    except checker.ValidationError as error:  # such as two values of one name
        raise InputError(f"the network cannot be said in ONNX: {error}") from None
    return proto


class _Writer:
    """Nodes and tensors of the model, named after the network's nodes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._ends = {network.graph.nodes[0].name: "input", network.graph.results[0]: "output"}
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def weight(self, node: Node, role: str) -> np.ndarray:
        """A node's weight."""
        return self.network.weight(node.weights[role]).detach().cpu().numpy()

    def tensor(self, name: str, values: Any) -> str:
        """A constant; its name."""
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def value(self, name: str) -> str:
        """The value that a node of the network gives."""
        return self._ends.get(name, f"{name}/value")

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """An operation; the name of its value."""
        from onnx import helper

        output = self.value(name)
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def inputs(self, node: Node) -> list[str]:
        """The values that a node of the network reads."""
        return [self.value(name) for name in node.inputs]

    def real(self, node: Node, zero: int, scale: float = 1.0, number: int = 0) -> str:
        """An input of the node as floats."""
        name = f"{node.name}/input{number}"
        given = [self.tensor(f"{name}/scale", np.float32(scale))]
        given.append(self.tensor(f"{name}/zero", np.int8(zero)))
        return self.node("DequantizeLinear", [self.value(node.inputs[number]), *given], name)

    def rounded(self, node: Node, value: str) -> None:
        """Floats as the int8 that the node gives, within its limits."""
        op = node.op
        assert isinstance(op, IntegerLinear | IntegerConv | IntegerPool | IntegerAdd)
        name = node.name
        if (op.low, op.high) != (-128, 127):
            ends = [
                self.tensor(f"{name}/{end}", np.float32(limit - op.output_zero))
                for end, limit in (("low", op.low), ("high", op.high))
            ]
            value = self.node("Clip", [value, *ends], f"{name}/limited")
        self.quantized(value, name, 1.0, op.output_zero)

    def quantized(self, value: str, name: str, scale: float, zero: int) -> None:
        """Floats as int8, under this name."""
        given = [self.tensor(f"{name}/output_scale", np.float32(scale))]
        given.append(self.tensor(f"{name}/output_zero", np.int8(zero)))
        self.node("QuantizeLinear", [value, *given], name)

    def layer(self, node: Node) -> list[str]:
        """A layer's weight and bias as floats, in units of its output."""
        factors = self.tensor(
            f"{node.name}/factor",
            (self.weight(node, "multiplier").astype(np.float64) / 2**FACTOR_BITS).astype(
                np.float32
            ),
        )
        names = []
        for role in ("weight", "bias"):
            name = node.weights[role]
            stored = self.tensor(f"{name}/integers", self.weight(node, role))
            names.append(self.node("DequantizeLinear", [stored, factors], name, axis=0))
        return names


def _input(_: _Writer, node: Node) -> None:
    """Nothing: it is the model's."""


def _quantize(to: _Writer, node: Node) -> None:
    assert isinstance(node.op, Quantize)
    (value,) = to.inputs(node)
    to.quantized(value, node.name, node.op.scale, node.op.zero)


def _dequantize(to: _Writer, node: Node) -> None:
    assert isinstance(node.op, Dequantize)
    given = [
        to.tensor(f"{node.name}/scale", np.float32(node.op.scale)),
        to.tensor(f"{node.name}/zero", np.int8(node.op.zero)),
    ]
    to.node("DequantizeLinear", [*to.inputs(node), *given], node.name)


def _linear(to: _Writer, node: Node) -> None:
    assert isinstance(node.op, IntegerLinear)
    x, (weight, bias) = to.real(node, node.op.zero), to.layer(node)
    name = f"{node.name}/sum"
    if len(to.network.shapes[node.name]) == 1:
        value = to.node("Gemm", [x, weight, bias], name, transB=1)
    else:
        turned = to.node("Transpose", [weight], f"{node.name}/turned", perm=[1, 0])
        product = to.node("MatMul", [x, turned], f"{node.name}/product")
        value = to.node("Add", [product, bias], name)
    to.rounded(node, value)


def _conv(to: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, IntegerConv)
    value = to.node(
        "Conv",
        [to.real(node, op.zero), *to.layer(node)],
        f"{node.name}/sum",
        strides=op.stride,
        dilations=op.dilation,
        pads=[*op.before, *op.after],
        group=op.groups,
    )
    to.rounded(node, value)


def _pool(to: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, IntegerPool)
    windows: dict[str, Any] = {
        "kernel_shape": op.kernel,
        "strides": op.stride,
        "pads": [*op.padding, *op.padding],
        "ceil_mode": int(op.ceil),
    }
    if op.function == "max":
        to.node("MaxPool", to.inputs(node), node.name, **windows, dilations=op.dilation)
        return
    # the factor of one value: what a sum of so many has is that over their number
    factor = float(to.weight(node, "multiplier")[-1]) * np.prod(op.kernel) / 2**FACTOR_BITS
    value = to.node(
        "AveragePool",
        [to.real(node, op.zero, factor)],
        f"{node.name}/average",
        **windows,
        count_include_pad=int(op.count_padding),
    )
    to.rounded(node, value)


def _sum(to: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, IntegerAdd)
    pairs = zip(op.zeros, op.factors, strict=True)
    terms = [to.real(node, zero, f / 2**op.shift, n) for n, (zero, f) in enumerate(pairs)]
    to.rounded(node, to.node("Add", terms, f"{node.name}/sum"))


def _lookup(to: _Writer, node: Node) -> None:
    from onnx import TensorProto

    name = node.name
    wide = to.node("Cast", to.inputs(node), f"{name}/wide", to=TensorProto.INT32)
    place = [wide, to.tensor(f"{name}/offset", np.int32(128))]
    at = to.node("Add", place, f"{name}/place")
    to.node("Gather", [to.tensor(f"{name}/table", to.weight(node, "table")), at], name)


def _shaped(to: _Writer, node: Node) -> None:
    shape = to.tensor(f"{node.name}/shape", np.array([-1, *to.network.shapes[node.name]], np.int64))
    to.node("Reshape", [*to.inputs(node), shape], node.name)


def _concat(to: _Writer, node: Node) -> None:
    assert isinstance(node.op, Concat)
    to.node("Concat", to.inputs(node), node.name, axis=1 + node.op.axis)


def _pad(to: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, Pad)
    sides = to.tensor(f"{node.name}/sides", np.array([0, *op.before, 0, *op.after], np.int64))
    filling = to.tensor(f"{node.name}/filling", np.int8(op.value))
    to.node("Pad", [*to.inputs(node), sides, filling], node.name)


WRITERS: dict[type[Operation], Callable[[_Writer, Node], None]] = {
    Input: _input,
    Quantize: _quantize,
    Dequantize: _dequantize,
    IntegerLinear: _linear,
    IntegerConv: _conv,
    IntegerPool: _pool,
    IntegerAdd: _sum,
    Lookup: _lookup,
    Flatten: _shaped,
    Reshape: _shaped,
    Concat: _concat,
    Pad: _pad,
}
"""What writes each operation of integer networks."""
