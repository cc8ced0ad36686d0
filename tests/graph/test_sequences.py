"""Networks on sequences: tokens, attention, the batch elsewhere, several inputs and outputs."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import register_dataclass

import ellzero as ez
from ellzero import operations as ops
from ellzero.graph import Network
from ellzero.operations.layout import Layout


class Own(nn.Module):
    """A function of inputs and of layers, as a module."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                self.add_module(name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def kinds(network: Network) -> list[str]:
    return [node.op.kind for node in network.graph.nodes]


def check_same(model: nn.Module, network: Network, *shapes: tuple[int, ...]) -> None:
    """Equal outputs for batches of several sizes."""
    for count in (1, 2, 5):
        inputs = [torch.randn(count, *shape) for shape in shapes]
        torch.testing.assert_close(network(*inputs), model(*inputs))


# Layouts


def test_a_layout_follows_what_code_does_to_a_value():
    """Where the batch is among the dimensions: torch's numbers say where each axis goes."""
    torch.manual_seed(0)
    batch = torch.randn(7, 4, 6)  # 7 examples of 4 x 6
    layout = Layout.plain((4, 6))
    turned, order = layout.permuted([1, 0, 2])
    assert (turned.dims, order) == (((4,), (None,), (6,)), [0, 1])
    assert torch.equal(turned.restored(batch), batch.transpose(0, 1))
    heads = Layout(((4,), (None, 3), (2,)))
    assert heads.shape == (4, 3, 2)
    values = batch.reshape(7, 4, 3, 2)
    assert torch.equal(heads.restored(values), batch.transpose(0, 1).reshape(4, 21, 2))
    swapped, order = heads.permuted([1, 2, 0])
    assert (swapped.dims, order) == (((None, 3), (2,), (4,)), [1, 2, 0])
    axes = values.permute(0, *(axis + 1 for axis in order))
    assert torch.equal(swapped.restored(axes), heads.restored(values).permute(1, 2, 0))


ATTENTION = {"a": nn.MultiheadAttention(12, 3, batch_first=True)}
TIME_FIRST = {"e": nn.TransformerEncoderLayer(12, 3, 20)}
SEQUENCES: dict[str, tuple[Own, tuple[int, ...], set[str]]] = {
    # a network, its input, kinds that its graph must have
    "an encoder's layer": (
        Own(lambda m, x: m.e(x), e=nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)),
        (5, 12),
        {"attention", "linear", "layer_norm"},
    ),
    "time first": (
        Own(lambda m, x: m.e(x.transpose(0, 1)).transpose(0, 1), **TIME_FIRST),
        (5, 12),
        {"attention", "linear", "layer_norm"},
    ),
    "an encoder": (
        Own(
            lambda m, x: m.e(x),
            e=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True),
                2,
                enable_nested_tensor=False,
            ),
        ),
        (5, 12),
        {"attention"},
    ),
    "a decoder": (
        Own(
            lambda m, x: m.d(x, x[:, :2]),
            d=nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 3, 20, batch_first=True), 1),
        ),
        (5, 12),
        {"attention"},
    ),
    "attention that gives its weights": (
        Own(lambda m, x: m.a(x, x, x)[0], **ATTENTION),
        (5, 12),
        {"matmul", "softmax"},
    ),
    "a causal mask": (
        Own(
            lambda m, x: m.a(x, x, x, attn_mask=m.mask, need_weights=False)[0],
            mask=nn.Transformer.generate_square_subsequent_mask(5),
            **ATTENTION,
        ),
        (5, 12),
        {"attention"},
    ),
    "keys of other features": (
        Own(
            lambda m, x: m.a(x, x[:, :3, :8], x[:, :3, :7], need_weights=False)[0],
            a=nn.MultiheadAttention(12, 3, batch_first=True, kdim=8, vdim=7),
        ),
        (5, 12),
        {"attention"},
    ),
    "frames in the batch": (
        Own(lambda m, x: m.d(x.reshape(-1, 12)).view(-1, 5, 4).mean(1), d=nn.Linear(12, 4)),
        (5, 12),
        {"linear", "reduce"},
    ),
    "a class token and positions": (
        Own(
            lambda m, x: torch.cat([m.cls.expand(x.shape[0], -1, -1), x], 1) + m.places,
            cls=nn.Parameter(torch.randn(1, 1, 12)),
            places=nn.Parameter(torch.randn(1, 6, 12)),
        ),
        (5, 12),
        {"constant", "concat", "add"},
    ),
    "a stack": (Own(lambda m, x: torch.stack([x, x * 2], 2)), (5, 12), {"concat"}),
    "a split": (
        Own(lambda m, x: x.split([7, 5], 2)[1].chunk(2, 1)[0] * 3.0),
        (5, 12),
        {"slice"},
    ),
    "parts of an axis": (
        Own(lambda m, x: x.unflatten(2, (3, 4)).unbind(2)[1] - x[:, :, 2:10:2]),
        (5, 12),
        {"slice", "subtract"},
    ),
    "positions of a table": (
        Own(lambda m, x: x + m.p(torch.arange(5)), p=nn.Embedding(9, 12)),
        (5, 12),
        {"constant", "slice"},
    ),
    "a product with a parameter": (
        Own(lambda m, x: x @ m.w, w=nn.Parameter(torch.randn(12, 3))),
        (5, 12),
        {"linear"},
    ),
    "one value of each example": (
        Own(lambda m, x: m.d(x.mean(1)).squeeze(1) + x[:, 0, 0], d=nn.Linear(12, 1)),
        (5, 12),
        {"slice", "add"},
    ),
    "a largest value": (Own(lambda m, x: x.max(1).values), (5, 12), {"reduce"}),
}


@pytest.mark.parametrize("what", SEQUENCES)
def test_networks_on_sequences_leave_nothing_opaque(what):
    torch.manual_seed(0)
    model, shape, expected = SEQUENCES[what]
    network = ez.trace(model.eval(), torch.zeros(1, *shape))
    assert "opaque" not in kinds(network)
    assert expected <= set(kinds(network))
    check_same(model, network, shape)


def test_parts_without_an_index_stay_as_the_network_has_them():
    model = Own(lambda m, x: torch.cat([x.narrow(2, 0, 0), x.split([0, 12], 2)[1]], 2))
    network = ez.trace(model, torch.zeros(1, 5, 12))
    check_same(model, network, (5, 12))


def test_indices_of_the_largest_values_are_not_taken_for_the_values():
    network = ez.trace(Own(lambda m, x: x.max(1).indices * 1.0), torch.zeros(1, 5, 3))
    x = torch.randn(4, 5, 3)
    assert torch.equal(network(x), x.argmax(1).float())


def test_a_mask_is_causal_only_where_it_is():
    mask = torch.zeros(5, 5)
    mask[0, 3] = -math.inf
    mask[2, 1] = 0.7
    model = Own(lambda m, x: F.scaled_dot_product_attention(x, x, x, m.mask), mask=mask)
    network = ez.trace(model, torch.zeros(1, 2, 5, 4))
    attention = next(n for n in network.graph.nodes if isinstance(n.op, ops.Attention))
    assert isinstance(attention.op, ops.Attention)
    assert not attention.op.causal
    assert len(attention.inputs) == 4
    assert all(weight.isfinite().all() for weight in network.state_dict().values())
    check_same(model, network, (2, 5, 4))


def test_a_mask_goes_with_each_index_of_the_axes_that_it_lacks():
    model = Own(
        lambda m, x: F.scaled_dot_product_attention(x, x, x, m.mask), mask=torch.randn(3, 5, 5)
    )
    network = ez.trace(model, torch.zeros(1, 2, 3, 5, 4))
    assert "attention" in kinds(network)
    check_same(model, network, (2, 3, 5, 4))


def test_a_query_without_a_key_stays_as_the_network_has_it():
    mask = torch.full((5, 5), -math.inf).triu(1)
    mask[1] = -math.inf
    model = Own(lambda m, x: F.scaled_dot_product_attention(x, x, x, m.mask), mask=mask)
    network = ez.trace(model, torch.zeros(1, 2, 5, 4))
    x = torch.randn(3, 2, 5, 4)
    torch.testing.assert_close(network(x), model(x), equal_nan=True)


# Tokens


def tokens_and_numbers() -> Own:
    torch.manual_seed(0)
    return Own(
        lambda m, words, numbers: m.d(torch.cat([m.e(words).mean(1), numbers], 1)),
        e=nn.Embedding(7, 4),
        d=nn.Linear(6, 3),
    )


def test_several_inputs_of_several_kinds():
    model = tokens_and_numbers()
    network = ez.trace(model, [torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 2)])
    first, second = network.graph.inputs.values()
    assert (first.size, first.dtype, second.size, second.dtype) == ((5,), "int64", (2,), "float")
    words, numbers = torch.randint(7, (4, 5)), torch.randn(4, 2)
    torch.testing.assert_close(network(words, numbers), model(words, numbers))
    names = list(network.graph.inputs)
    named = network(words, **{names[1]: numbers})
    assert torch.equal(named, network(words, numbers))


def test_an_input_of_one_value():
    class Timed(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            return x * time.unsqueeze(1)

    network = ez.trace(Timed(), [torch.zeros(2, 3), torch.zeros(2)])
    assert kinds(network)[-1] == "multiply"
    x, time = torch.randn(4, 3), torch.randn(4)
    assert torch.equal(network(x, time), Timed()(x, time))


def test_inputs_by_name():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(7, 4)

        def forward(self, input_ids: Tensor, weight: Tensor) -> Tensor:
            return self.e(input_ids) * weight.unsqueeze(2)

    model = Named()
    example = {"input_ids": torch.zeros(2, 5, dtype=torch.int64), "weight": torch.ones(2, 5)}
    network = ez.trace(model, example)
    assert list(network.graph.inputs) == ["input_ids", "weight"]
    given = {"input_ids": torch.randint(7, (3, 5)), "weight": torch.rand(3, 5)}
    assert torch.equal(network(**given), model(**given))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([torch.zeros(2, 5, dtype=torch.int64)], "1 inputs .one.; expected inputs_0, inputs_1"),
        ([torch.zeros(2, 5, dtype=torch.int64), torch.zeros(3, 2)], "different batch sizes"),
        ([torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 3)], r"inputs_1 of shape \(2, 3\)"),
        ([torch.zeros(2, 5)] * 3, "3 inputs"),
    ],
    ids=str,
)
def test_inputs_that_do_not_go_together(inputs, message):
    example = [torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 2)]
    network = ez.trace(tokens_and_numbers(), example)
    with pytest.raises(ez.InputError, match=message):
        network(*inputs)


def test_random_examples_are_tokens_that_the_embedding_has():
    model = Own(lambda m, x: m.e(x).sum(2), e=nn.Embedding(3, 4))
    network = ez.trace(model, torch.zeros(1, 50, dtype=torch.int64))
    (batch,) = network.examples(20, torch.Generator().manual_seed(0))
    assert batch.dtype == torch.int64
    assert sorted(batch.unique().tolist()) == [0, 1, 2]
    network(batch)


Pair = namedtuple("Pair", "logits hidden")


@dataclass
class Results:
    logits: Tensor
    hidden: Tensor


register_dataclass(Results)


@pytest.mark.parametrize("made", [Pair, Results, lambda a, b: {"logits": a, "hidden": b}])
def test_several_outputs_by_name(made):
    model: Any = Own(lambda m, x: made(m.d(x), x * 2), d=nn.Linear(3, 2))
    network = ez.trace(model, torch.zeros(1, 3))
    x = torch.randn(4, 3)
    outputs = network(x)
    assert list(outputs) == ["logits", "hidden"]
    torch.testing.assert_close(outputs.logits, model.d(x))
    torch.testing.assert_close(outputs["hidden"], x * 2)
    with pytest.raises(AttributeError, match="no output is named 'logit'"):
        _ = outputs.logit


@pytest.mark.parametrize("count", [1, 2])
def test_several_outputs_in_order(count):
    model = Own(lambda m, x: (m.d(x), x, x * 2)[:count], d=nn.Linear(3, 2))
    network = ez.trace(model, torch.zeros(1, 3))
    x = torch.randn(4, 3)
    outputs = network(x)
    assert isinstance(outputs, tuple)
    assert len(outputs) == count
    for given, expected in zip(outputs, model(x), strict=True):
        torch.testing.assert_close(given, expected)


def test_every_output_keeps_what_it_needs():
    torch.manual_seed(0)
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 3), "c": nn.Linear(6, 2)}
    model = Own(lambda m, x: (m.b(F.relu(m.a(x))), m.c(F.relu(m.a(x)))), **layers)
    with torch.no_grad():
        layers["b"].weight[:, :3] = 0
        layers["c"].weight[:, 2:] = 0  # unit 2 is read by none of them
    compacted = ez.compact(model, torch.zeros(1, 4))
    assert compacted.model.weight("a.weight").shape == (5, 4)
    x = torch.randn(5, 4)
    torch.testing.assert_close(compacted.model(x), model(x))


# Files


class Mixed(nn.Module):
    """Words and numbers in; out what is made of both, and a value named as an operation is."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.d = nn.Embedding(7, 4), nn.Linear(6, 3)

    def forward(self, words: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        both = torch.cat([self.e(words).mean(1), numbers], 1)
        return {"logits": self.d(both), "mean": numbers.mean(1, keepdim=True)}


MIXED_EXAMPLE = {"words": torch.zeros(1, 5, dtype=torch.int64), "numbers": torch.zeros(1, 2)}


def test_a_packed_file_has_names_shapes_and_dtypes(tmp_path):
    torch.manual_seed(0)
    network = ez.trace(Mixed(), MIXED_EXAMPLE)
    ez.pack(network, tmp_path / "net.ellz")
    loaded: Any = ez.load(tmp_path / "net.ellz")
    assert loaded.graph == network.graph
    words, numbers = network.examples(3)
    given, expected = loaded(words, numbers=numbers), network(words, numbers)
    assert list(given) == ["logits", "mean"]
    assert all(torch.equal(given[name], expected[name]) for name in given)


def test_onnx_has_the_names_of_inputs_and_outputs(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = Mixed().eval()
    path = tmp_path / "net.onnx"
    ez.export_onnx(ez.trace(model, MIXED_EXAMPLE), path)
    graph = onnx.load(path).graph
    assert [x.name for x in graph.input] == ["words", "numbers"]
    assert [x.name for x in graph.output] == ["logits", "mean"]
    words, numbers = torch.randint(7, (4, 5)), torch.randn(4, 2)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = session.run(None, {"words": words.numpy(), "numbers": numbers.numpy()})
    for output, right in zip(given, model(words, numbers).values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), right)


# Compaction


@torch.no_grad()
def pruned_block() -> Any:
    """An encoder's layer of which a head, a feature of values and feed-forward units are dead."""
    torch.manual_seed(0)
    block: Any = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=True).eval()
    for parameter in block.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    block.self_attn.out_proj.weight[:, 4:8] = 0  # head 1
    block.self_attn.out_proj.weight[:, [2, 10]] = 0  # feature 2 of heads 0 and 2
    block.linear2.weight[:, 5:15] = 0
    return block


def test_dead_heads_and_feed_forward_units_leave_a_transformer():
    block = pruned_block().double()
    x = torch.randn(3, 5, 12).double()
    compacted = ez.compact(block, x)
    small = compacted.model
    torch.testing.assert_close(small(x), block(x))
    shapes = {name: tuple(small.weight(name).shape) for name in small.graph.weight_names()}
    assert shapes["linear1.weight"] == (10, 12)
    assert shapes["linear2.weight"] == (12, 10)
    attention = next(n for n in small.graph.nodes if isinstance(n.op, ops.Attention))
    queries, _, values = (small.shapes[name] for name in attention.inputs)
    assert queries == (2, 5, 4)
    assert values[:2] == (2, 5)
    assert shapes["self_attn.out_proj.weight"][1] < 12


def test_a_gate_of_one_channel_keeps_what_makes_it():
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 5, 1), "g": nn.Conv2d(3, 1, 1), "b": nn.Conv2d(5, 2, 1)}
    model = Own(lambda m, x: m.b(m.a(x) * torch.sigmoid(m.g(x))), **layers).double()
    x = torch.randn(3, 3, 4, 4).double()
    torch.testing.assert_close(ez.compact(model, x).model(x), model(x))


@pytest.mark.parametrize("seed", range(8))
def test_compaction_of_random_transformers(seed):
    """Whatever is zero, the output stays; the more is zero, the less is left."""
    torch.manual_seed(seed)
    block = pruned_block().double()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2:
                parameter *= torch.rand(parameter.shape) < (0.1, 0.3, 0.6)[seed % 3]
                parameter *= (torch.rand(len(parameter)) < 0.7).view(-1, 1)
                parameter *= torch.rand(parameter.shape[1]) < 0.7
            elif "norm" not in name:
                parameter *= torch.rand(parameter.shape) < 0.5
    model = Own(lambda m, x: m.d(m.b(x)[:, -1]), b=block, d=nn.Linear(12, 3).double())
    x = torch.randn(3, 5, 12).double()
    small = ez.compact(model, x).model
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
