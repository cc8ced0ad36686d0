import math

import numpy as np
import pytest
import torch

import ellzero as ez
from ellzero.networks.gpt import gpt_small
from network_cases import assert_close, linear, lively, parameter_count, state_of

SMALL = {"vocabulary": 11, "width": 12, "layers": 2, "heads": 3, "context": 8}


def test_has_the_layers_of_its_description():
    network = gpt_small()
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["tokens.weight"] == (65, 128)
    assert shapes["positions.weight"] == (128, 128)
    assert shapes["norm.weight"] == (128,)
    assert len(network.blocks) == 5
    block = {n.removeprefix("blocks.4."): s for n, s in shapes.items() if n.startswith("blocks.4")}
    assert block == {
        "norm1.weight": (128,),
        "norm1.bias": (128,),
        "attention.qkv.weight": (384, 128),
        "attention.qkv.bias": (384,),
        "attention.output.weight": (128, 128),
        "attention.output.bias": (128,),
        "norm2.weight": (128,),
        "norm2.bias": (128,),
        "feed_forward.expand.weight": (512, 128),
        "feed_forward.expand.bias": (512,),
        "feed_forward.contract.weight": (128, 512),
        "feed_forward.contract.bias": (128,),
    }
    # 65 * 128 tokens + 128 * 128 positions + 5 * (12 * 128^2 + 13 * 128) + 2 * 128
    assert parameter_count(network) == 1_016_320


def layer_normalized(x, state, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(x, state, name, heads):
    """Head by head and place by place, as the paper's sentence has it."""
    width = x.shape[-1]
    size = width // heads
    fused = linear(x, state, f"{name}.qkv")
    mixed = np.empty_like(x)
    for head in range(heads):
        q, k, v = (
            fused[..., part * width + head * size : part * width + (head + 1) * size]
            for part in range(3)
        )
        for place in range(x.shape[1]):
            scores = np.einsum("nd,ntd->nt", q[:, place], k[:, : place + 1]) / math.sqrt(size)
            seen = np.einsum("nt,ntd->nd", softmax(scores), v[:, : place + 1])
            mixed[:, place, head * size : (head + 1) * size] = seen
    return linear(mixed, state, f"{name}.output")


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def test_computes_what_its_description_says():
    torch.manual_seed(0)
    network, tokens = lively(gpt_small(**SMALL)), torch.randint(11, (2, 6))
    for parameter in network.parameters():  # initial weights are so small that much is hidden
        torch.nn.init.normal_(parameter, std=0.5)
    state = state_of(network)
    x = state["tokens.weight"][tokens.numpy()] + state["positions.weight"][:6]
    for block in ("blocks.0", "blocks.1"):
        y = layer_normalized(x, state, f"{block}.norm1")
        x = x + attention(y, state, f"{block}.attention", heads=3)
        y = layer_normalized(x, state, f"{block}.norm2")
        y = gelu(linear(y, state, f"{block}.feed_forward.expand"))
        x = x + linear(y, state, f"{block}.feed_forward.contract")
    logits = layer_normalized(x, state, "norm") @ state["tokens.weight"].T
    assert_close(network(tokens), logits)


def test_a_token_changes_no_logits_before_it_and_all_from_it_on():
    torch.manual_seed(0)
    network, tokens = gpt_small().eval(), torch.randint(65, (1, 20))
    other = tokens.clone()
    other[0, 9] = (other[0, 9] + 1) % 65
    differ = (network(tokens) != network(other))[0]
    assert not differ[:9].any()
    assert differ[9:].any(1).all()


def test_a_sequence_longer_than_the_context_is_refused():
    network = gpt_small(**SMALL)
    assert network(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, 11)
    with pytest.raises(ez.InputError, match="sequences of 9 tokens; its context is 8 tokens"):
        network(torch.zeros(1, 9, dtype=torch.int64))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ez.InputError, match="width is 10; expected a multiple of heads=4"):
        gpt_small(width=10)


def test_initial_weights_are_those_of_gpt_2():
    torch.manual_seed(0)
    stds = {name: p.std().item() for name, p in gpt_small().named_parameters() if p.dim() == 2}
    assert len(stds) == 2 + 5 * 4
    for name, std in stds.items():
        # what is added to the sum of 10 residuals starts smaller
        residual = name.endswith(("output.weight", "contract.weight"))
        expected = 0.01 if name == "positions.weight" else 0.02 / math.sqrt(10 if residual else 1)
        assert std == pytest.approx(expected, rel=0.03), name
    vectors = {n: p for n, p in gpt_small().named_parameters() if p.dim() == 1}
    assert all((p == (0 if "bias" in n else 1)).all() for n, p in vectors.items())


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    network, tokens = gpt_small(dropout=0.5, **SMALL), torch.randint(11, (2, 8))
    assert not network(tokens).equal(network(tokens))
    network.eval()
    without = gpt_small(**SMALL)
    without.load_state_dict(network.state_dict())
    assert network(tokens).equal(without(tokens))


# the place that drops, and the layer without which nothing else that it drops is left
PLACES = {
    "the embeddings": ("dropout", None),
    "attention weights": ("blocks.0.attention.dropout", "blocks.0.feed_forward.contract"),
    "what attention adds": ("blocks.0.dropout", "blocks.0.feed_forward.contract"),
    "what feed-forward adds": ("blocks.0.dropout", "blocks.0.attention.output"),
}


@pytest.mark.parametrize("place", PLACES)
def test_dropout_acts_in_every_place(place):
    """Each alone is in training mode."""
    torch.manual_seed(0)
    network, tokens = gpt_small(dropout=0.5, **SMALL).eval(), torch.randint(11, (2, 8))
    drops, other = PLACES[place]
    if other is not None:
        for parameter in network.get_submodule(other).parameters():
            torch.nn.init.zeros_(parameter)
    before = network(tokens)
    network.get_submodule(drops).training = True
    assert not network(tokens).equal(before)


def test_the_head_and_the_tokens_are_one_weight_which_stays_so_in_files(tmp_path):
    network, path = gpt_small(**SMALL), tmp_path / "gpt.safetensors"
    assert network.head.weight is network.tokens.weight
    assert {"head.weight", "tokens.weight"} <= set(network.state_dict())
    ez.save(network, path)
    loaded = gpt_small(**SMALL)
    ez.load(path, loaded)
    assert loaded.head.weight is loaded.tokens.weight
    tokens = torch.randint(11, (2, 8))
    assert loaded(tokens).equal(network(tokens))


def test_can_be_exported_with_any_batch_size_and_time():
    network = gpt_small(**SMALL).eval()
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("time", max=8)},)
    program = torch.export.export(network, (torch.randint(11, (2, 5)),), dynamic_shapes=sizes)
    tokens = torch.randint(11, (3, 8))
    torch.testing.assert_close(program.module()(tokens), network(tokens))
