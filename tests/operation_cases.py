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

import ellzero as ez
from activation_cases import ACTIVATIONS, OF_POSITIVES, Own, activation
from c_programs import Builder, predicted
from ellzero import operations as ops
from ellzero.graph import Network

IMAGE, VALUES, SIGNAL, VOLUME = (6, 6, 6), (6,), (6, 9), (6, 3, 4, 3)
IN_3_DIMENSIONS = r"conv\.\d \(conv\) in 3 dimensions"
INDICES = torch.tensor([0, 1, 3, 4])


@dataclass
class OperationCase:
    """An operation on one example's shape, and the module that computes the same."""

    op: ops.Operation
    shape: tuple[int, ...]
    module: Any
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    traced: bool = True  # whether the module's trace has this operation
    written: bool = True  # whether files can hold it
    refused: str = ""  # what C says of it that there is none for, a pattern
    positive: bool = False  # whether it is tried with positive values alone

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
        "concat": OperationCase(ops.Concat(axis=0), IMAGE, Own(lambda x: torch.cat([x, x], 1))),
        "concat of places": OperationCase(
            ops.Concat(axis=2), IMAGE, Own(lambda x: torch.cat([x, x], 3))
        ),
        "multiply": OperationCase(ops.Multiply(), IMAGE, Own(lambda x: x * x)),
        "flatten": OperationCase(ops.Flatten(), IMAGE, nn.Flatten()),
        "flatten of single values": OperationCase(ops.Flatten(), (6, 1, 1), nn.Flatten()),
        "add": OperationCase(ops.Add(), IMAGE, Own(lambda x: x + x)),
        "softmax": OperationCase(ops.Softmax(), VALUES, nn.Softmax(1)),
        "softmax of images": OperationCase(ops.Softmax(log=True), IMAGE, nn.LogSoftmax(1)),
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


OPERATION_CASES = cases()


def around(case: OperationCase, seed: int) -> Network:
    """The operation between layers with dead, constant and unread channels."""
    b = Builder((2, *case.shape[1:]), seed)
    before = [_layer(b, case.shape[0], padded=True)]
    if case.op.ARITY != 1 and not isinstance(case.op, ops.Input | ops.Opaque):
        b.last = "input"
        before.append(_layer(b, case.shape[0], padded=True))
    for number, name in enumerate(before):
        # channel 0 is zero in all, 1 a constant in all, 2 in one of them alone
        b.weights[f"{name}.weight"][: 3 - number] = 0
        b.weights[f"{name}.bias"][: 3 - number] = torch.tensor([0.0, 1.5, -2.0])[: 3 - number]
    if not isinstance(case.op, ops.Input):
        b.last = before[0]
        _make_positive(b, case)
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
        b.last = source
        _make_positive(b, case)
        others = case.op.ARITY != 1 and not isinstance(case.op, ops.Opaque)
        b.add(case.op, *[source] * others, **case.weights)
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


def _make_positive(b: Builder, case: OperationCase) -> None:
    if case.positive:
        b.activation("abs")
        b.add(ops.Activation(function="plus", parameters=(0.1,)))


def _layer(b: Builder, out: int, *, padded: bool) -> str:
    if len(b.shape) == 1:
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
    several = case.op.ARITY is None and not isinstance(case.op, ops.Opaque)
    inputs = [x] * (2 if several else case.op.ARITY if case.op.ARITY is not None else 1)
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
    if not case.written:
        with pytest.warns(UserWarning, match="only the weights .* cannot be written as data"):
            ez.pack(network, folder / "net.ellz")
        return
    assert ez.pack(network, folder / "net.ellz").self_contained
    assert torch.equal(ez.load(folder / "net.ellz")(x), network(x))


def check_onnx(network: Network, folder: Path) -> None:
    """ONNX computes the same."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    written = ez.export_onnx(network, folder / "net.onnx")
    assert written.difference is not None
    assert written.difference < 1e-5
