"""Graphs as data: there and back through JSON, and what makes no sense is refused."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero import operations as ops
from ellzero.graph import Graph, Network, Node
from ellzero.graph.trace import with_code


@pytest.fixture(scope="module")
def network() -> Network:
    """Most of the operations, in one network of (2, 8, 8), preprocessing and classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 0), dilation=2, groups=2),
        nn.PReLU(4),
        nn.MaxPool2d(2, 1, ceil_mode=True),
        nn.AvgPool2d(1, count_include_pad=False),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.LeakyReLU(0.123456789012345),
        nn.Linear(5, 3, bias=False),
        nn.LogSoftmax(1),
    )
    return ez.trace(
        model,
        torch.zeros(1, 2, 8, 8),
        preprocess=ez.Preprocess((0.1, 1 / 3), -0.5),
        classes=("a", "é", '"'),
    )


def test_json_there_and_back(network):
    content = network.graph.to_json()
    read = Graph.from_json(content)
    assert read == network.graph
    assert read.to_json() == content
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(Network(read, network.state_dict())(x), network(x))


def test_json_is_short(network):
    plain = network.graph.model_copy(update={"preprocess": None, "classes": None})
    table = json.loads(plain.to_json())
    assert list(table) == ["nodes"]
    assert table["nodes"][0] == {"name": "input", "op": {"kind": "input", "size": [2, 8, 8]}}
    assert table["nodes"][-1] == {
        "name": "9",
        "op": {"kind": "softmax", "log": True},
        "inputs": ["8"],
    }


class Summed(nn.Module):
    """Layers around what no operation says."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).cumsum(1))


def test_of_an_opaque_node_a_file_has_the_name_alone():
    torch.manual_seed(0)
    traced = ez.trace(Summed(), torch.zeros(1, 3))
    assert [node.name for node in traced.graph.opaque] == ["cumsum"]
    assert "test_graph.py" in traced.graph.opaque[0].named  # where its call is
    content = traced.graph.to_json()
    assert b"test_graph" not in content
    read = Graph.from_json(content)
    network, x = Network(read, traced.state_dict()), torch.randn(4, 3)
    with pytest.raises(ez.InputError, match=r"aten\.cumsum\S* is code of the network's class"):
        network(x)
    shapes = {name: tuple(weight.shape) for name, weight in traced.state_dict().items()}
    whole = Network(with_code(read, Summed(), shapes), traced.state_dict())
    assert torch.equal(whole(x), traced(x))
    with pytest.raises(ez.InputError, match=r"Linear has no part cumsum"):
        with_code(read, nn.Linear(3, 2), shapes)


def test_layers_around_an_opaque_node_are_selected_compacted_and_loaded_again(tmp_path):
    torch.manual_seed(0)
    model = Summed()
    with torch.no_grad():
        model.first.weight[:, 1] = 0  # an input that nothing reads
    small = ez.compact(model, torch.zeros(1, 3)).model
    assert list(ez.select(small)) == ["first.weight", "last.weight"]
    assert list(ez.quantize(small, bits=3).bits) == ["first.weight", "last.weight"]
    with pytest.warns(ez.EllzeroWarning, match="cumsum .* cannot be written as data"):
        ez.pack(small, tmp_path / "net.ellz")
    loaded = ez.load(tmp_path / "net.ellz", Summed())
    x = torch.randn(4, 3)
    assert torch.equal(loaded(x), small(x))
    assert loaded.get_parameter("first.weight").shape == (6, 2)


def test_weights_within_an_opaque_part_keep_their_kind():
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.d = nn.Conv2d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.d.weight.cumsum(1), self.d.bias)

    network = ez.trace(Computed(), torch.zeros(1, 2, 5, 5))
    assert network.graph.opaque
    assert list(ez.select(network)) == ["d.weight"]


INPUT = {"name": "x", "op": {"kind": "input", "size": [3]}}


def json_of(*nodes: Any, **more: Any) -> bytes:
    return json.dumps({"nodes": list(nodes), **more}).encode()


def activation(**changes: Any) -> dict[str, Any]:
    return {"name": "y", "op": {"kind": "activation", "function": "relu"} | changes}


BAD_JSON = {
    "empty": b"",
    "cut": json_of(INPUT)[:-1],
    "no object": b"[]",
    "no nodes": b"{}",
    "nodes are no list": b'{"nodes": 3}',
    "unknown key": json_of(INPUT, secret=1),
    "unknown operation": json_of(INPUT, {"name": "y", "op": {"kind": "exec"}}),
    "no operation": json_of({"name": "y"}),
    "no kind": json_of({"name": "x", "op": {"size": [3]}}),
    "opaque": json_of(INPUT, {"name": "y", "op": {"kind": "opaque", "target": "t", "call": "os"}}),
    "unknown setting": json_of(INPUT, activation(slope=1)),
    "unknown function": json_of(INPUT, activation(function="__import__")),
    "infinite parameter": json_of(INPUT, activation(function="elu", parameters=[float("inf")])),
    "parameter of text": json_of(INPUT, activation(function="elu", parameters=["x"])),
    "size of nothing": json_of({"name": "x", "op": {"kind": "input", "size": [0]}}),
    "negative size": json_of({"name": "x", "op": {"kind": "input", "size": [-3]}}),
    "size too large": json_of({"name": "x", "op": {"kind": "input", "size": [2**31]}}),
    "stride of nothing": json_of(INPUT, {"name": "y", "op": {"kind": "conv", "stride": [0, 1]}}),
    "four strides": json_of(INPUT, {"name": "y", "op": {"kind": "conv", "stride": [1, 1, 1, 1]}}),
    "no strides": json_of(INPUT, {"name": "y", "op": {"kind": "conv", "stride": []}}),
    "negative padding": json_of(INPUT, {"name": "y", "op": {"kind": "conv", "padding": [-1, 0]}}),
    "no name": json_of({"name": "", "op": {"kind": "input", "size": [3]}}),
    "a very long name": json_of({"name": "x" * 1001, "op": {"kind": "input", "size": [3]}}),
    "no utf-8": b'{"nodes": "\xff"}',
}


@pytest.mark.parametrize("what", BAD_JSON)
def test_json_that_is_no_graph(what):
    with pytest.raises(ez.InputError, match="the architecture is no graph"):
        Graph.from_json(BAD_JSON[what])


X = Node(name="x", op=ops.Input(size=(3,)))
NOTHING = Node(name="x", op=ops.Input(size=()))
RELU = ops.Activation(function="relu")


def node(name: str, op: Any, *inputs: str, **weights: str) -> Node:
    return Node(name=name, op=op, inputs=inputs, weights=weights)


BAD_GRAPHS: dict[str, tuple[tuple[Node, ...], dict[str, tuple[int, ...]]]] = {
    "first node is not an input": ((), {}),
    "first node is not an input.": ((node("y", RELU, "x"), X), {}),
    "two nodes are named 'x'": ((X, X), {}),
    "two nodes are named 'y'": ((X, node("y", RELU, "x"), node("y", RELU, "x")), {}),
    "the input 'z' comes after other nodes": (
        (X, node("y", RELU, "x"), Node(name="z", op=ops.Input(size=(3,)))),
        {},
    ),
    "y reads 'z', which is not before it": ((X, node("y", RELU, "z")), {}),
    "y reads 'y', which is not before it": ((X, node("y", RELU, "y")), {}),
    "y reads 'x', which is no tensor": ((NOTHING, node("y", RELU, "x")), {}),
    "y .activation. has 2 inputs; expected 1": ((X, node("y", RELU, "x", "x")), {}),
    "y .activation. has 0 inputs; expected 1": ((X, node("y", RELU)), {}),
    "y .add. has 1 inputs; expected 2": ((X, node("y", ops.Add(), "x")), {}),
    "y .linear. lacks its weight": ((X, node("y", ops.Linear(), "x")), {}),
    "y .affine. lacks its shift": ((X, node("y", ops.Affine(), "x", scale="s")), {"s": (3,)}),
    "y .activation. has a weight 'bias'": ((X, node("y", RELU, "x", bias="b")), {"b": (3,)}),
    "y: there is no weight 'w'": ((X, node("y", ops.Linear(), "x", weight="w")), {}),
    "no node uses the weight 'w'": ((X, node("y", RELU, "x")), {"w": (3,)}),
    "nobody reads 'y'": ((X, node("y", RELU, "x"), node("z", RELU, "x")), {}),
    "nobody reads 'x'": ((X, node("y", ops.Opaque(target="t", call=print, size=(3,)))), {}),
    "y .linear.: a weight of 2 x 4 for 3": (
        (X, node("y", ops.Linear(), "x", weight="w")),
        {"w": (2, 4)},
    ),
}


@pytest.mark.parametrize("message", BAD_GRAPHS)
def test_graphs_that_make_no_sense(message):
    nodes, weights = BAD_GRAPHS[message]
    graph = Graph(nodes=nodes)
    with pytest.raises(ez.InputError, match=message.rstrip(".")):
        graph.shapes(weights)
    with pytest.raises(ez.InputError, match=message.rstrip(".")):
        Network(graph, {name: torch.zeros(shape) for name, shape in weights.items()})


def test_preprocessing_has_one_value_or_one_for_each_channel():
    for values in (0.5, (0.5,), (0.5, 1.0, 2.0)):
        Graph(nodes=(X,), preprocess=ez.Preprocess(values)).shapes({})
    for preprocess in (
        ez.Preprocess((1.0, 2.0)),
        ez.Preprocess(2.0, (1.0,) * 4),
        ez.Preprocess(()),
    ):
        with pytest.raises(ez.InputError, match=r"[024] values for \w+, the input 3 channels"):
            Graph(nodes=(X,), preprocess=preprocess).shapes({})


def test_who_reads_what():
    graph = Graph(nodes=(X, node("y", RELU, "x"), node("z", ops.Add(), "y", "y")))
    assert {name: [n.name for n in readers] for name, readers in graph.consumers().items()} == {
        "x": ["y"],
        "y": ["z", "z"],
        "z": [],
    }
    assert graph.input_shape == (3,)


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "training", "training.a"])
def test_names_that_no_weight_can_have(name):
    nodes = (X, node("y", ops.PReLU(), "x", slope=name or "other"))
    with pytest.raises(ez.InputError, match="weight"):
        Network(Graph(nodes=nodes), {name: torch.zeros(3)})


@pytest.mark.parametrize(
    "name", ["weight", "graph", "shapes", "forward", "graph.shapes", "_done", "_weights"]
)
def test_names_that_the_class_has_a_use_for(name):
    nodes = (X, node("y", ops.PReLU(), "x", slope=name))
    slopes = torch.tensor([0.5, 2.0, 3.0])
    made = Network(Graph(nodes=nodes), {name: slopes.clone()})
    assert list(made.state_dict()) == [name]
    made.eval().load_state_dict({name: 2 * slopes})
    assert torch.equal(made.weight(name), 2 * slopes)
    assert made(-torch.ones(1, 3)).tolist() == [[-1, -4, -6]]


def test_an_input_of_another_shape_is_refused(network):
    with pytest.raises(ez.InputError, match=r"\(4, 2, 8\); expected \(N, 2, 8, 8\)"):
        network(torch.zeros(4, 2, 8))


def test_a_weight_that_is_replaced_is_seen(network):
    changed = deepcopy(network)
    changed.get_submodule("6").weight = nn.Parameter(torch.zeros(5, 24))
    x = torch.randn(2, 2, 8, 8)
    assert not torch.equal(changed(x), network(x))
