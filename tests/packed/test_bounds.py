"""What a packed file may ask for: work and memory are known before anything runs."""

import json
import runpy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.graph import Graph, Network, limits
from ellzero.graph.limits import Demand, demand
from ellzero.measure.macs import layer_costs
from ellzero.networks.resnet import resnet_50
from ellzero.operations import OPERATIONS, Opaque, operation_of_kind
from ellzero.operations.integer import INTEGER_OPERATIONS
from ellzero.operations.operation import Operation
from ellzero.packed.fields import varint

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hostile.py"
BYTES = 100 * 2**20


@pytest.fixture(scope="module")
def hostile() -> dict:
    """The names of the script that makes such files."""
    return runpy.run_path(str(SCRIPT))


def node(name: str, kind: str, *inputs: str, weights: dict | None = None, **settings: Any) -> dict:
    """A node of a graph's text."""
    table = {"name": name, "op": {"kind": kind, **settings}, "inputs": list(inputs)}
    return table | ({"weights": weights} if weights else {})


def zeros(*shape: int, dtype: int = 0) -> bytes:
    """A tensor of zeros, however many, in a few bytes: numbers of which none is left."""
    return bytes([dtype << 4, len(shape)]) + b"".join(map(varint, (*shape, prod(shape)))) + b"\0"


def image(side: int, channels: int = 1) -> dict:
    return node("x", "input", size=[channels, side, side])


def chain(count: int, kind: str, **settings: Any) -> list[dict]:
    """Nodes that read each the one before."""
    names = ["x", *(f"n{i}" for i in range(count))]
    return [node(name, kind, before, **settings) for before, name in pairwise(names)]


def many_alive(count: int, side: int) -> list[dict]:
    """As many values, all of which the last node still reads."""
    up = [node(f"u{i}", "upsample", "x", mode="nearest", size=[side, side]) for i in range(count)]
    return [*up, node("c", "concat", *(f"u{i}" for i in range(count)), axis=0)]


def held_by_views(count: int, side: int) -> list[dict]:
    """Large values of which only views of one number are read in the end."""
    nodes = []
    for i in range(count):
        nodes.append(node(f"u{i}", "upsample", "x", mode="nearest", size=[side, side]))
        nodes.append(node(f"s{i}", "slice", f"u{i}", axis=1, start=0, stop=1))
    return [*nodes, node("c", "concat", *(f"s{i}" for i in range(count)), axis=0)]


HUGE = 2**31 - 1
W = {"weight": "w"}
IH = {"weight_ih": "i", "weight_hh": "h"}
INTEGER = {"weight": "w", "bias": "b", "multiplier": "m"}
FAR = {"zero": 0, "output_zero": 0, "stride": [HUGE] * 2, "dilation": [1, 1]}
FAR |= {"before": [HUGE] * 2, "after": [HUGE] * 2}
QKV = ["x", "x", "x"]

# nodes, their weights, and what the refusal says
BOMBS = {
    "a kernel of 2001 x 2001": (
        [image(2001), node("c", "conv", "x", weights=W, padding=[1000, 1000])],
        zeros(1, 1, 2001, 2001),
        "c (conv)",
    ),
    "many values alive": ([image(1), *many_alive(40, 8192)], b"", "c (concat)"),
    "values that views hold": ([image(1), *held_by_views(40, 4096)], b"", "s"),
    "one value of 101 GB": (
        [image(1), node("u", "upsample", "x", mode="nearest", size=[159_000, 159_000])],
        b"",
        "bytes at u (upsample)",
    ),
    "a deep chain of large values": (
        [image(4096), *chain(1000, "activation", function="tanh")],
        b"",
        "multiply-adds",
    ),
    "an expansion": (
        [image(1), node("e", "expand", "x", size=[HUGE, HUGE, HUGE])],
        b"",
        "bytes at e (expand)",
    ),
    "margins": (
        [image(1), node("p", "pad", "x", before=[0, HUGE, HUGE], after=[0, HUGE, HUGE])],
        b"",
        "bytes at p (pad)",
    ),
    "a padding": (
        [image(4), node("c", "conv", "x", weights=W, padding=[HUGE] * 2, stride=[HUGE] * 2)],
        zeros(1, 1, 1, 1),
        "bytes at c (conv)",
    ),
    "a transposed stride": (
        [image(2), node("t", "conv_transposed", "x", weights=W, stride=[HUGE, HUGE])],
        zeros(1, 1, 1, 1),
        "bytes at t (conv_transposed)",
    ),
    "a dilation": (
        [image(4), node("c", "conv", "x", weights=W, dilation=[HUGE] * 2, padding=[HUGE] * 2)],
        zeros(1, 1, 3, 3),
        "bytes at c (conv)",
    ),
    "windows": (
        [
            image(8192),
            node("p", "pool", "x", function="max", kernel=[4001, 4001], stride=[1, 1]),
        ],
        b"",
        "p (pool)",
    ),
    "many steps": (
        [
            node("x", "input", size=[10_000_000, 1]),
            node("r", "recurrent", "x", weights=IH, cell="gru"),
        ],
        zeros(3, 1) + zeros(3, 1),
        "r (recurrent)",
    ),
    "a long sequence": (
        [node("x", "input", size=[1_000_000, 1]), node("a", "attention", *QKV, scale=1.0)],
        b"",
        "a (attention)",
    ),
    "an outer product": (
        [
            node("x", "input", size=[200_000, 1]),
            node("t", "permute", "x", order=[1, 0]),
            node("m", "matmul", "x", "t"),
        ],
        b"",
        "m (matmul)",
    ),
    "clamp limits that are no floats": (
        [image(1), node("c", "activation", "x", function="clamp", parameters=[-1e300, 1e300])],
        b"",
        "holds -1e+300",
    ),
    "an infinite scale": (
        [image(4), node("u", "upsample", "x", mode="nearest", scale=[1e38, 1e38])],
        b"",
        "too many",
    ),
    "more dimensions than torch has": (
        [image(1), node("r", "reshape", "x", size=[1] * 64)],
        b"",
        "r (reshape) gives 64 dimensions",
    ),
    "margins of integers": (
        [image(4), node("c", "integer_conv", "x", weights=INTEGER, **FAR)],
        zeros(1, 1, 1, 1, dtype=6) + zeros(1, dtype=8) + zeros(1, dtype=8),
        "bytes at c (integer_conv)",
    ),
    "a layer of no units, in which torch divides by 0": (
        [node("x", "input", size=[3, 1]), node("r", "recurrent", "x", weights=IH, cell="lstm")],
        zeros(0, 1) + zeros(0, 0),
        "its weight_ih 'i' has the shape (0, 1), without elements",
    ),
    "celu by less than a float": (
        [image(1), node("c", "activation", "x", function="celu", parameters=[1e-45])],
        b"",
        "celu divides",
    ),
    "celu by 0": (
        [image(1), node("c", "activation", "x", function="celu", parameters=[0.0])],
        b"",
        "celu divides",
    ),
}


@contextmanager
def little_memory() -> Iterator[None]:
    """Make sure that the process grows by no more than 100 MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak()
    yield
    assert _peak() - before < BYTES


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_at_once(bomb, hostile, tmp_path):
    nodes, weights, reason = BOMBS[bomb]
    content = hostile["Parts"](1, json.dumps({"nodes": nodes}).encode(), weights).content()
    path = tmp_path / "x.ellz"
    path.write_bytes(content)
    began = time.process_time()
    with little_memory(), pytest.raises(ez.InputError) as raised:
        ez.load(path)
    assert time.process_time() - began < 1
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 500


def test_the_bombs_are_small(hostile):
    content = {
        bomb: hostile["Parts"](1, json.dumps({"nodes": nodes}).encode(), weights).content()
        for bomb, (nodes, weights, _) in BOMBS.items()
    }
    assert max(map(len, content.values())) < 6000
    assert len(content["a kernel of 2001 x 2001"]) < 150


def network(nodes: list[dict], weights: dict[str, torch.Tensor] | None = None) -> Network:
    return Network(Graph.from_json(json.dumps({"nodes": nodes}).encode()), weights or {}).eval()


def demand_of(net: Network) -> Demand:
    weights = {name: net.weight(name) for name in net.graph.weight_names()}
    sizes = {name: (tuple(w.shape), w.dtype) for name, w in weights.items()}
    return demand(net.graph, net.shapes, sizes)


def convolutions() -> nn.Module:
    layers = [nn.Conv2d(3, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))


def test_a_network_takes_its_layers_multiply_adds_and_a_little_more():
    net = ez.trace(convolutions(), torch.zeros(1, 3, 32, 32))
    macs = sum(layer.macs for layer in layer_costs(net))
    assert macs == 16 * 3 * 25 * 32**2 + 8 * 16 * 9 * 14**2 + 10 * 8 * 14**2
    taken = demand_of(net)
    assert macs < taken.macs < 2 * macs
    assert taken.slowest.name == "0"


@pytest.mark.slow
def test_resnet_50_is_an_eighth_of_what_may_be():
    taken = demand_of(ez.trace(resnet_50(), torch.zeros(1, 3, 32, 32)))  # which it makes 224 x 224
    assert 3.8e9 < taken.macs < limits.MAX_MACS / 8  # 3.8e9: He et al., table 1
    assert taken.bytes < limits.MAX_BYTES / 40


@pytest.mark.parametrize("kind", [*OPERATIONS, *INTEGER_OPERATIONS])
def test_every_operation_says_what_it_costs(kind):
    operation = operation_of_kind(kind)
    assert operation is not None
    says = operation.work is not Operation.work
    assert says or operation.PER_VALUE is not None or operation.LAYER is not None


def test_what_says_nothing_is_counted_at_the_worst():
    class Sorted(Operation):
        kind: Any = "sorted"

        def shape(self, inputs, weights):
            return inputs[0]

    assert Sorted().work([(30, 10)], {}, (30, 10)) == 300 * 300
    assert Opaque(target="sort").work([(30, 10)], {}, (30, 10)) == 0


MEMORY = {
    "values that are read again": [
        image(1024, 4),
        node("a", "activation", "x", function="tanh"),
        node("b", "activation", "a", function="tanh"),
        node("c", "add", "a", "b"),
        node("d", "multiply", "c", "a"),
    ],
    "values that views hold": [image(4), *held_by_views(8, 2048)],
    "a normalization": [image(1024, 8), node("n", "rms_norm", "x", count=1)],
    "a choice": [
        image(1024, 4),
        node("c", "compare", "x", "x", relation="less"),
        node("w", "where", "c", "x", "x"),
    ],
    "an attention": [
        node("x", "input", size=[2, 1500, 4]),
        node("a", "attention", *QKV, scale=1.0),
    ],
    "a product": [node("x", "input", size=[30, 300, 300]), node("m", "matmul", "x", "x")],
}


@pytest.mark.parametrize("case", MEMORY)
def test_no_more_memory_is_taken_than_is_said(case):
    net = network(MEMORY[case])
    examples = net.examples(1, torch.Generator().manual_seed(0))
    own = 24 * 2**20  # of torch's: buffers of its threads and kernels, once
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    with torch.no_grad():
        net(*examples)
    assert _peak() - before < demand_of(net).bytes + own


def test_views_hold_what_they_are_of():
    net = network([image(4), *held_by_views(8, 2048)])
    assert demand_of(net).bytes > 8 * 4 * 2048**2


def test_numbers_of_eight_bytes_count_as_such():
    nodes = [image(64), *chain(3, "activation", function="tanh")]
    single = demand_of(network([image(64, 4), *nodes[1:]]))
    tokens = [{**nodes[0], "op": {**nodes[0]["op"], "dtype": "int64"}}, *nodes[1:]]
    assert demand_of(network(nodes)).bytes == 5 * 4096 * 4
    assert demand_of(network(tokens)).bytes == 2 * 5 * 4096 * 4
    assert single.bytes == 4 * demand_of(network(nodes)).bytes


@pytest.fixture
def packed(tmp_path, monkeypatch) -> Path:
    """A file of a network that takes more than it may: limits of 1,000 and 2,000."""
    path = tmp_path / "x.ellz"
    ez.pack(nn.Sequential(nn.Linear(40, 50), nn.ReLU()), path, torch.zeros(1, 40))
    monkeypatch.setattr(limits, "MAX_MACS", 1000)
    monkeypatch.setattr(limits, "MAX_BYTES", 500)
    return path


def test_an_argument_allows_more(packed):
    # 40 values copied, 40 x 50 and 90 values, 100 values of a function; 140 alive, 100 to work in
    both = r"3850 multiply-adds, most of them at 0 \(linear\), more than 1000; and 960 bytes at 1 "
    both += r"\(activation\), more than 500; .* ez.load\(path, max_macs=3850, max_bytes=960\)"
    with pytest.raises(ez.InputError, match=both):
        ez.load(packed)
    with pytest.raises(ez.InputError, match="max_macs=3850"):
        ez.load(packed, max_bytes=2**20, max_macs=3849)
    with pytest.raises(ez.InputError, match="max_bytes=8200"):  # of its weights
        ez.load(packed, max_bytes=8199, max_macs=3850)
    ez.load(packed, max_bytes=8200, max_macs=3850)


def test_a_trusted_file_may_take_what_it_wants(packed):
    with pytest.raises(ez.InputError, match="--trust"):
        _ = ez.open_run(packed).model
    assert isinstance(ez.open_run(packed, trust=True).model, Network)


def test_whoever_writes_such_a_file_is_told(packed):
    with pytest.warns(UserWarning, match=r"refuses .*: one example takes 3850 multiply-adds"):
        ez.pack(nn.Sequential(nn.Linear(40, 50), nn.ReLU()), packed, torch.zeros(1, 40))


class Spread(nn.Module):
    """A layer, and of its values the standard deviation, which is no data."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x).std(1, keepdim=True)


@pytest.mark.filterwarnings("ignore::ellzero.packed.pack.CodeWarning")
def test_code_is_lent_to_the_shapes_that_it_works_on(tmp_path):
    path = tmp_path / "x.ellz"
    ez.pack(ez.trace(Spread(8), torch.zeros(1, 4)), path)
    ez.load(path, Spread(8))
    with pytest.raises(ez.InputError, match="Spread has no part"):
        ez.load(path, Spread(7))


def test_many_inputs_are_looked_through_once(hostile, tmp_path):
    names = [f"x{i}" for i in range(2000)]
    inputs = [node(name, "input", size=[1]) for name in names]
    text = json.dumps({"nodes": [*inputs, node("c", "concat", *names, axis=0)]}).encode()
    (tmp_path / "x.ellz").write_bytes(hostile["Parts"](1, text, b"").content())
    began = time.process_time()
    net = ez.load(tmp_path / "x.ellz")
    assert isinstance(net, Network)
    assert len(net.graph.inputs) == 2000
    assert time.process_time() - began < 2
