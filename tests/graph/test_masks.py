"""Masks that networks compute from their inputs, and values that are repeated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ellzero as ez
from c_programs import needs_gcc
from ellzero import operations as ops
from ellzero.graph import Network
from operation_cases import check_onnx

TOKENS, TIME, WIDTH, HEADS = 7, 5, 12, 3
EXAMPLE = {
    "words": torch.zeros(1, TIME, dtype=torch.int64),
    "seen": torch.ones(1, TIME, dtype=torch.int64),
}
Mask = Callable[[Tensor], Tensor]


class Encoder(nn.Module):
    """Attention over words, with a mask that is made of which of them are there."""

    def __init__(self, mask: Mask, *, eager: bool = False) -> None:
        super().__init__()
        self.mask, self.eager = mask, eager
        self.e, self.o = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 4)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in "qkv")

    def forward(self, words: Tensor, seen: Tensor) -> Tensor:
        """(N, 4) of words and of what of them is seen, both (N, time)."""
        x = self.e(words)
        q, k, v = (
            layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mask = self.mask(seen)
        if self.eager:
            scores = (q @ k.transpose(2, 3)) / 2
            mixed = scores.masked_fill(mask, -1e4).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
        return self.o(mixed.transpose(1, 2).flatten(2)).mean(1)


def looked_up(seen: Tensor) -> Tensor:
    """Causal, and by index: as what vectorizes a function of (example, query, key) has it."""
    example = torch.arange(seen.shape[0]).view(-1, 1, 1, 1)
    keys, queries = torch.arange(TIME).view(1, 1, 1, -1), torch.arange(TIME).view(1, 1, -1, 1)
    return (keys <= queries) & seen.bool()[example, keys]


def either(seen: Tensor) -> Tensor:
    """Of each query itself, and of all that is seen."""
    return torch.eye(TIME, dtype=torch.bool) | (seen[:, None, None] > 0)


MASKS: dict[str, tuple[Mask, bool]] = {
    # a mask, and whether it says what is hidden, for a network that adds it by itself
    "true where seen": (lambda seen: seen[:, None, None].bool(), False),
    "looked up": (looked_up, False),
    "not hidden": (lambda seen: ~(seen[:, None, None] == 0), False),
    "either": (either, False),
    "less than nothing": (lambda seen: (1.0 - seen[:, None, None].float()) * -1e4, False),
    "chosen": (
        lambda seen: torch.where(seen[:, None, None] >= 1, torch.zeros(()), -1e4),
        False,
    ),
    "filled": (lambda seen: seen[:, None, None] < 1, True),
    "filled, in other types": (lambda seen: seen.to(torch.int32)[:, None, None].ne(1), True),
}


def some_inputs() -> tuple[Tensor, Tensor]:
    """Words, and of each example fewer of them than of the one before."""
    words = torch.randint(TOKENS, (TIME, TIME), generator=torch.Generator().manual_seed(2))
    return words, torch.ones(TIME, TIME, dtype=torch.int64).tril()


def encoder(what: str) -> tuple[Encoder, Network]:
    torch.manual_seed(0)
    mask, eager = MASKS[what]
    model = Encoder(mask, eager=eager).eval()
    return model, ez.trace(model, EXAMPLE)


@pytest.mark.parametrize("what", MASKS)
def test_masks_of_an_input_are_data(what):
    model, network = encoder(what)
    assert not network.graph.opaque
    words, seen = some_inputs()
    for count in (1, 2, 5):
        given = words[:count], seen[:count]
        torch.testing.assert_close(network(*given), model(*given))
    assert not torch.allclose(network(words, seen), network(words, torch.ones_like(seen)))


@pytest.mark.parametrize("what", MASKS)
def test_compaction_leaves_what_masked_attention_gives(what):
    """Half of the features are dead, which no mask hides."""
    model, _ = encoder(what)
    with torch.no_grad():
        model.o.weight[:, :4] = 0
    model.double()
    small = ez.compact(model, EXAMPLE).model
    assert small.weight("v.weight").shape == (8, WIDTH)
    words, seen = some_inputs()
    torch.testing.assert_close(small(words, seen), model(words, seen), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("what", ["looked up", "less than nothing", "chosen", "filled", "either"])
def test_a_packed_file_holds_the_masks(what, tmp_path):
    _, network = encoder(what)
    assert ez.pack(network, tmp_path / "net.ellz").self_contained
    loaded: Any = ez.load(tmp_path / "net.ellz")
    assert loaded.graph == network.graph
    # not to the bit: torch takes other instructions for memory that begins elsewhere
    torch.testing.assert_close(loaded(*some_inputs()), network(*some_inputs()))


class All(nn.Module):
    """Attention by all masks, and a word's own number where it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(TOKENS, 4)

    def forward(self, words: Tensor, seen: Tensor) -> Tensor:
        """(N, masks + 1, time) of words and of what of them is seen, both (N, time)."""
        x = self.e(words).unsqueeze(1)
        values = []
        for mask, eager in MASKS.values():
            if eager:
                mixed = (x @ x.transpose(2, 3)).masked_fill(mask(seen), -1e4).softmax(-1) @ x
            else:
                mixed = F.scaled_dot_product_attention(x, x, x, mask(seen))
            values.append(mixed.sum(3))
        values.append(torch.where(seen == 0, -1.0, words.float()).unsqueeze(1))
        return torch.cat(values, 1)


@needs_gcc
def test_c_hides_what_the_network_hides(tmp_path):
    torch.manual_seed(0)
    model = All().eval()
    words, seen = some_inputs()
    seen[0] = 0  # a query without a key gives 0
    source = ez.export_c(model, tmp_path, EXAMPLE)
    outputs = ez.compile_c(source)(torch.cat([words, seen], 1).float())
    expected = model(words, seen).flatten(1)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_onnx_hides_what_the_network_hides(tmp_path):
    check_onnx(ez.trace(All().eval(), EXAMPLE), tmp_path)  # whose random masks hide some keys


def test_a_query_that_sees_no_key_gives_zero():
    op = ops.Attention(scale=0.5, mask="seen")
    q, seen = torch.randn(2, 3, 4), torch.ones(2, 3, 3)
    seen[1, 2] = 0
    result = op.run([q, q, q, seen], {})
    assert (result[1, 2] == 0).all()
    torch.testing.assert_close(result[0], F.scaled_dot_product_attention(q[0], q[0], q[0]))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (ops.Compare(relation="equal"), [[1, math.nan, 0]]),
        (ops.Compare(relation="less"), [[0, math.nan, 1]]),
        (ops.Compare(relation="at_least"), [[1, math.nan, 0]]),
    ],
)
def test_a_comparison_with_what_is_not_known_is_not_known(op, expected):
    one, other = torch.tensor([[1.0, math.nan, 2.0]]), torch.tensor([[1.0, 3.0, 3.0]])
    known = op.known([one.double(), other.double()], {})
    torch.testing.assert_close(known, torch.tensor(expected).double(), equal_nan=True)


def test_a_choice_is_known_where_both_values_are_the_same():
    choice = torch.tensor([[math.nan, math.nan, 1.0, 0.0]])
    one, other = (
        torch.tensor([[4.0, 4.0, math.nan, math.nan]]),
        torch.tensor([[4.0, 5.0, 5.0, 5.0]]),
    )
    known = ops.Where().known([choice, one, other], {})
    expected = torch.tensor([[4.0, math.nan, math.nan, 5.0]])
    torch.testing.assert_close(known, expected, equal_nan=True)


def test_a_constant_has_no_name_that_a_module_has_a_use_for():
    """A call of `x.to` makes the mask; a weight `to.value` would hide the network's own method."""
    network = ez.trace(All(), EXAMPLE)
    assert not [n for n in network.state_dict() if hasattr(nn.Module, n.split(".")[0])]


def test_what_numbers_the_examples_stays_as_the_network_has_it():
    class Numbered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            number = torch.arange(x.shape[0]).view(-1, 1)
            return x[number.flip(0), torch.arange(3)] + number

    network = ez.trace(Numbered(), torch.zeros(1, 3))
    assert network.graph.opaque
    x = torch.randn(4, 3)
    assert torch.equal(network(x), Numbered()(x))


@pytest.mark.parametrize("keys", [[2, 1, 0], [1, 1, 1], [-1], [0, 2, 1]], ids=str)
def test_keys_that_are_looked_up_in_another_order_stay_so(keys):
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[torch.arange(x.shape[0]).view(-1, 1), torch.tensor(keys)] * 2.0

    x = torch.randn(4, 3)
    assert torch.equal(ez.trace(Turned(), torch.zeros(1, 3))(x), x[:, keys] * 2)


def test_what_is_rounded_by_a_cast_stays_as_the_network_has_it():
    """Of 2.7 an integer is 2; C, which has floats alone, would leave it."""

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.int64).float() * 2.5

    network = ez.trace(Rounded(), torch.zeros(1, 3))
    assert network.graph.opaque
    x = torch.randn(4, 3) * 5
    assert torch.equal(network(x), Rounded()(x))


@pytest.mark.filterwarnings("ignore:.*cannot be written as data")
def test_a_file_holds_integers_that_an_opaque_part_reads(tmp_path):
    class Numbered(nn.Module):
        kinds: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kinds", torch.tensor([[2, 0, 1]]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.kinds.expand(len(x), -1).gather(1, (x > 0).long())

    network = ez.trace(Numbered(), torch.zeros(1, 3))
    assert network.graph.opaque
    ez.pack(network, tmp_path / "net.ellz")
    x = torch.randn(4, 3)
    assert torch.equal(ez.load(tmp_path / "net.ellz", Numbered())(x), Numbered()(x))


# Values that are repeated


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of (N, heads, time, features)."""
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat([-other, one], -1) * sin


class Grouped(nn.Module):
    """Causal attention with rotary positions; several heads share their keys and values."""

    rates: Tensor

    def __init__(self, repeat: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.repeat = repeat
        self.q, self.kv = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24)
        self.o = nn.Linear(24, 4)
        self.register_buffer("rates", 0.3 ** torch.arange(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, time, 4) of (N, time, width)."""
        places = torch.arange(TIME, dtype=x.dtype).view(1, -1, 1)
        angles = (places @ self.rates.view(1, 1, -1)).repeat(1, 1, 2).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        q = self.q(x).unflatten(2, (4, 6)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (4, 6)).transpose(1, 2).chunk(2, 1)
        q, k = (rotated(part, cos, sin) for part in (q, k))
        if self.repeat is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = self.repeat(k), self.repeat(v)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


REPEATS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "by attention": None,
    "expanded": lambda x: x.unsqueeze(2).expand(-1, -1, 2, -1, -1).flatten(1, 2),
    "interleaved": lambda x: x.repeat_interleave(2, dim=1),
}


@pytest.mark.parametrize("what", REPEATS)
def test_grouped_heads_and_rotary_positions_are_data(what, tmp_path):
    torch.manual_seed(0)
    model = Grouped(REPEATS[what]).eval()
    network = ez.trace(model, torch.zeros(1, TIME, WIDTH))
    assert not network.graph.opaque
    for count in (1, 2, 5):
        x = torch.randn(count, TIME, WIDTH)
        torch.testing.assert_close(network(x), model(x))
    # positions are computed beforehand: nothing of the state_dict is lost, nothing but them added
    assert {*model.state_dict()} <= {*network.state_dict()}
    angles = [n for n in network.state_dict() if n not in model.state_dict()]
    assert sorted(tuple(network.weight(name).shape) for name in angles) == [(1, 1, TIME, 6)] * 2
    assert ez.pack(network, tmp_path / "net.ellz").self_contained
    torch.testing.assert_close(ez.load(tmp_path / "net.ellz")(x), network(x))


@needs_gcc
@pytest.mark.parametrize("what", ["expanded"])
def test_c_of_grouped_heads(what, tmp_path: Path):
    torch.manual_seed(0)
    model = Grouped(REPEATS[what]).eval()
    x = torch.randn(3, TIME, WIDTH)
    outputs = ez.compile_c(ez.export_c(model, tmp_path, x))(x)
    torch.testing.assert_close(outputs, model(x).flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", REPEATS)
def test_a_dead_head_of_keys_leaves_with_all_that_share_it(what):
    torch.manual_seed(0)
    model = Grouped(REPEATS[what]).double().eval()
    with torch.no_grad():
        model.o.weight[:, 12:] = 0  # heads 2 and 3, which share keys and values
    x = torch.randn(3, TIME, WIDTH).double()
    small = ez.compact(model, x).model
    torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
    assert small.weight("q.weight").shape == (12, WIDTH)
    assert small.weight("kv.weight").shape == (12, WIDTH)


@pytest.mark.parametrize("seed", range(6))
def test_compaction_of_randomly_pruned_grouped_heads(seed):
    torch.manual_seed(seed)
    model = Grouped(REPEATS["expanded"]).double().eval()
    with torch.no_grad():
        model.o.weight *= torch.rand(4, 24) < (0.1, 0.3)[seed % 2]
        model.o.weight[:, torch.rand(24) < 0.5] = 0
        for layer in (model.q, model.kv):
            layer.weight[torch.rand(24) < 0.5] = 0
            layer.bias[torch.rand(24) < 0.5] = 0
    x = torch.randn(3, TIME, WIDTH).double()
    torch.testing.assert_close(ez.compact(model, x).model(x), model(x), rtol=1e-9, atol=1e-9)
