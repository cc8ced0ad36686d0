"""What every operation promises: its shape, its values, and the same after all that makes it small.

An operation that declares nothing keeps these promises too: nothing around it leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from c_programs import Builder, check_networks, needs_gcc, predicted
from ellzero import operations as ops
from ellzero.graph import Graph, Network, Node
from ellzero.operations.activation import FUNCTIONS
from ellzero.operations.operation import Passing
from ellzero.tensors import Shape

IMAGE, VALUES = (6, 6, 6), (6,)
INDICES = torch.tensor([0, 1, 3, 4])


class Own(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@dataclass
class Case:
    """An operation on one example's shape, and the module that computes the same."""

    op: ops.Operation
    shape: tuple[int, ...]
    module: Any
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    traced: bool = True  # whether the module's trace has this operation
    written: bool = True  # whether files can hold it


def layer(op: ops.Operation, shape: tuple[int, ...], module: Any, **names: str) -> Case:
    """A case whose weights are the module's; roles are named as in the module but for `names`."""
    state = {str(names.get(name, name)): w.detach() for name, w in module.named_parameters()}
    return Case(op, shape, module, state)


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    norm: Any = nn.BatchNorm2d(6).eval()
    norm.running_mean.copy_(torch.randn(6))
    shift = norm.bias - norm.running_mean * (1 + norm.eps) ** -0.5
    grouped: Any = {"padding": (1, 1), "groups": 2}
    strided: Any = {"stride": (2, 1), "dilation": (1, 2)}
    cumulative = ops.Opaque(target="cumsum", call=lambda x, _: x[0].cumsum(1), size=IMAGE)
    average: Any = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)}
    found = {
        "input": Case(ops.Input(size=IMAGE), IMAGE, nn.Identity()),
        "select": Case(
            ops.Select(), IMAGE, Own(lambda x: x[:, INDICES]), {"indices": INDICES}, traced=False
        ),
        "affine": Case(
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
        "conv, two kernels a channel": layer(
            ops.Conv(groups=6), IMAGE, nn.Conv2d(6, 12, 3, groups=6)
        ),
        "prelu": layer(ops.PReLU(), IMAGE, nn.PReLU(6), weight="slope"),
        "pool, maximum": Case(
            ops.Pool(function="max", kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
            IMAGE,
            nn.MaxPool2d(3, 2, 1),
        ),
        "pool, average": Case(
            ops.Pool(function="average", **average), IMAGE, nn.AvgPool2d((3, 2), 2, 1)
        ),
        "pool, average of what is there": Case(
            ops.Pool(function="average", count_padding=False, ceil=True, **average),
            IMAGE,
            nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
        ),
        "flatten": Case(ops.Flatten(), IMAGE, nn.Flatten()),
        "flatten of single values": Case(ops.Flatten(), (6, 1, 1), nn.Flatten()),
        "add": Case(ops.Add(), IMAGE, Own(lambda x: x + x)),
        "softmax": Case(ops.Softmax(), VALUES, nn.Softmax(1)),
        "softmax of images": Case(ops.Softmax(log=True), IMAGE, nn.LogSoftmax(1)),
        "opaque": Case(cumulative, IMAGE, Own(lambda x: x.cumsum(1)), written=False),
    }
    parameters = {"leaky_relu": (0.1,), "clamp": (-0.5, 1.5), "elu": (0.7,)}
    modules = {"leaky_relu": nn.LeakyReLU(0.1), "clamp": nn.Hardtanh(-0.5, 1.5), "elu": nn.ELU(0.7)}
    for name, formula in FUNCTIONS.items():
        op: Any = {"function": name, "parameters": parameters.get(name, ())}
        module = modules.get(name, Own(formula.run))
        found[name] = Case(ops.Activation.model_validate(op), IMAGE, module)
    return found


CASES = cases()
every = pytest.mark.parametrize("what", CASES)
each_kind = pytest.mark.parametrize(  # one activation stands for all of them
    "what",
    [
        pytest.param(what, marks=[pytest.mark.slow] if what in [*FUNCTIONS][1:] else [])
        for what in CASES
    ],
)


def around(case: Case, seed: int) -> Network:
    """The operation between layers with dead, constant and unread channels."""
    images = len(case.shape) == 3
    b = Builder((2, *case.shape[1:]), seed)
    before = [_layer(b, case.shape[0], padded=images)]
    if isinstance(case.op, ops.Add):
        b.last = "input"
        before.append(_layer(b, case.shape[0], padded=True))
    for number, name in enumerate(before):
        # channel 0 is zero in all, 1 a constant in all, 2 in one of them alone
        b.weights[f"{name}.weight"][: 3 - number] = 0
        b.weights[f"{name}.bias"][: 3 - number] = torch.tensor([0.0, 1.5, -2.0])[: 3 - number]
    if not isinstance(case.op, ops.Input):
        b.last = before[0]
        b.add(case.op, *before[1:], **case.weights)
    after = _layer(b, 3, padded=seed % 2 == 0)
    b.weights[f"{after}.weight"][:, -1] = 0
    return b.network()


def _layer(b: Builder, out: int, *, padded: bool) -> str:
    if len(b.shape) == 1:
        return b.linear(out, density=0.7, kind="float32", bias=True)
    size = 3 if min(b.shape[1:]) >= 3 else 1
    op = ops.Conv(padding=(1, 1) if padded and size == 3 else (0, 0))
    return b.layer(op, out, b.shape[0], size, size, density=0.7, kind="float32", bias=True)


def some_inputs(shape: tuple[int, ...]) -> Tensor:
    """Random ones, zeros and ones."""
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(3))
    x[-2], x[-1] = 0, 1
    return x


def test_every_operation_has_a_case():
    assert {type(case.op) for case in CASES.values()} == {*ops.OPERATIONS.values(), ops.Opaque}


@every
def test_shape_and_values_are_those_of_the_module(what):
    case = CASES[what]
    x = some_inputs(case.shape)
    expected = case.module(x.clone())
    inputs = [x] * (1 if case.op.ARITY is None else case.op.ARITY)
    sizes = {role: tuple(w.shape) for role, w in case.weights.items()}
    assert case.op.shape([case.shape] * len(inputs), sizes) == tuple(expected.shape[1:])
    if inputs:
        torch.testing.assert_close(case.op.run(inputs, case.weights), expected)


@each_kind
def test_its_trace_is_the_operation_and_computes_what_the_module_does(what):
    case = CASES[what]
    network = ez.trace(case.module, torch.zeros(1, *case.shape))
    x = some_inputs(case.shape)
    torch.testing.assert_close(network(x), case.module(x.clone()))
    assert network.shapes[network.graph.nodes[-1].name] == tuple(case.module(x).shape[1:])
    assert (network.graph.nodes[-1].op.kind == case.op.kind) == case.traced


@pytest.mark.parametrize("seed", [0, 1])
@every
def test_compaction_around_it_leaves_the_output(what, seed):
    network = around(CASES[what], seed)
    small = ez.compact(network).model
    x = some_inputs(network.graph.input_shape)
    torch.testing.assert_close(predicted(small, x), predicted(network, x), rtol=1e-5, atol=1e-5)


@every
def test_packed_it_comes_back_to_the_bit(what, tmp_path):
    case = CASES[what]
    network = around(case, 0)
    x = some_inputs(network.graph.input_shape)
    if not case.written:
        with pytest.warns(UserWarning, match="only the weights .* cannot be written as data"):
            ez.pack(network, tmp_path / "net.ellz")
        return
    assert ez.pack(network, tmp_path / "net.ellz").self_contained
    assert torch.equal(ez.load(tmp_path / "net.ellz")(x), network(x))


@each_kind
def test_onnx_computes_the_same(what, tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    written = ez.export_onnx(around(CASES[what], 0), tmp_path / "net.onnx")
    assert written.difference is not None
    assert written.difference < 1e-5


@needs_gcc
@pytest.mark.parametrize("storage", ["smallest", pytest.param("dense", marks=pytest.mark.slow)])
def test_c_computes_the_same_or_refuses_by_name(tmp_path, storage):
    networks = {}
    for number, case in enumerate(CASES.values()):
        network = around(case, number)
        if case.written:
            networks[f"net{number}"] = network
        else:
            with pytest.raises(ez.InputError, match=r"there is no C for opaque\.\d \(cumsum\)"):
                ez.export_c(network, tmp_path, storage=storage)
    check_networks(tmp_path, networks, storage)


# Operations that declare nothing


class CumulativeSum(ops.Operation):
    """The sum of all channels up to each."""

    kind: str = "cumsum"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].cumsum(1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return inputs[0]


class Distances(ops.Operation):
    """How far the values are from each row of a weight: a zero there is a place like any other."""

    kind: str = "distances"
    REQUIRED: ClassVar[tuple[str, ...]] = ("weight",)

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return torch.cdist(inputs[0], weights["weight"])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return weights["weight"][:1]


class PaddedSum(ops.Operation):
    """A layer with a margin of zeros: it mixes channels, and says no more of itself."""

    kind: str = "padded"
    REQUIRED: ClassVar[tuple[str, ...]] = ("weight",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ("bias",)
    PASSING: ClassVar[Passing] = "mix"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        plain = torch.einsum("oi,nihw->nohw", weights["weight"], inputs[0])
        return nn.functional.pad(plain, (1, 1, 1, 1)) + weights["bias"].view(-1, 1, 1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        _, height, width = inputs[0]
        return (weights["weight"][0], height + 2, width + 2)


class Doubled(ops.Linear):
    """Not what its kind says, as a class of its own."""

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return 2 * super().run(inputs, weights)


def between_layers(op: ops.Operation, **weights: Tensor) -> Network:
    """Linear(5, 8) with dead, constant and unread units, the operation, and Linear(8, 3)."""
    torch.manual_seed(0)
    first, last = torch.randn(8, 5), torch.randn(3, 8)
    first[:3], last[:, 2:6] = 0, 0
    roles = {role: f"own.{role}" for role in weights}
    nodes = (
        Node(name="input", op=ops.Input(size=(5,))),
        Node(name="first", op=ops.Linear(), inputs=("input",), weights={"weight": "first.weight"}),
        Node(name="own", op=op, inputs=("first",), weights=roles),
        Node(name="last", op=ops.Linear(), inputs=("own",), weights={"weight": "last.weight"}),
    )
    own = {name: weights[role] for role, name in roles.items()}
    return Network(Graph(nodes=nodes), {"first.weight": first, **own, "last.weight": last}).eval()


def undeclared() -> dict[str, Network]:
    torch.manual_seed(1)
    rows = torch.randn(8, 8)
    rows[:, 1:4] = 0
    rows[5] = 0
    return {
        "cumsum": between_layers(CumulativeSum()),
        "distances": between_layers(Distances(), weight=rows),
    }


@pytest.mark.parametrize("kind", undeclared())
def test_nothing_leaves_around_an_operation_that_declares_nothing(kind):
    network = undeclared()[kind]
    compacted = ez.compact(network)
    assert tuple(compacted.model.weight("first.weight").shape) == (8, 5)
    assert tuple(compacted.model.weight("last.weight").shape) == (3, 8)
    x = some_inputs((5,))
    torch.testing.assert_close(compacted.model(x), network(x))
    (kept,) = compacted.kept
    assert kept == (
        "all channels that own reads and gives stay: it does not say how channels pass through it"
    )


def test_a_constant_stays_before_a_mix_that_does_not_say_that_a_bias_can_take_it_up():
    b = Builder((2, 3, 3))
    b.layer(ops.Conv(), 4, 2, 1, 1, density=1.0, bias=True)
    b.weights["conv.1.weight"][:2] = 0
    b.weights["conv.1.bias"][:2] = torch.tensor([0.0, 1.5])  # the zero leaves, the constant stays
    own = {"weight": b.normal(3, 4), "bias": b.normal(3)}
    names = {role: f"own.{role}" for role in own}
    node = Node(name="own", op=PaddedSum(), inputs=(b.last,), weights=names)
    weights = {**b.weights, **{names[role]: w for role, w in own.items()}}
    network = Network(Graph(nodes=(*b.nodes, node)), weights).eval()
    small = ez.compact(network).model
    assert tuple(small.weight("own.weight").shape) == (3, 3)
    x = some_inputs((2, 3, 3))
    torch.testing.assert_close(small(x), network(x))


@pytest.mark.parametrize("storage", ["smallest", "fastest", "dense"])
@pytest.mark.parametrize("kind", undeclared())
def test_c_refuses_an_operation_that_it_does_not_know(kind, storage, tmp_path):
    with pytest.raises(ez.InputError, match=rf"there is no C for own \({kind}\)"):
        ez.export_c(undeclared()[kind], tmp_path / "c", storage=storage)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("op", [CumulativeSum(), Doubled()], ids=lambda op: op.kind)
def test_what_no_file_can_say_is_packed_as_weights_alone(op, tmp_path):
    weights = {"weight": torch.randn(8, 8)} if isinstance(op, ops.Linear) else {}
    network = between_layers(op, **weights)
    with pytest.warns(UserWarning, match=rf"own \({op.kind}\) cannot be written as data"):
        packed = ez.pack(network, tmp_path / "net.ellz")
    assert not packed.self_contained
    again = between_layers(op, **{role: torch.zeros_like(w) for role, w in weights.items()})
    ez.load(tmp_path / "net.ellz", again)
    x = some_inputs((5,))
    assert torch.equal(again(x), network(x))


def test_c_refuses_a_class_of_its_own_under_a_known_kind(tmp_path):
    network = between_layers(Doubled(), weight=torch.randn(8, 8))
    with pytest.raises(ez.InputError, match=r"there is no C for own \(linear\)"):
        ez.export_c(network, tmp_path / "c", storage="dense")


def test_onnx_writes_what_torch_can_say(tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    written = ez.export_onnx(undeclared()["cumsum"], tmp_path / "net.onnx")
    assert written.difference is not None
    assert written.difference < 1e-5
