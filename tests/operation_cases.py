"""A case for every operation, and what is checked of each.

The tests in `tests/graph/test_contract.py` take them all through tracing, compaction, files and C.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ellzero as ez
from activation_cases import ACTIVATIONS, OF_POSITIVES, Own, activation
from c_programs import Builder, predicted
from ellzero import operations as ops
from ellzero.graph import Network

IMAGE, VALUES, SIGNAL, VOLUME = (6, 6, 6), (6,), (6, 9), (6, 3, 4, 3)
IN_3_DIMENSIONS = r"conv\.\d \(conv\) in 3 dimensions"
MATRIX = torch.randn(9, 4, generator=torch.Generator().manual_seed(5))
INDICES = torch.tensor([0, 1, 3, 4])


class Transposed(nn.Module):
    """A product with a parameter (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(MATRIX.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@dataclass
class OperationCase:
    """An operation on one example's shape, and the module that computes the same."""

    op: ops.Operation
    shape: tuple[int, ...]
    module: Any
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    traced: bool = True  # whether the module's trace has this operation
    written: bool = True  # whether files can hold it
    reads: int = 1  # inputs, where an operation may have any number
    refused: str = ""  # what C says of it that there is none for, a pattern
    positive: bool = False  # whether it is tried with positive values alone

    @property
    def count(self) -> int:
        """How many inputs it reads."""
        return self.reads if self.op.ARITY is None else self.op.ARITY

    def inputs(self) -> Tensor:
        """A batch to try it with."""
        x = some_inputs(self.shape)
        return x.abs() + 0.1 if self.positive else x


def layer(
    op: ops.Operation, shape: tuple[int, ...], module: Any, *, refused: str = "", **names: str
) -> OperationCase:
    """A case whose weights are the module's; roles are named as in the module but for `names`."""
    state = {str(names.get(name, name)): w.detach() for name, w in module.named_parameters()}
    return OperationCase(op, shape, module, state, refused=refused)


def cases() -> dict[str, OperationCase]:
    torch.manual_seed(0)
    norm: Any = nn.BatchNorm2d(6).eval()
    norm.running_mean.copy_(torch.randn(6))
    shift = norm.bias - norm.running_mean * (1 + norm.eps) ** -0.5
    grouped: Any = {"padding": (1, 1), "groups": 2}
    strided: Any = {"stride": (2, 1), "dilation": (1, 2)}
    cumulative = ops.Opaque(target="cumsum", call=lambda x, _: x[0].cumsum(1), size=IMAGE)
    average: Any = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)}
    table = {
        "input": OperationCase(ops.Input(size=IMAGE), IMAGE, nn.Identity()),
        "select": OperationCase(
            ops.Select(), IMAGE, Own(lambda x: x[:, INDICES]), {"indices": INDICES}, traced=False
        ),
        "affine": OperationCase(
            ops.Affine(),
            IMAGE,
            norm,
            {"scale": torch.full((6,), (1 + norm.eps) ** -0.5), "shift": shift.detach()},
        ),
        "linear": layer(ops.Linear(), VALUES, nn.Linear(6, 5)),
        "linear without bias": layer(ops.Linear(), VALUES, nn.Linear(6, 5, bias=False)),
        "conv": layer(
            ops.Conv(stride=(2, 1), dilation=(1, 2)), IMAGE, nn.Conv2d(6, 5, 3, **strided)
        ),
        "conv, padded": layer(ops.Conv(padding=(1, 1)), IMAGE, nn.Conv2d(6, 5, 3, padding=1)),
        "conv, in groups": layer(
            ops.Conv(padding=(1, 1), groups=2), IMAGE, nn.Conv2d(6, 4, 3, **grouped)
        ),
        "conv, depthwise": layer(
            ops.Conv(padding=(1, 1), groups=6), IMAGE, nn.Conv2d(6, 6, 3, padding=1, groups=6)
        ),
        "conv of signals": layer(
            ops.Conv(stride=(2,), padding=(0,), dilation=(2,)),
            SIGNAL,
            nn.Conv1d(6, 5, 3, stride=2, dilation=2),
        ),
        "conv of signals, padded": layer(
            ops.Conv(stride=(1,), padding=(2,), dilation=(1,)),
            SIGNAL,
            nn.Conv1d(6, 5, 4, padding=2),
        ),
        "conv of signals, depthwise": layer(
            ops.Conv(stride=(1,), padding=(1,), dilation=(1,), groups=6),
            SIGNAL,
            nn.Conv1d(6, 6, 3, padding=1, groups=6),
        ),
        "conv of volumes": layer(
            ops.Conv(stride=(1, 2, 1), padding=(0, 1, 1), dilation=(1, 1, 2)),
            VOLUME,
            nn.Conv3d(6, 5, 2, stride=(1, 2, 1), padding=(0, 1, 1), dilation=(1, 1, 2)),
            refused=IN_3_DIMENSIONS,
        ),
        "conv, two kernels a channel": layer(
            ops.Conv(groups=6), IMAGE, nn.Conv2d(6, 12, 3, groups=6)
        ),
        "prelu": layer(ops.PReLU(), IMAGE, nn.PReLU(6), weight="slope"),
        "pool, maximum": OperationCase(
            ops.Pool(function="max", kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
            IMAGE,
            nn.MaxPool2d(3, 2, 1),
        ),
        "pool, average": OperationCase(
            ops.Pool(function="average", **average), IMAGE, nn.AvgPool2d((3, 2), 2, 1)
        ),
        "pool, average of what is there": OperationCase(
            ops.Pool(function="average", count_padding=False, ceil=True, **average),
            IMAGE,
            nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
        ),
        "pool of signals": OperationCase(
            ops.Pool(function="max", kernel=(3,), stride=(2,), padding=(1,), dilation=(2,)),
            SIGNAL,
            nn.MaxPool1d(3, 2, 1, 2),
        ),
        "pool of signals, average": OperationCase(
            ops.Pool(
                function="average",
                kernel=(3,),
                stride=(2,),
                padding=(1,),
                dilation=(1,),
                ceil=True,
                count_padding=False,
            ),
            SIGNAL,
            nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        ),
        "pool of all of a signal": OperationCase(
            ops.Pool(function="average", kernel=(9,), stride=(9,), padding=(0,), dilation=(1,)),
            SIGNAL,
            Own(lambda x: x.mean(2, keepdim=True)),
        ),
        "pool of volumes": OperationCase(
            ops.Pool(
                function="max",
                kernel=(2, 2, 3),
                stride=(1, 2, 3),
                padding=(0, 1, 0),
                dilation=(1,) * 3,
            ),
            VOLUME,
            nn.MaxPool3d((2, 2, 3), (1, 2, 3), (0, 1, 0)),
            refused=IN_3_DIMENSIONS,
        ),
        "pool of volumes, average": OperationCase(
            ops.Pool(
                function="average",
                kernel=(3, 2, 1),
                stride=(3, 2, 1),
                padding=(0,) * 3,
                dilation=(1,) * 3,
            ),
            VOLUME,
            nn.AdaptiveAvgPool3d((1, 2, 3)),
            refused=IN_3_DIMENSIONS,
        ),
        "pad, one side": OperationCase(
            ops.Pad(before=(0, 0, 0), after=(0, 1, 2)), IMAGE, nn.ZeroPad2d((0, 2, 0, 1))
        ),
        "pad, channels": OperationCase(
            ops.Pad(before=(1, 0, 2), after=(3, 0, 0), value=-0.5),
            IMAGE,
            nn.ConstantPad3d((2, 0, 0, 0, 1, 3), -0.5),
        ),
        "pad of values": OperationCase(
            ops.Pad(before=(2,), after=(1,)), VALUES, nn.ConstantPad1d((2, 1), 0.0)
        ),
        "slice": OperationCase(ops.Slice(axis=0, start=1, stop=5), IMAGE, Own(lambda x: x[:, 1:5])),
        "slice with a step": OperationCase(
            ops.Slice(axis=2, start=1, stop=6, step=2), IMAGE, Own(lambda x: x[..., 1::2])
        ),
        "concat": OperationCase(
            ops.Concat(axis=0), IMAGE, Own(lambda x: torch.cat([x, x], 1)), reads=2
        ),
        "concat of places": OperationCase(
            ops.Concat(axis=2), IMAGE, Own(lambda x: torch.cat([x, x], 3)), reads=2
        ),
        "linear of sequences": layer(ops.Linear(), SIGNAL, nn.Linear(9, 5)),
        "linear, transposed": OperationCase(
            ops.Linear(transposed=True),
            SIGNAL,
            Transposed(),
            {"weight": MATRIX},
        ),
        "attention": OperationCase(
            ops.Attention(scale=6**-0.5),
            IMAGE,
            Own(lambda x: F.scaled_dot_product_attention(x, x, x)),
            reads=3,
        ),
        "attention without heads, causal": OperationCase(
            ops.Attention(scale=0.3, causal=True),
            SIGNAL,
            Own(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3)),
            reads=3,
        ),
        "attention with a mask": OperationCase(
            ops.Attention(scale=6**-0.5),
            IMAGE,
            Own(lambda x: F.scaled_dot_product_attention(x, x, x, x)),
            reads=4,
        ),
        "matmul": OperationCase(ops.MatMul(), IMAGE, Own(lambda x: x @ x)),
        "subtract": OperationCase(ops.Subtract(), IMAGE, Own(lambda x: x - x)),
        "multiply": OperationCase(ops.Multiply(), IMAGE, Own(lambda x: x * x)),
        "divide": OperationCase(ops.Divide(), IMAGE, Own(lambda x: x / x), positive=True),
        "reshape into factors": OperationCase(
            ops.Reshape(size=(2, 3, 6, 2, 3)), IMAGE, Own(lambda x: x.reshape(-1, 2, 3, 6, 2, 3))
        ),
        "reshape across axes": OperationCase(
            ops.Reshape(size=(4, 9, 6)), IMAGE, Own(lambda x: x.reshape(-1, 4, 9, 6))
        ),
        "reshape that joins": OperationCase(ops.Reshape(size=(6, 36)), IMAGE, nn.Flatten(2)),
        "permute": OperationCase(
            ops.Permute(order=(2, 0, 1)), IMAGE, Own(lambda x: x.permute(0, 3, 1, 2))
        ),
        "permute of a sequence": OperationCase(
            ops.Permute(order=(1, 0)), SIGNAL, Own(lambda x: x.transpose(1, 2))
        ),
        "expand": OperationCase(
            ops.Expand(size=(6, 4, 1)), (6, 1, 1), Own(lambda x: x.expand(-1, -1, 4, -1))
        ),
        "reduce, mean of channels": OperationCase(
            ops.Reduce(function="mean", over=(0,)), IMAGE, Own(lambda x: x.mean(1, keepdim=True))
        ),
        "reduce, sum": OperationCase(
            ops.Reduce(function="sum", over=(0, 2)), IMAGE, Own(lambda x: x.sum((1, 3), True))
        ),
        "reduce, maximum": OperationCase(
            ops.Reduce(function="max", over=(1,)), SIGNAL, Own(lambda x: x.max(2, True).values)
        ),
        "reduce, minimum": OperationCase(
            ops.Reduce(function="min", over=(2,)), IMAGE, Own(lambda x: x.amin(3, True))
        ),
        "flatten": OperationCase(ops.Flatten(), IMAGE, nn.Flatten()),
        "flatten of single values": OperationCase(ops.Flatten(), (6, 1, 1), nn.Flatten()),
        "add": OperationCase(ops.Add(), IMAGE, Own(lambda x: x + x)),
        "softmax": OperationCase(ops.Softmax(), VALUES, nn.Softmax(1)),
        "softmax of images": OperationCase(ops.Softmax(log=True), IMAGE, nn.LogSoftmax(1)),
        "softmax of places": OperationCase(ops.Softmax(axis=2), IMAGE, nn.Softmax(-1)),
        "log softmax of rows": OperationCase(
            ops.Softmax(log=True, axis=1), IMAGE, nn.LogSoftmax(2)
        ),
        "opaque": OperationCase(
            cumulative,
            IMAGE,
            Own(lambda x: x.cumsum(1)),
            written=False,
            refused=r"opaque\.\d \(cumsum\)",
        ),
    }
    for name, (module, _) in ACTIVATIONS.items():
        positive = name in OF_POSITIVES
        table[name] = OperationCase(activation(name), IMAGE, module, positive=positive)
    return table


def scaled(op: ops.Operation, shape: tuple[int, ...], module: Any) -> OperationCase:
    """A normalization whose scale and shift are random, with a zero among the scales."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    if isinstance(op, ops.InstanceNorm):
        module.weight.data[2] = 0
    return layer(op, shape, module, weight="scale", bias="shift")


def norms_and_places() -> dict[str, OperationCase]:
    """Normalizations by an example's own values, and what changes how many places there are."""
    up: Any = {"scale_factor": 1.5, "mode": "bilinear"}
    one: Any = {"stride": (1,), "padding": (0,), "output_padding": (0,), "dilation": (1,)}
    uneven: Any = {"stride": (3, 1), "padding": (1, 0), "output_padding": (2, 0)}
    return {
        "layer norm": scaled(ops.LayerNorm(eps=1e-3), SIGNAL, nn.LayerNorm(9, eps=1e-3)),
        "layer norm of all": scaled(ops.LayerNorm(count=3), IMAGE, nn.LayerNorm(list(IMAGE))),
        "layer norm of values": scaled(ops.LayerNorm(), VALUES, nn.LayerNorm(6, bias=False)),
        "layer norm, plain": scaled(
            ops.LayerNorm(count=2), IMAGE, nn.LayerNorm([6, 6], elementwise_affine=False)
        ),
        "rms norm": scaled(ops.RMSNorm(eps=1e-3), SIGNAL, nn.RMSNorm(9, eps=1e-3)),
        "group norm": scaled(ops.GroupNorm(groups=2), IMAGE, nn.GroupNorm(2, 6)),
        "group norm of values": scaled(ops.GroupNorm(groups=3), VALUES, nn.GroupNorm(3, 6)),
        "instance norm": scaled(ops.InstanceNorm(), IMAGE, nn.InstanceNorm2d(6, affine=True)),
        "instance norm of signals": scaled(
            ops.InstanceNorm(eps=1e-3), SIGNAL, nn.GroupNorm(6, 6, eps=1e-3)
        ),
        "upsample": OperationCase(
            ops.Upsample(mode="nearest", scale=(2.0, 1.7)),
            IMAGE,
            nn.Upsample(scale_factor=(2.0, 1.7)),
        ),
        "upsample of signals": OperationCase(
            ops.Upsample(mode="nearest", size=(13,)), SIGNAL, nn.Upsample(13)
        ),
        "upsample, linear": OperationCase(
            ops.Upsample(mode="linear", scale=(1.5, 1.5)), IMAGE, nn.Upsample(**up)
        ),
        "upsample, corners aligned": OperationCase(
            ops.Upsample(mode="linear", size=(4, 11), align_corners=True),
            IMAGE,
            nn.Upsample((4, 11), mode="bilinear", align_corners=True),
        ),
        "upsample of one value": OperationCase(
            ops.Upsample(mode="linear", size=(2, 3)),
            (6, 1, 1),
            nn.Upsample((2, 3), mode="bilinear"),
        ),
        "pixel shuffle": OperationCase(ops.PixelShuffle(factor=2), (8, 3, 2), nn.PixelShuffle(2)),
        "pixel unshuffle": OperationCase(ops.PixelUnshuffle(factor=3), IMAGE, nn.PixelUnshuffle(3)),
        "transposed conv": layer(
            ops.ConvTransposed(**uneven, dilation=(1, 2)),
            IMAGE,
            nn.ConvTranspose2d(6, 5, (2, 3), (3, 1), (1, 0), (2, 0), dilation=(1, 2)),
        ),
        "transposed conv of signals": layer(
            ops.ConvTransposed(**(one | {"stride": (2,), "dilation": (3,)})),
            SIGNAL,
            nn.ConvTranspose1d(6, 5, 4, stride=2, dilation=3, bias=False),
        ),
        "transposed conv, depthwise": layer(
            ops.ConvTransposed(stride=(2, 2), padding=(1, 1), groups=6),
            IMAGE,
            nn.ConvTranspose2d(6, 6, 3, 2, 1, groups=6),
        ),
        "transposed conv, in groups": layer(
            ops.ConvTransposed(stride=(2, 2), groups=2),
            IMAGE,
            nn.ConvTranspose2d(6, 4, 3, 2, groups=2),
        ),
    }


def recurrent() -> dict[str, OperationCase]:
    """Sequences of as many steps as the signal has channels."""
    torch.manual_seed(0)
    _, features = SIGNAL
    layers = {
        "lstm": nn.LSTM(features, 5, batch_first=True),
        "gru": nn.GRU(features, 5, batch_first=True),
        "rnn_tanh": nn.RNN(features, 5, batch_first=True, bias=False),
        "rnn_relu": nn.RNN(features, 5, batch_first=True, nonlinearity="relu"),
    }
    table = {}
    for cell, module in layers.items():
        weights = {name[: -len("_l0")]: w.detach() for name, w in module.named_parameters()}
        op: Any = {"cell": cell}
        table[cell] = OperationCase(
            ops.Recurrent(**op), SIGNAL, Own(lambda x, module=module: module(x)[0]), weights
        )
        table[f"{cell}, backwards"] = OperationCase(
            ops.Recurrent(**op, reverse=True),
            SIGNAL,
            Own(lambda x, module=module: module(x.flip(1))[0].flip(1)),
            weights,
            traced=False,
        )

    def with_kept(x: Tensor) -> Tensor:
        outputs, (_, kept) = layers["lstm"](x)
        return torch.cat([outputs, kept.transpose(0, 1)], 1)

    op = ops.Recurrent(cell="lstm", kept=True)
    weights = table["lstm"].weights
    table["lstm, kept"] = OperationCase(op, SIGNAL, Own(with_kept), weights, traced=False)
    return table


OPERATION_CASES = cases() | norms_and_places() | recurrent()


def around(case: OperationCase, seed: int) -> Network:
    """The operation between layers with dead, constant and unread channels."""
    b = Builder((2, *case.shape[1:]), seed)
    before = [_layer(b, case.shape[0], padded=True)]
    if case.count > 1:
        b.last = "input"
        before.append(_layer(b, case.shape[0], padded=True))
    before += before[1:] * (case.count - 2)
    for number, name in enumerate(before[:2]):
        # channel 0 is zero in all, 1 a constant in all, 2 in one of them alone
        b.weights[f"{name}.weight"][: 3 - number] = 0
        b.weights[f"{name}.bias"][: 3 - number] = torch.tensor([0.0, 1.5, -2.0])[: 3 - number]
    if not isinstance(case.op, ops.Input):
        before = [_positive(b, case, name) for name in before]
        b.last = before[0]
        b.add(case.op, *before[1:], **case.weights)
    after = _layer(b, 3, padded=seed % 2 == 0)
    b.weights[f"{after}.weight"][:, -1] = 0
    return b.network()


def all_at_once(shape: tuple[int, ...]) -> Network:
    """The sum of what the operations make of one example of a shape."""
    b = Builder((2, *shape[1:]), seed=1)
    source, same, total = _layer(b, shape[0], padded=True), "", ""
    for case in OPERATION_CASES.values():
        if case.shape != shape or isinstance(case.op, ops.Input):  # the network has one
            continue
        b.last = _positive(b, case, source)
        b.add(case.op, *[b.last] * (case.count - 1), **case.weights)
        if b.shape == shape:
            same = b.add(ops.Add(), same) if same else b.last
            continue
        b.linear(3, density=1.0, kind="float32", bias=True)
        total = b.add(ops.Add(), total) if total else b.last
    if same:
        b.last = same
        b.linear(3, density=1.0, kind="float32", bias=True)
    if same and total:
        b.add(ops.Add(), total)
    return b.network()


def _positive(b: Builder, case: OperationCase, source: str) -> str:
    """The node's value, or where the case needs it one of positive numbers."""
    if not case.positive:
        return source
    b.last = source
    b.activation("abs")
    return b.add(ops.Activation(function="plus", parameters=(0.1,)))


def _layer(b: Builder, out: int, *, padded: bool) -> str:
    if not 1 < len(b.shape) < 5:
        return b.linear(out, density=0.7, kind="float32", bias=True)
    size, count = 3 if min(b.shape[1:]) >= 3 else 1, len(b.shape) - 1
    margin = 1 if padded and size == 3 else 0
    op = ops.Conv(stride=(1,) * count, padding=(margin,) * count, dilation=(1,) * count)
    kernel = (size,) * count
    return b.layer(op, out, b.shape[0], *kernel, density=0.7, kind="float32", bias=True)


def some_inputs(shape: tuple[int, ...]) -> Tensor:
    """Random ones, zeros and ones."""
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(3))
    x[-2], x[-1] = 0, 1
    return x


def check_values(case: OperationCase) -> None:
    """Its shape and values are those of the module."""
    x = case.inputs()
    expected = case.module(x.clone())
    inputs = [x] * case.count
    sizes = {role: tuple(w.shape) for role, w in case.weights.items()}
    assert case.op.shape([case.shape] * len(inputs), sizes) == tuple(expected.shape[1:])
    if inputs:
        torch.testing.assert_close(case.op.run(inputs, case.weights), expected)


def check_trace(case: OperationCase) -> None:
    """The module's trace is the operation, and computes what the module does."""
    network = ez.trace(case.module, torch.zeros(1, *case.shape))
    x = case.inputs()
    torch.testing.assert_close(network(x), case.module(x.clone()))
    assert network.shapes[network.graph.nodes[-1].name] == tuple(case.module(x).shape[1:])
    assert (network.graph.nodes[-1].op.kind == case.op.kind) == case.traced


def check_compacted(case: OperationCase, seed: int) -> None:
    """Compaction around it leaves the output."""
    network = around(case, seed)
    small = ez.compact(network).model
    x = some_inputs(network.graph.input_shape)
    torch.testing.assert_close(predicted(small, x), predicted(network, x), rtol=1e-5, atol=1e-5)


def check_packed(case: OperationCase, folder: Path) -> None:
    """Packed it comes back to the bit, or it is said that no file can hold it."""
    network = around(case, 0)
    x = some_inputs(network.graph.input_shape)
    path, lends = folder / "net.ellz", None
    if case.written:
        assert ez.pack(network, path).self_contained
    else:
        with pytest.warns(UserWarning, match=r"cannot be written as data: .* its name alone"):
            assert not ez.pack(network, path).self_contained
        with pytest.raises(ez.InputError, match=r"lacks the code of \S+ \(\w+\)"):
            ez.load(path)
        lends = network
    loaded = ez.load(path, lends)
    assert isinstance(loaded, Network)
    assert [node.name for node in loaded.graph.nodes] == [node.name for node in network.graph.nodes]
    for name in network.graph.weight_names():
        assert torch.equal(loaded.weight(name), network.weight(name))
    # not to the bit: torch takes other instructions for memory that begins elsewhere
    torch.testing.assert_close(loaded(x), network(x))


def check_onnx(network: Network, folder: Path) -> None:
    """ONNX computes the same."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    written = ez.export_onnx(network, folder / "net.onnx")
    assert written.difference is not None
    assert written.difference < 1e-5
