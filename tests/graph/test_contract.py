"""What every operation promises: its shape, its values, and the same after all that makes it small.

An operation that declares nothing keeps these promises too: nothing around it leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from c_programs import Builder, check_networks, needs_gcc
from ellzero import operations as ops
from ellzero.graph import Graph, Network, Node
from ellzero.operations.activation import FUNCTIONS
from ellzero.operations.axes import Axes
from ellzero.operations.operation import Elementwise, Recognized, Recognizer
from ellzero.tensors import Shape
from operation_cases import (
    OPERATION_CASES,
    all_at_once,
    around,
    check_compacted,
    check_onnx,
    check_packed,
    check_trace,
    check_values,
    some_inputs,
)

every = pytest.mark.parametrize("what", OPERATION_CASES)
OTHER_ACTIVATIONS = [*FUNCTIONS][1:]
each_kind = pytest.mark.parametrize(  # one activation stands for all of them
    "what",
    [
        pytest.param(what, marks=[pytest.mark.slow] if what in OTHER_ACTIVATIONS else [])
        for what in OPERATION_CASES
    ],
)


def test_every_operation_has_a_case():
    tried = {type(case.op) for case in OPERATION_CASES.values()}
    # which read or give no floats: test_sequences.py, test_masks.py
    tried |= {ops.Constant, ops.Embedding, ops.Compare, ops.Where, ops.Cast}
    assert tried == {*ops.OPERATIONS.values(), ops.Opaque}
    assert all(kind == op.model_fields["kind"].default for kind, op in ops.OPERATIONS.items())


@every
def test_shape_and_values_are_those_of_the_module(what):
    check_values(OPERATION_CASES[what])


@each_kind
def test_its_trace_is_the_operation_and_computes_what_the_module_does(what):
    check_trace(OPERATION_CASES[what])


@pytest.mark.parametrize("seed", [0, 1])
@each_kind
def test_compaction_around_it_leaves_the_output(what, seed):
    check_compacted(OPERATION_CASES[what], seed)


@each_kind
def test_packed_it_comes_back_to_the_bit(what, tmp_path):
    check_packed(OPERATION_CASES[what], tmp_path)


@pytest.mark.slow
@every
def test_onnx_computes_the_same(what, tmp_path):
    check_onnx(around(OPERATION_CASES[what], 0), tmp_path)


@pytest.mark.parametrize("shape", {case.shape: None for case in OPERATION_CASES.values()}, ids=str)
def test_onnx_computes_the_same_of_all_of_them_at_once(shape, tmp_path):
    check_onnx(all_at_once(shape), tmp_path)


@needs_gcc
@pytest.mark.parametrize("storage", ["smallest", pytest.param("dense", marks=pytest.mark.slow)])
def test_c_computes_the_same_or_refuses_by_name(tmp_path, storage):
    networks = {}
    for number, (what, case) in enumerate(OPERATION_CASES.items()):
        if what in OTHER_ACTIVATIONS:  # tests/export/test_c_layers.py has them
            continue
        network = around(case, number)
        if case.refused:
            with pytest.raises(ez.InputError, match=f"there is no C for {case.refused}"):
                ez.export_c(network, tmp_path, storage=storage)
        else:
            networks[f"net{number}"] = network
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

    def axes(self, inputs: Any, weights: Any, output: Any) -> Axes:
        roles = {"weight": "o i", "bias": "o"}
        return Axes(("i h w",), "o y x", roles, whole="h w y x", mixes=True)

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
        "all channels that own reads and gives stay: it does not say how its axes go together"
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


# Operations of one's own


class Rectified(Elementwise):
    """ReLU of three values, under a name of its own."""

    kind: Literal["rectified"] = "rectified"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            torch.ops.aten.relu.default: lambda call: (
                Recognized(Rectified(), [call["self"]]) if call.shape == (3,) else None
            )
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].clamp(min=0)

    def c_value(self, v: str, weights: Mapping[str, str]) -> str:
        return f"{v} > 0.0f ? {v} : 0.0f"


def kinds(model: nn.Module, *shape: int) -> list[str]:
    return [node.op.kind for node in ez.trace(model, torch.zeros(1, *shape)).graph.nodes]


def test_an_operation_of_ones_own_is_asked_first_and_others_after_it(monkeypatch):
    assert kinds(nn.ReLU(), 3) == ["input", "activation"]
    monkeypatch.setitem(ops.OPERATIONS, "rectified", Rectified)
    assert kinds(nn.ReLU(), 3) == ["input", "rectified"]
    assert kinds(nn.ReLU(), 4) == ["input", "activation"]


def test_a_kind_that_stands_for_another_class_is_neither_written_nor_in_c(monkeypatch, tmp_path):
    monkeypatch.setitem(ops.OPERATIONS, "rectify", Rectified)  # it is "rectified" by itself
    network = ez.trace(nn.ReLU(), torch.zeros(1, 3))
    way = r", as long as it is not registered: OPERATIONS\['rectified'\] = Rectified"
    with pytest.raises(ez.InputError, match=rf"relu \(rectified\) cannot be written as data{way}"):
        network.graph.to_json()
    with pytest.raises(ez.InputError, match=rf"there is no C for relu \(rectified\){way};"):
        ez.export_c(network, tmp_path)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"C": "what"}, "Wrong: C is 'what'; expected none, same, value, body"),
        ({"LAYER": "linear"}, "Wrong: LAYER is 'linear'; expected dense, conv"),
        ({"LAYER": "dense", "OPTIONAL": ("bias",)}, "a layer has weights; name them in REQUIRED"),
        ({"C": "value"}, "C is 'value', but it defines no c_value"),
        ({"C": "body", "c_value": lambda self, v, weights: v}, "but it defines no c_body"),
    ],
)
def test_a_class_that_contradicts_itself_is_not_made(declared, expected):
    with pytest.raises(ez.InputError, match=expected):
        type("Wrong", (ops.Operation,), {"__module__": __name__, **declared})


@needs_gcc
def test_a_function_of_each_value_is_drawn_into_the_layer_before(monkeypatch, tmp_path):
    monkeypatch.setitem(ops.OPERATIONS, "rectified", Rectified)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.PReLU(3), nn.ReLU())
    check_networks(tmp_path, {"net": ez.trace(model, torch.zeros(1, 4))}, "smallest")
    text = (tmp_path / "net.c").read_text()
    assert text.count("static void net_") == 2
    assert "float32; then 3, 4 */" in text
