"""The steps of integer C: what each node of an integer network calls, and with which constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.c.arrays import Array
from ellzero.c.layer import plane
from ellzero.c.storage import StorageChoice
from ellzero.c.text import comment, dimensions, loop
from ellzero.errors import InputError
from ellzero.export.integer_c import kernels
from ellzero.export.integer_c.convolution import CONV, DISTANCE
from ellzero.export.integer_c.pooling import pooling, pooling_name
from ellzero.export.integer_c.storage import Rows, conv_rows, linear_rows
from ellzero.graph import Network, Node
from ellzero.operations import Concat, Flatten, Operation, Pad, Reshape
from ellzero.operations.integer import IntegerAdd, IntegerConv, IntegerLinear, IntegerPool, Lookup
from ellzero.operations.integer.layer import IntegerLayer


@dataclass
class Step:
    """One step of the network: a node, or two that are done together.

    Args:
        name: the node's, for comments.
        inputs: the values that it reads.
        result: the value that it gives, `size` bytes.
        code: C statements, given C expressions of where inputs, result and working memory are.
        work: bytes of each piece of working memory.
        in_place: whether it may store where it reads.
    """

    name: str
    inputs: list[str]
    result: str
    size: int
    code: Callable[[Sequence[str], str, Sequence[str]], str]
    work: list[int] = field(default_factory=list)
    in_place: bool = False


class Writer:
    """Collects steps, constants and the kernels that they need.

    Args:
        network: an integer network.
        choice: how weights are to lie.
    """

    def __init__(self, network: Network, choice: StorageChoice) -> None:
        self.integer = network
        self.choice: StorageChoice = choice
        self.readers = network.graph.consumers()
        self.kernels: dict[str, str] = {}
        self.constants: list[str] = []
        self.arrays: list[Array] = []
        self.steps: list[Step] = []
        self.same: dict[str, str] = {}
        self.stored: dict[str, tuple[Rows, int]] = {}
        self.start_type = np.dtype(np.uint16)
        self.limited = any(
            isinstance(op, IntegerLayer | IntegerPool | IntegerAdd)
            and (op.low, op.high) != (-128, 127)
            for op in (node.op for node in network.graph.nodes)
        )
        """Whether a step has limits of its own, so that rounding takes them."""
        self._fused: set[str] = set()

    def write(self) -> None:
        """All steps, in order."""
        for node in self.integer.graph.nodes:
            if node.op.kind in ("input", "quantize", "dequantize") or node.name in self._fused:
                continue
            if isinstance(node.op, Flatten | Reshape):
                self.same[node.name] = self.value(node.inputs[0])
            else:
                WRITERS[type(node.op)](self, node)
        # one type for where weights start in all layers, as the kernels are shared
        starts = [a.values for a in self.arrays if a.values.dtype == np.int64]
        top = max((int(values.max()) for values in starts), default=0)
        self.start_type = np.dtype(np.uint16 if top <= 65535 else np.uint32)
        self.arrays = [
            Array(a.name, a.values.astype(self.start_type)) if a.values.dtype == np.int64 else a
            for a in self.arrays
        ]

    def value(self, name: str) -> str:
        """The value whose memory another one's is."""
        return self.same.get(name, name)

    def weight(self, node: Node, role: str) -> Tensor:
        """A node's weight, of the type that its operation says.

        Raises:
            InputError: another type, or a factor of fixed point that is none.
        """
        weight = self.integer.weight(node.weights[role]).detach().cpu()
        expected = node.op.INTEGERS[role]
        if weight.dtype != expected or (role == "multiplier" and (weight < 1).any()):
            raise InputError(f"{node.named}: its {role} is no {expected} of an integer network")
        return weight

    def array(self, name: str, values: np.ndarray) -> str:
        """A constant array; its name."""
        self.arrays.append(Array(f"net_{name}", values))
        return f"net_{name}"

    def struct(self, c_type: str, name: str, fields: Mapping[str, Any]) -> str:
        """A constant of a kernel's type; its name."""
        values = ", ".join(f".{key} = {value}" for key, value in fields.items())
        self.constants.append(f"static const net_{c_type} net_{name} NET_CONST = {{{values}}};\n")
        return f"net_{name}"

    def kernel(self, *texts: str) -> None:
        """Ask for kernels, in the order in which they are to stand."""
        self.kernels |= dict.fromkeys(texts, "")

    def step(self, node: Node, code: Callable[..., str], **settings: Any) -> None:
        """The step of a node."""
        inputs = [self.value(name) for name in node.inputs]
        size = math.prod(self.integer.shapes[node.name])
        self.steps.append(Step(node.name, inputs, node.name, size, code, **settings))

    def number(self) -> int:
        """The step's number, for the names of its constants."""
        return len(self.steps) + 1


def _rounding(op: IntegerLayer) -> dict[str, int]:
    return {"zero": op.output_zero, "low": op.low, "high": op.high}


def _sums(to: Writer, node: Node, name: str) -> dict[str, str]:
    """Where the sums begin and their factors, as arrays."""
    assert isinstance(node.op, IntegerLayer)
    try:
        first = node.op.first_sums(to.weight(node, "weight"), to.weight(node, "bias"))
    except InputError as error:
        raise InputError(f"{node.named}: {error}") from None
    return {
        "sums": to.array(f"{name}_sums", first.to(torch.int32).numpy()),
        "multipliers": to.array(f"{name}_multipliers", to.weight(node, "multiplier").numpy()),
    }


def _linear(to: Writer, node: Node) -> None:
    assert isinstance(node.op, IntegerLinear)
    matrix = to.weight(node, "weight").numpy()
    rows, name = linear_rows(matrix, to.choice), f"step_{to.number()}"
    fields: dict[str, Any] = {}
    if rows.layout == "gaps":
        pairs = np.stack([rows.distances.astype(np.uint8).view(np.int8), rows.weights], 1)
        fields["weights"] = to.array(f"{name}_pairs", pairs)
        fields["counts"] = to.array(f"{name}_counts", rows.counts.astype(np.uint16))
        to.kernel(kernels.ROUND, kernels.LINEAR, kernels.LINEAR_GAPS)
    else:
        fields["weights"] = to.array(f"{name}_weights", rows.weights)
        to.kernel(kernels.ROUND, kernels.LINEAR, kernels.LINEAR_DENSE)
    out, columns = matrix.shape
    fields |= _sums(to, node, name) | {"rows": out, "columns": columns} | _rounding(node.op)
    layer = to.struct("linear", name, fields)
    places = math.prod(to.integer.shapes[node.name][:-1])

    def code(inputs: Sequence[str], y: str, _: Sequence[str]) -> str:
        call = f"net_linear_{rows.layout}(&{layer}, {inputs[0]}, {y});"
        if places == 1:
            return call
        call = f"net_linear_{rows.layout}(&{layer}, {inputs[0]} + n * {columns}, {y} + n * {out});"
        return _loop("n", places, call)

    to.stored[node.name] = rows, _bytes(to, name)
    to.step(node, code)


def _bytes(to: Writer, name: str) -> int:
    return sum(a.size_bytes for a in to.arrays if a.name.startswith(f"net_{name}_"))


def _loop(index: str, count: int, body: str) -> str:
    return loop(index, count, body).replace("for (int ", "for (int32_t ", 1)


def _conv(to: Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, IntegerConv)
    (channels, *size), (out, *result) = (
        to.integer.shapes[name] for name in (node.inputs[0], node.name)
    )
    weight = to.weight(node, "weight")
    per_group = weight.shape[1]
    (height, width), (rows, columns) = plane(size), plane(result)
    (top, left), (bottom, right) = plane(op.before, 0), plane(op.after, 0)
    tall, wide = height + top + bottom, width + left + right
    (kh, kw), (sh, sw), (dh, dw) = (plane(n) for n in (weight.shape[2:], op.stride, op.dilation))
    place = np.indices((per_group, kh, kw))
    offsets = place[0] * tall * wide + place[1] * dh * wide + place[2] * dw
    is_padded = (tall, wide) != (height, width)
    if (sh, sw, kh, kw) == (1, 1, 1, 1) and not is_padded:
        # the places of a channel as one row
        rows, columns, tall, wide = 1, rows * columns, 1, tall * wide
    stored, tile = conv_rows(
        weight.flatten(1).numpy(), offsets.reshape(-1, kw), columns, sw, to.choice
    )
    name = f"step_{to.number()}"
    alone = per_group == 1 < channels  # each output reads one channel: one is padded at a time
    fields: dict[str, Any] = {}
    if tile.taps:
        behind = np.zeros(int(tile.taps % 4 == 3), np.int8)  # is loaded with the last ones
        fields["weights"] = to.array(f"{name}_weights", np.concatenate([stored.weights, behind]))
        fields["distances"] = to.array(f"{name}_distances", stored.distances.astype(np.uint16))
        fields["row_count"], fields["weight_count"] = stored.distances.size, weight[0].numel()
    else:
        bytes_of = stored.distances.astype("<u2").view(np.int8).reshape(-1, 2)
        entries = np.concatenate([stored.weights[:, None], bytes_of], 1)
        fields["weights"] = to.array(f"{name}_entries", entries)
        starts = np.concatenate([[0], np.cumsum(stored.counts)])
        fields["starts"] = to.array(f"{name}_starts", starts)
        to.kernel(DISTANCE)
    fields |= _sums(to, node, name)
    fields |= {
        "group_outputs": out // op.groups,
        "group_step": 0 if is_padded and alone else per_group * tall * wide,
        "rows": rows,
        "columns": columns,
        "row_step": sh * wide,
        "last": columns - tile.width,
    }
    layer = to.struct("conv", name, fields | _rounding(op))
    to.kernel(kernels.ROUND, CONV, tile.source)
    work = []
    if is_padded:
        to.kernel(kernels.COPY)
        work.append((1 if alone else channels) * tall * wide)
    pool = _pool_behind(to, node)
    if pool is not None:
        work.append(math.prod(result))

    def code(inputs: Sequence[str], y: str, memory: Sequence[str]) -> str:
        source, lines, before = inputs[0], "", ""
        if is_padded:  # the margin is written once; what lies within it channel by channel
            source = memory[0]
            before = f"memset({source}, {op.zero}, {(1 if alone else channels) * tall * wide});\n"
            inner = f"{source} + {top * wide + left}"
            if alone:
                channel = "r" if out == op.groups else f"r / {out // op.groups}"
                x = f"{inputs[0]} + {channel} * {height * width}"
                lines = f"net_copy({x}, {inner}, {height}, {width}, {wide});\n"
            else:
                x, y_channel = f"{inputs[0]} + c * {height * width}", f"{inner} + c * {tall * wide}"
                copy = f"net_copy({x}, {y_channel}, {height}, {width}, {wide});"
                before += _loop("c", channels, copy) + "\n"
        target = f"{y} + r * {math.prod(result)}" if pool is None else memory[-1]
        lines += f"net_{tile.name}(&{layer}, r, {source}, {target});"
        if pool is not None:
            lines += "\n" + _pool_call(to, pool, memory[-1], f"{y} + r * {_plane_size(to, pool)}")
        return before + _loop("r", out, lines)

    to.stored[node.name] = stored, _bytes(to, name)
    last = node if pool is None else pool
    to.steps.append(
        Step(
            node.name if pool is None else f"{node.name} and {pool.name}",
            [to.value(node.inputs[0])],
            last.name,
            math.prod(to.integer.shapes[last.name]),
            code,
            work,
        )
    )


def _pool_behind(to: Writer, node: Node) -> Node | None:
    """The maximum pooling that alone reads a convolution's result: done channel by channel."""
    readers = to.readers[node.name]
    if len(readers) != 1 or not isinstance(readers[0].op, IntegerPool):
        return None
    if readers[0].op.function != "max":
        return None
    to._fused.add(readers[0].name)
    to.kernel(pooling(readers[0].op))
    return readers[0]


def _plane_size(to: Writer, node: Node) -> int:
    """Values of one channel."""
    return math.prod(to.integer.shapes[node.name][1:])


def _pool_call(to: Writer, node: Node, x: str, y: str, layer: str = "") -> str:
    assert isinstance(node.op, IntegerPool)
    (height, width), (rows, columns) = (
        plane(to.integer.shapes[name][1:]) for name in (node.inputs[0], node.name)
    )
    sizes = f"{height}, {width}, {rows}, {columns}"
    return f"net_{pooling_name(node.op)}({layer}{x}, {y}, {sizes});"


def _pool(to: Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, IntegerPool)
    layer = ""
    if op.function == "average":
        name = f"step_{to.number()}"
        fields = {
            "multipliers": to.array(f"{name}_multipliers", to.weight(node, "multiplier").numpy())
        }
        limits = {"zero": op.zero, "output_zero": op.output_zero, "low": op.low, "high": op.high}
        layer = f"&{to.struct('average', name, fields | limits)}, "
        to.kernel(kernels.ROUND, kernels.AVERAGE)
    to.kernel(pooling(op))
    channels, before, after = (
        to.integer.shapes[node.name][0],
        math.prod(to.integer.shapes[node.inputs[0]][1:]),
        _plane_size(to, node),
    )

    def code(inputs: Sequence[str], y: str, _: Sequence[str]) -> str:
        x, target = f"{inputs[0]} + c * {before}", f"{y} + c * {after}"
        return _loop("c", channels, _pool_call(to, node, x, target, layer))

    # a window within the input is read where no later one begins
    to.step(node, code, in_place=not any(op.padding) and not op.ceil)


def _sum(to: Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, IntegerAdd)
    fields = {
        # half a unit to round, and what the zero points take off
        "first": (1 << (op.shift - 1)) - op.zeros[0] * op.factors[0] - op.zeros[1] * op.factors[1],
        "factor1": op.factors[0],
        "factor2": op.factors[1],
        "shift": op.shift,
        "zero": op.output_zero,
        "low": op.low,
        "high": op.high,
    }
    name = to.struct("sum", f"step_{to.number()}", fields)
    count = math.prod(to.integer.shapes[node.name])
    to.kernel(kernels.ROUND, kernels.ADD)
    to.step(node, lambda x, y, _: f"net_add(&{name}, {x[0]}, {x[1]}, {y}, {count});", in_place=True)


def _lookup(to: Writer, node: Node) -> None:
    table = to.array(f"step_{to.number()}_table", to.weight(node, "table").numpy())
    count = math.prod(to.integer.shapes[node.name])
    to.kernel(kernels.LOOKUP)
    to.step(node, lambda x, y, _: f"net_lookup({table}, {x[0]}, {y}, {count});", in_place=True)


def _concat(to: Writer, node: Node) -> None:
    assert isinstance(node.op, Concat)
    shape, axis = to.integer.shapes[node.name], node.op.axis
    runs, step = math.prod(shape[:axis]), math.prod(shape[axis:])
    lengths = [math.prod(to.integer.shapes[name][axis:]) for name in node.inputs]
    to.kernel(kernels.COPY)

    def code(inputs: Sequence[str], y: str, _: Sequence[str]) -> str:
        lines, begin = [], 0
        for x, length in zip(inputs, lengths, strict=True):
            lines.append(f"net_copy({x}, {y} + {begin}, {runs}, {length}, {step});")
            begin += length
        return "\n".join(lines)

    to.step(node, code)


def _pad(to: Writer, node: Node) -> None:
    """A margin around an example: all is filled, then run after run is put in its place."""
    op = node.op
    assert isinstance(op, Pad)
    source, shape = to.integer.shapes[node.inputs[0]], to.integer.shapes[node.name]
    # as three axes: channels, rows, columns
    lead = 3 - len(shape)
    size, whole = (1,) * lead + tuple(source), (1,) * lead + tuple(shape)
    before = (0,) * lead + tuple(op.before)
    to.kernel(kernels.COPY)

    def code(inputs: Sequence[str], y: str, _: Sequence[str]) -> str:
        first = (before[0] * whole[1] + before[1]) * whole[2] + before[2]
        move = (
            f"net_copy({inputs[0]} + c * {size[1] * size[2]}, "
            f"{y} + {first} + c * {whole[1] * whole[2]}, {size[1]}, {size[2]}, {whole[2]});"
        )
        fill = f"memset({y}, {round(op.value)}, {math.prod(whole)});"
        return f"{fill}\n{_loop('c', size[0], move)}"

    to.step(node, code)


def described(node: Node, network: Network) -> str:
    """What a step does, for a comment."""
    read = network.shapes[node.inputs[0]]
    shapes = f"{dimensions(read)} -> {dimensions(network.shapes[node.name])}"
    return f"{comment(node.name)} ({node.op.kind}): {shapes}"


WRITERS: dict[type[Operation], Callable[[Writer, Node], None]] = {
    IntegerLinear: _linear,
    IntegerConv: _conv,
    IntegerPool: _pool,
    IntegerAdd: _sum,
    Lookup: _lookup,
    Concat: _concat,
    Pad: _pad,
}
"""What writes the steps of each operation of integer networks."""
