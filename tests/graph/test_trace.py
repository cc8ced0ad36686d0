"""Tracing: any network's copy computes the same for any batch, and says what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import ellzero as ez
from cases import anatomy


class Wired(nn.Module):
    """Layers, and how they are put together."""

    def __init__(self, wiring: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


def with_statistics(model: nn.Module) -> nn.Module:
    """Every parameter and every running statistic is random."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape)
            tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model.eval()


def inplace_residual(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y += x
    return m.relu(y)


IMAGE = (2, 6, 6)
BLOCK = {"conv": nn.Conv2d(2, 2, 3, padding=1), "relu": nn.ReLU(inplace=True)}
SHARED_NORM = {"norm": nn.BatchNorm1d(3), "dense": nn.Linear(3, 3)}

Case = tuple[nn.Module, tuple[int, ...], str]
CASES: dict[str, Case] = {
    # what it is, a module, one example's shape, the kinds of the nodes after the input
    "one layer": (nn.Linear(3, 2), (3,), "linear"),
    "nothing": (nn.Identity(), (3,), ""),
    "a convolution": (nn.Conv2d(2, 3, 3, 2, 1, 2, bias=False), IMAGE, "conv"),
    "groups": (nn.Conv2d(2, 4, 3, groups=2), IMAGE, "conv"),
    "padding valid": (nn.Conv2d(2, 3, 3, padding="valid"), IMAGE, "conv"),
    "padding same, odd": (nn.Conv2d(2, 3, (3, 5), padding="same", dilation=2), IMAGE, "conv"),
    "padding same, even": (nn.Conv2d(2, 3, (2, 4), padding="same"), IMAGE, "pad conv"),
    "convolution of signals": (nn.Conv1d(2, 3, 3, 2, 1, 2), (2, 9), "conv"),
    "signals, padding same, even": (
        nn.Conv1d(2, 3, 4, padding="same", dilation=3),
        (2, 9),
        "pad conv",
    ),
    "causal convolution": (
        Wired(lambda m, x: m.conv(F.pad(x, (4, 0))), conv=nn.Conv1d(2, 3, 3, dilation=2)),
        (2, 9),
        "pad conv",
    ),
    "convolution of volumes": (nn.Conv3d(2, 3, 2, padding=(0, 1, 0)), (2, 3, 4, 3), "conv"),
    "padding that reflects": (
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        IMAGE,
        "opaque conv",
    ),
    "batch norm of images": (nn.BatchNorm2d(2), IMAGE, "affine"),
    "batch norm, not affine": (nn.BatchNorm2d(2, affine=False, eps=0.1), IMAGE, "affine"),
    "batch norm of values": (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        (3,),
        "linear affine",
    ),
    "batch norm of sequences": (nn.BatchNorm1d(4), (4, 3), "affine"),
    "batch norm used twice": (
        Wired(lambda m, x: m.norm(m.dense(m.norm(x))), **SHARED_NORM),
        (3,),
        "affine linear affine",
    ),
    "batch norm of computed statistics": (
        Wired(
            lambda m, x: F.batch_norm(x, m.n.running_mean + 1, m.n.running_var * 2),
            n=nn.BatchNorm2d(2),
        ),
        IMAGE,
        "opaque opaque opaque",
    ),
    "a computed bias": (
        Wired(lambda m, x: F.linear(x, m.d.weight, m.d.bias * 2), d=nn.Linear(3, 2)),
        (3,),
        "constant activation linear add",
    ),
    "dropout": (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), (3,), "linear"),
    "dropout of channels": (nn.Dropout2d(0.5), IMAGE, ""),
    "relu as a module": (nn.ReLU(), (3,), "activation"),
    "relu as a function": (Wired(lambda m, x: F.relu(x)), (3,), "activation"),
    "relu as a method": (Wired(lambda m, x: x.relu()), (3,), "activation"),
    "relu in place": (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)),
        (3,),
        "linear activation",
    ),
    "relu6": (nn.ReLU6(), (3,), "activation"),
    "hardtanh": (nn.Hardtanh(-0.5, 0.3), (3,), "activation"),
    "clamp": (Wired(lambda m, x: x.clamp(-1, 0.5)), (3,), "activation"),
    "clamp of one side": (
        Wired(lambda m, x: torch.clamp_max(x.clamp(min=-0.1), 0.5)),
        (3,),
        "activation activation",
    ),
    "clamp to infinity": (Wired(lambda m, x: x.clamp(0, float("inf"))), (3,), "opaque"),
    "clamp the wrong way": (Wired(lambda m, x: x.clamp(2, 1)), (3,), "opaque"),
    "elu": (nn.ELU(0.5), (3,), "activation"),
    "selu": (nn.SELU(), (3,), "activation"),
    "elu with a scale": (Wired(lambda m, x: torch.ops.aten.elu(x, 1.0, 2.0)), (3,), "opaque"),
    "numbers": (
        Wired(lambda m, x: 2 / (1 - (x * 0.5 + 1) / 3 - 5)),
        (3,),
        " ".join(["activation"] * 7),
    ),
    "numbers and integers": (
        Wired(lambda m, x: x * (x > 0).long().add(1)),
        (3,),
        "constant compare cast opaque multiply",
    ),
    "number with a factor": (Wired(lambda m, x: torch.add(x, 2, alpha=3)), (3,), "opaque"),
    "quotient rounded": (Wired(lambda m, x: x // 2), (3,), "opaque"),
    "gelu": (nn.GELU(), (3,), "activation"),
    "gelu by tanh": (nn.GELU("tanh"), (3,), "activation"),
    "leaky relu": (nn.LeakyReLU(0.2), (3,), "activation"),
    "others": (
        nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid()),
        (3,),
        "activation activation activation activation activation",
    ),
    "one slope": (nn.PReLU(), IMAGE, "prelu"),
    "a slope a channel": (nn.PReLU(2), IMAGE, "prelu"),
    "one slope for layers of different sizes": (
        Wired(lambda m, x: m.p(m.d(m.p(x))), p=nn.PReLU(), d=nn.Linear(3, 4)),
        (3,),
        "prelu linear prelu",
    ),
    "slopes of what has no channels": (
        Wired(lambda m, x: m.p(x[:, 0])[:, None], p=nn.PReLU()),
        (3,),
        "slice opaque",
    ),
    "max pool": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE, "pool"),
    "max pool as a function": (Wired(lambda m, x: F.max_pool2d(x, (2, 3))), IMAGE, "pool"),
    "pool larger than the image": (nn.MaxPool2d(7, 2, ceil_mode=True), IMAGE, "pool"),
    "average pool": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE, "pool"),
    "max pool that could tell where": (
        Wired(lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0]),
        IMAGE,
        "pool",
    ),
    "max pool of signals": (nn.MaxPool1d(3, 2), (2, 9), "pool"),
    "average pool of signals": (nn.AvgPool1d(3), (2, 9), "pool"),
    "adaptive pool of signals": (nn.AdaptiveAvgPool1d(3), (2, 9), "pool"),
    "adaptive max pool": (nn.AdaptiveMaxPool2d((2, 3)), IMAGE, "pool"),
    "average pool of volumes": (nn.AvgPool3d(2), (2, 3, 4, 3), "pool"),
    "mean of signals": (Wired(lambda m, x: x.mean(-1)), (2, 9), "pool flatten"),
    "mean of volumes": (Wired(lambda m, x: x.mean((2, 3, 4))), (2, 3, 4, 3), "pool flatten"),
    "average pool with a divisor": (nn.AvgPool2d(2, divisor_override=3), IMAGE, "opaque"),
    "adaptive pool to one": (nn.AdaptiveAvgPool2d(1), IMAGE, "pool"),
    "adaptive pool that divides": (nn.AdaptiveAvgPool2d((3, 2)), IMAGE, "pool"),
    "adaptive pool that does not": (nn.AdaptiveAvgPool2d(4), IMAGE, "opaque"),
    "mean": (Wired(lambda m, x: x.mean([2, 3])), IMAGE, "pool flatten"),
    "mean, dimensions kept": (Wired(lambda m, x: x.mean((-1, -2), keepdim=True)), IMAGE, "pool"),
    "mean of rows": (Wired(lambda m, x: x.mean(3)), IMAGE, "reduce reshape"),
    "mean of all channels": (Wired(lambda m, x: x.mean((1, 2, 3))), IMAGE, "reduce reshape"),
    "flatten": (nn.Flatten(), IMAGE, "flatten"),
    "flatten of a flat input": (nn.Flatten(), (3,), ""),
    "view": (Wired(lambda m, x: x.view(x.size(0), -1)), IMAGE, "flatten"),
    "view by number": (Wired(lambda m, x: x.view(-1, 72)), IMAGE, "flatten"),
    "reshape": (Wired(lambda m, x: x.reshape(x.shape[0], 72)), IMAGE, "flatten"),
    "flatten in part": (nn.Flatten(2), IMAGE, "reshape"),
    "flatten of what was permuted": (
        Wired(lambda m, x: x.permute(0, 2, 3, 1).flatten(1)),
        IMAGE,
        "permute flatten",
    ),
    "reshape of what was permuted": (
        Wired(lambda m, x: x.transpose(1, 2).reshape(x.shape[0], 3, -1)),
        IMAGE,
        "permute reshape",
    ),
    "reshape into the batch": (
        Wired(lambda m, x: m.d(x.reshape(-1, 36)).reshape(x.shape[0], -1), d=nn.Linear(36, 2)),
        IMAGE,
        "reshape linear reshape",
    ),
    "squeeze": (
        Wired(lambda m, x: x.mean((2, 3), keepdim=True).squeeze((2, 3))),
        IMAGE,
        "pool flatten",
    ),
    "residual": (Wired(lambda m, x: m.relu(m.conv(x) + x), **BLOCK), IMAGE, "conv add activation"),
    "residual in place": (Wired(inplace_residual, **BLOCK), IMAGE, "conv add activation"),
    "sum with itself": (Wired(lambda m, x: x + x), (3,), "add"),
    "sum with a factor": (Wired(lambda m, x: torch.add(x, x, alpha=2)), (3,), "opaque"),
    "sum with a number": (Wired(lambda m, x: x + 1), (3,), "activation"),
    "sum with a weight": (
        Wired(lambda m, x: x + m.d.bias, d=nn.Linear(2, 3)),
        (3,),
        "constant add",
    ),
    "sum that is broadcast": (
        Wired(lambda m, x: x + x.mean((2, 3), keepdim=True)),
        IMAGE,
        "pool add",
    ),
    "softmax": (nn.Softmax(-1), (3,), "softmax"),
    "log softmax of images": (nn.LogSoftmax(1), IMAGE, "softmax"),
    "softmax of another dimension": (nn.Softmax(2), IMAGE, "softmax"),
    "layer norm": (nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), (3,), "layer_norm linear"),
    "layer norm with time first": (
        Wired(lambda m, x: m.n(x.transpose(0, 1)).transpose(0, 1), n=nn.LayerNorm(3)),
        (2, 3),
        "layer_norm",
    ),
    "layer norm over the batch": (
        Wired(lambda m, x: F.layer_norm(x.transpose(0, 1), (x.shape[0], 3)).transpose(0, 1)),
        (2, 3),
        "opaque opaque",
    ),
    "rms norm": (nn.RMSNorm(3), (2, 3), "rms_norm"),
    "group norm": (nn.GroupNorm(2, 4), (4, 3), "group_norm"),
    "group norm of each channel": (nn.GroupNorm(4, 4), (4, 3), "instance_norm"),
    "instance norm": (nn.InstanceNorm2d(2), IMAGE, "instance_norm"),
    "instance norm of statistics": (
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        IMAGE,
        "affine",
    ),
    "upsampling": (nn.Upsample(scale_factor=1.5), IMAGE, "upsample"),
    "upsampling to a size": (nn.Upsample((7, 4), mode="bilinear"), IMAGE, "upsample"),
    "upsampling of volumes": (
        nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True),
        (2, 3, 2, 2),
        "upsample",
    ),
    "upsampling, bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE, "opaque"),
    "pixels": (
        nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
        IMAGE,
        "pixel_unshuffle pixel_shuffle",
    ),
    "transposed convolution": (
        nn.ConvTranspose2d(2, 3, 3, (3, 2), (0, 1), (2, 1), dilation=2),
        IMAGE,
        "conv_transposed",
    ),
    "transposed convolution of signals": (
        nn.ConvTranspose1d(2, 4, 3, 2),
        (2, 5),
        "conv_transposed",
    ),
    "transposed convolution of volumes": (
        nn.ConvTranspose3d(2, 4, 2, groups=2),
        (2, 3, 2, 2),
        "conv_transposed",
    ),
    "concatenation": (
        Wired(lambda m, x: m.d(torch.cat([F.relu(x), x], 1)), d=nn.Linear(6, 2)),
        (3,),
        "activation concat linear",
    ),
    "dense layers of sequences": (nn.Linear(3, 2), (5, 3), "linear"),
    "the batch's size": (Wired(lambda m, x: x / x.shape[0]), (3,), "opaque opaque"),
    "a chunk": (Wired(lambda m, x: x.chunk(2, 1)[1] * 2), (4,), "slice activation"),
    "a buffer": (
        Wired(lambda m, x: x * m.n.running_mean[:, None, None], n=nn.BatchNorm2d(2)),
        IMAGE,
        "constant reshape multiply",
    ),
    "one value an example": (
        Wired(lambda m, x: m.d(x).squeeze(1), d=nn.Linear(3, 1)),
        (3,),
        "linear reshape",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_a_traced_network_computes_the_same_for_any_batch(what):
    torch.manual_seed(0)
    model, shape, kinds = CASES[what]
    model = with_statistics(model)
    traced = ez.trace(model, torch.zeros(1, *shape))
    assert " ".join(node.op.kind for node in traced.graph.nodes[1:]) == kinds
    for count in (1, 2, 5):
        x = torch.randn(count, *shape)
        expected = model(x.clone())
        torch.testing.assert_close(traced(x.clone()), expected)
        last = traced.graph.nodes[-1].name
        assert traced.shapes[last] == tuple(expected.shape[1:])


def test_squeezing_spares_a_batch_of_one():
    traced = ez.trace(
        Wired(lambda m, x: x.mean((2, 3), keepdim=True).squeeze()), torch.zeros(1, *IMAGE)
    )
    assert [node.op.kind for node in traced.graph.nodes] == ["input", "pool", "flatten"]
    assert traced(torch.ones(1, *IMAGE)).tolist() == [[1, 1]]


def test_recurrent_layers_are_seen_between_others():
    torch.manual_seed(0)
    model = Wired(
        lambda m, x: m.dense(m.lstm(m.before(x))[0][:, -1]),
        before=nn.BatchNorm1d(5),
        lstm=nn.LSTM(3, 4, batch_first=True),
        dense=nn.Linear(4, 2),
    ).eval()
    traced = ez.trace(model, torch.zeros(1, 5, 3))
    assert [n.op.kind for n in traced.graph.nodes if n.weights] == ["affine", "recurrent", "linear"]
    x = torch.randn(6, 5, 3)
    torch.testing.assert_close(traced(x), model(x))


def deep() -> Any:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(features, nn.Flatten(), nn.Linear(64, 3))


def test_keys_parameters_and_node_names_are_the_networks_own():
    model = deep()
    model[0][0].bias.requires_grad_(False)
    traced = ez.trace(model, torch.zeros(4, *IMAGE))
    assert {name: w.requires_grad for name, w in traced.named_parameters()} == {
        "0.0.weight": True,
        "0.0.bias": False,
        "0.1.scale": False,
        "0.1.shift": False,
        "2.weight": True,
        "2.bias": True,
    }
    assert list(traced.shapes.items()) == [
        ("input", (2, 6, 6)),
        ("0.0", (4, 4, 4)),
        ("0.1", (4, 4, 4)),
        ("0.2", (4, 4, 4)),
        ("1", (64,)),
        ("2", (3,)),
    ]
    assert not traced.training


def test_a_tied_weight_goes_by_its_first_name():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    traced = ez.trace(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), first), torch.zeros(1, 3))
    assert [dict(n.weights) for n in traced.graph.nodes if n.weights] == [
        {"weight": "0.weight", "bias": "0.bias"},
        {"weight": "0.weight", "bias": "2.bias"},
        {"weight": "0.weight", "bias": "0.bias"},
    ]
    assert set(traced.state_dict()) == {"0.weight", "0.bias", "2.bias"}


def test_what_the_output_does_not_need_is_left_out():
    model = Wired(
        lambda m, x: (m.unused(x), m.used(x))[1], used=nn.Linear(3, 2), unused=nn.Linear(3, 2)
    )
    assert set(ez.trace(model, torch.zeros(1, 3)).state_dict()) == {"used.weight", "used.bias"}


def test_the_network_is_left_as_it_was_and_shares_nothing():
    model = deep().train()
    before, state = anatomy(model), {k: v.clone() for k, v in model.state_dict().items()}
    traced = ez.trace(model, torch.zeros(1, *IMAGE))
    for w in traced.parameters():
        w.data.fill_(9.0)
    assert anatomy(model) == before
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_traced_network_is_given_back_as_a_copy():
    preprocess = ez.Preprocess(2.0, 1.0)
    traced = ez.trace(
        deep(), torch.zeros(1, *IMAGE), preprocess=preprocess, classes=["a", "b", "c"]
    )
    again = ez.trace(traced)
    assert again.graph == traced.graph
    assert (again.graph.preprocess, again.graph.classes) == (preprocess, ("a", "b", "c"))
    assert again.weight("2.weight") is not traced.weight("2.weight")
    assert again.weight("2.weight").requires_grad
    assert ez.trace(traced, classes=["x", "y", "z"]).graph.classes == ("x", "y", "z")


def test_a_length_of_a_batch_is_any_length():
    """`len(x)` is a number as soon as it runs; an encoder keeps its layers all the same."""
    encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model = Wired(
        lambda m, x: m.e(torch.cat([x, m.token.weight.expand(len(x), -1, -1)], 1)),
        e=encoder,
        token=nn.Embedding(1, 4),
    ).eval()
    network = ez.trace(model, torch.zeros(1, 3, 4))
    assert not network.graph.opaque
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 4)
        torch.testing.assert_close(network(x), model(x))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_stay(dtype):
    traced = ez.trace(deep().to(dtype), torch.zeros(1, *IMAGE, dtype=dtype))
    assert {w.dtype for w in traced.parameters()} == {dtype}


def test_gradients_reach_the_traced_parameters():
    traced = ez.trace(deep(), torch.zeros(1, *IMAGE))
    traced(torch.randn(2, *IMAGE)).sum().backward()
    assert {n for n, w in traced.named_parameters() if w.grad is not None} == {
        "0.0.weight",
        "0.0.bias",
        "2.weight",
        "2.bias",
    }


UNTRACEABLE: dict[str, tuple[nn.Module, str]] = {
    "a decision on values": (
        Wired(lambda m, x: x if x.sum() > 0 else -x),
        "cannot be traced with inputs",
    ),
    "a decision on the batch's size": (
        Wired(lambda m, x: x * 100 if x.shape[0] > 4 else x),
        "cannot be traced with inputs",
    ),
    "a decision on whether the batch is odd": (
        Wired(lambda m, x: -x if x.shape[0] % 2 else x),
        "cannot be traced with inputs",
    ),
    "a fixed batch": (Wired(lambda m, x: x.reshape(2, 3) + 1), "cannot be traced with inputs"),
    "an error of its own": (Wired(lambda m, x: x @ torch.zeros(7, 7)), "cannot be traced"),
    "a part of it as an argument": (
        Wired(lambda m, x: torch.cond(x.sum() > 0, torch.relu, torch.sigmoid, (x + 1,))),
        "the network calls cond, which takes a part of the network as an argument",
    ),
    "outputs within outputs": (Wired(lambda m, x: (x, (x, x))), "gives a tuple of other things"),
    "a batch that is not first": (Wired(lambda m, x: x.T), "no tensor whose dimension 0"),
    "no output": (Wired(lambda m, x: None), "does not depend on its input"),
    "a constant": (Wired(lambda m, x: m.d.weight, d=nn.Linear(3, 2)), "does not depend"),
    "a number": (Wired(lambda m, x: x.shape[0]), "no tensor whose dimension 0 is the batch"),
    "one value for the batch": (Wired(lambda m, x: x.mean()), "no tensor whose dimension 0"),
}


@pytest.mark.parametrize("what", UNTRACEABLE)
def test_networks_that_cannot_be_traced(what):
    model, message = UNTRACEABLE[what]
    with pytest.raises(ez.InputError, match=message):
        ez.trace(model, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (None, "Linear needs an example"),
        (torch.zeros(3), r"the example is \(3,\); expected a batch"),
        (torch.zeros(0, 3), r"the example is \(0, 3\); expected a batch"),
        ([[1.0, 2.0, 3.0]], "the example is list; expected a batch"),
        (torch.zeros(1, 4), r"Linear cannot be traced with inputs \(1, 4\)"),
    ],
    ids=str,
)
def test_examples_that_are_none(example, message):
    with pytest.raises(ez.InputError, match=message):
        ez.trace(nn.Linear(3, 2), example)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"classes": [0, 1]}, r"classes is \[0, 1\]; expected a list of names"),
        ({"classes": "ab"}, "classes is 'ab'; expected a list of names"),
        ({"preprocess": (2.0, 1.0)}, r"preprocess is \(2.0, 1.0\); expected an ez.Preprocess"),
        ({"preprocess": ez.Preprocess((2.0, 1.0))}, "2 values for scale, the input 3 channels"),
    ],
    ids=str,
)
def test_what_cannot_travel_with_a_network(about, message):
    for model in (nn.Linear(3, 2), ez.trace(nn.Linear(3, 2), torch.zeros(1, 3))):
        with pytest.raises(ez.InputError, match=message):
            ez.trace(model, torch.zeros(1, 3), **about)


def test_a_clamp_at_zero_from_below_is_a_relu():
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(min=0)

    network = ez.trace(Clamped(), torch.zeros(1, 3))
    assert [node.op.kind for node in network.graph.nodes] == ["input", "activation"]
    x = torch.tensor([[-1.0, 0.0, 2.0]])
    assert torch.equal(network(x), torch.tensor([[0.0, 0.0, 2.0]]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped_networks_are_traced_as_what_is_inside(wrap):
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    network = ez.trace(wrap(model), torch.zeros(1, 3))
    assert list(network.state_dict()) == list(model.state_dict())


def test_networks_of_several_processes_are_traced_as_what_is_inside():
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        shared = nn.parallel.DistributedDataParallel(model)
        network = ez.trace(shared, torch.zeros(1, 3))
    finally:
        dist.destroy_process_group()
    assert list(network.state_dict()) == list(model.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(network(x), model(x))


def test_torch_says_nothing_of_its_own_when_a_network_cannot_be_traced(capfd):
    with pytest.raises(ez.InputError, match="cannot be traced"):
        ez.trace(nn.Linear(3, 2), torch.zeros(1, 4))
    assert capfd.readouterr() == ("", "")


def test_a_bound_on_the_batch_does_not_matter():
    # as the kernels of convolutions on CUDA have one
    class Bounded(nn.Module):
        def forward(self, x):
            torch._check(x.shape[0] <= 65_535)
            return x.flatten(1)

    network = ez.trace(Bounded(), torch.zeros(1, 2, 3))
    assert [node.op.kind for node in network.graph.nodes] == ["input", "flatten"]
    assert network(torch.ones(7, 2, 3)).shape == (7, 6)
