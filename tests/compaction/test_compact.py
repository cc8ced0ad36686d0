"""Compaction: the output stays, exactly what cannot matter leaves, and what stays is explained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ellzero as ez
from activation_cases import Own
from cases import anatomy, fill
from ellzero.compaction.compact import Removed
from ellzero.graph import Network
from ellzero.networks.lenet import lenet_5_caffe, lenet_300_100

# networks of which little is left are what is tested here
pytestmark = pytest.mark.filterwarnings("ignore:.*same for every input")


def with_weights(model: Any, seed: int = 0) -> Any:
    """A float64 network in evaluation mode, all of whose numbers are random and none zero."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            positive = name.endswith("running_var")
            tensor.copy_(values.abs() + 0.5 if positive else values + values.sign() * 0.1)
    return model


def dead(layer: Any, *rows: int, bias: float = 0.0) -> None:
    """Units that read nothing; what they give is the bias."""
    for row in rows:
        layer.weight.data[row] = 0
        if layer.bias is not None:
            layer.bias.data[row] = bias


def unread(layer: Any, *columns: int) -> None:
    """Inputs that a layer does not read."""
    layer.weight.data[:, list(columns)] = 0


def inputs(shape: tuple[int, ...], count: int = 7) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1)).double()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


class Wired(nn.Module):
    """Layers, and how they are put together."""

    def __init__(self, wiring: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


# What leaves, worked out by hand


def test_a_network_small_enough_to_write_down():
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    # unit 1 always gives 2, unit 2 is not read, and input 1 is read by unit 2 alone
    fill(model[0].weight, [[1, 0, 2], [0, 0, 0], [5, 6, 7], [-1, 0, 3]])
    fill(model[0].bias, [0.5, 2, 1, -0.5])
    fill(model[2].weight, [[1, 10, 0, 2], [3, -4, 0, 0]])
    fill(model[2].bias, [1, 1])
    compacted = ez.compact(model, torch.zeros(1, 3))

    state = {name: tensor.tolist() for name, tensor in compacted.model.state_dict().items()}
    assert state == {
        "input_select.indices": [0, 2],
        "0.weight": [[1, 2], [-1, 3]],
        "0.bias": [0.5, -0.5],
        "2.weight": [[1, 2], [3, 0]],
        "2.bias": [1 + 10 * 2, 1 - 4 * 2],
    }
    assert compacted.removed == (
        Removed("0", "outputs", 4, 2),
        Removed("0", "inputs", 3, 2),
        Removed("2", "inputs", 4, 2),
    )
    assert compacted.kept == ()


@dataclass
class Case:
    """A network, its input, and what is expected: shapes of weights, and what `kept` speaks of."""

    model: nn.Module
    example: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    kept: tuple[str, ...] = ()


def conv_pair(between: nn.Module | None = None, *, bias: float, **options: Any) -> Any:
    """Two convolutions; channels 1 and 3 of the first are the bias, and nothing else."""
    model = with_weights(
        nn.Sequential(nn.Conv2d(2, 5, 3), between or nn.ReLU(), nn.Conv2d(5, 3, 3, **options))
    )
    dead(model[0], 1, 3, bias=bias)
    return model


def constants_unpadded() -> Case:
    model = conv_pair(bias=2.0)
    return Case(model, (2, 8, 8), {"0.weight": (3, 2, 3, 3), "2.weight": (3, 3, 3, 3)})


def constants_padded() -> Case:
    model = conv_pair(bias=2.0, padding=1)
    kept = ("2 constant channels of 1 stay: 2",)
    return Case(model, (2, 8, 8), {"0.weight": (5, 2, 3, 3), "2.weight": (3, 5, 3, 3)}, kept)


def zeros_padded() -> Case:
    # ReLU makes a zero of a negative constant
    model = conv_pair(bias=-2.0, padding=1, stride=2, dilation=2)
    return Case(model, (2, 8, 8), {"0.weight": (3, 2, 3, 3), "2.weight": (3, 3, 3, 3)})


def constants_padded_but_unread() -> Case:
    model = conv_pair(bias=2.0, padding=1)
    unread(model[2], 1)
    kept = ("1 constant channels of 1 stay: 2",)
    return Case(model, (2, 8, 8), {"0.weight": (4, 2, 3, 3), "2.weight": (3, 4, 3, 3)}, kept)


def max_pool_padded() -> Case:
    model = conv_pair(nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), bias=-2.0)
    return Case(model, (2, 9, 9), {"0.weight": (3, 2, 3, 3), "2.weight": (3, 3, 3, 3)})


def average_pool_padded() -> Case:
    model = conv_pair(nn.AvgPool2d(3, 2, padding=1), bias=2.0)
    kept = ("2 constant channels of 0 stay: 1",)
    return Case(model, (2, 9, 9), {"0.weight": (5, 2, 3, 3), "2.weight": (3, 5, 3, 3)}, kept)


def average_pool_padded_zeros() -> Case:
    model = conv_pair(nn.AvgPool2d(3, 2, padding=1), bias=0.0)
    return Case(model, (2, 9, 9), {"0.weight": (3, 2, 3, 3), "2.weight": (3, 3, 3, 3)})


def average_pool_padding_not_counted() -> Case:
    model = conv_pair(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), bias=2.0)
    return Case(model, (2, 9, 9), {"0.weight": (3, 2, 3, 3), "2.weight": (3, 3, 3, 3)})


def batch_norm() -> Case:
    model = with_weights(
        nn.Sequential(
            nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.SiLU(), nn.Conv2d(5, 3, 3)
        )
    )
    dead(model[0], 0)
    model[1].weight.data[2] = 0  # a scale of zero makes a constant, too
    return Case(
        model, (2, 8, 8), {"0.weight": (3, 2, 3, 3), "0.bias": (3,), "3.weight": (3, 3, 3, 3)}
    )


def batch_norm_before() -> Case:
    """Before any layer it stays; channel 1 is not read, and a scale of zero makes 2 a constant."""
    model = with_weights(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)))
    unread(model[1], 1)
    model[0].weight.data[2] = 0
    return Case(
        model,
        (4, 6, 6),
        {"0.scale": (2,), "input_select.indices": (2,), "1.weight": (2, 2, 3, 3)},
        ("0 stays a scale and a shift: input",),
    )


def batch_norm_read_twice() -> Case:
    model = with_weights(
        Wired(
            lambda m, x: m.last(F.relu(m.norm(y := m.first(x))) + y),
            first=nn.Conv2d(2, 4, 3),
            norm=nn.BatchNorm2d(4),
            last=nn.Conv2d(4, 2, 3),
        )
    )
    unread(model.last, 1)
    kept = ("norm stays a scale and a shift: first before it is read elsewhere",)
    expected = {"first.weight": (3, 2, 3, 3), "norm.scale": (3,), "last.weight": (2, 3, 3, 3)}
    return Case(model, (2, 7, 7), expected, kept)


def residual() -> Case:
    """Channel 0 is dead in both summands, 1 in one only, 2 is not read after the sum."""
    model = with_weights(
        Wired(
            lambda m, x: m.last(F.relu(m.second(F.relu(y := m.first(x))) + y).mean((2, 3))),
            first=nn.Conv2d(2, 6, 3),
            second=nn.Conv2d(6, 6, 3, padding=1),
            last=nn.Linear(6, 3),
        )
    )
    dead(model.first, 0, bias=-1.0)
    dead(model.second, 0, 1, bias=1.0)
    unread(model.last, 2)
    unread(model.second, 2)
    expected = {"first.weight": (4, 2, 3, 3), "second.weight": (4, 4, 3, 3), "last.weight": (3, 4)}
    return Case(model, (2, 6, 6), expected)


def residual_with_itself_alone() -> Case:
    """Channel 3 of a residual stream is read by the block's channel 3 and by nothing else."""
    model = with_weights(
        Wired(
            lambda m, x: m.last((y := m.first(x)) + torch.tanh(m.block(y))),
            first=nn.Linear(3, 6),
            block=nn.Linear(6, 6),
            last=nn.Linear(6, 2),
        )
    )
    model.block.weight.data[:3, 3] = model.block.weight.data[4:, 3] = 0
    unread(model.last, 3)
    expected = {"first.weight": (5, 3), "block.weight": (5, 5), "last.weight": (2, 5)}
    return Case(model, (3,), expected)


def depthwise() -> Case:
    """Channel 0 has no way in, 1 none through the depthwise kernel, 2 none out."""
    model = with_weights(
        nn.Sequential(
            nn.Conv2d(2, 6, 1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.ReLU(),
            nn.Conv2d(6, 3, 1),
        )
    )
    dead(model[0], 0, bias=-1.0)
    dead(model[2], 1, bias=3.0)
    unread(model[4], 2)
    expected = {"0.weight": (3, 2, 1, 1), "2.weight": (3, 1, 3, 3), "4.weight": (3, 3, 1, 1)}
    return Case(model, (2, 5, 5), expected)


def depthwise_constants_padded() -> Case:
    model = with_weights(
        nn.Sequential(
            nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 3, 1)
        )
    )
    dead(model[0], 0, bias=1.0)
    expected = {"0.weight": (4, 2, 1, 1), "1.weight": (4, 1, 3, 3)}
    return Case(model, (2, 5, 5), expected, ("1 constant channels of 0 stay: 1",))


def grouped() -> Case:
    model = with_weights(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 3, 1))
    )
    dead(model[0], 0)
    unread(model[2], 1)
    expected = {"0.weight": (4, 2, 3, 3), "1.weight": (6, 2, 3, 3), "2.weight": (3, 6, 1, 1)}
    return Case(model, (2, 7, 7), expected, ("1 reads and gives stay: it is a convolution in 2",))


def opaque() -> Case:
    """Nothing leaves around a sum of all units up to each, but behind it a unit does."""
    sums = Own(lambda x: x.cumsum(1))
    model = with_weights(
        nn.Sequential(nn.Linear(3, 5), sums, nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    )
    dead(model[0], 0)
    unread(model[2], 1)
    dead(model[2], 3)
    expected = {"0.weight": (5, 3), "2.weight": (3, 5), "4.weight": (2, 3)}
    return Case(model, (3,), expected, ("read and give stay: they cannot be seen through",))


def softmax() -> Case:
    model = with_weights(nn.Sequential(nn.Linear(3, 5), nn.Softmax(1), nn.Linear(5, 2)))
    dead(model[0], 0)
    unread(model[2], 1)
    expected = {"0.weight": (5, 3), "2.weight": (2, 5)}
    return Case(model, (3,), expected, ("1 reads and gives stay: a softmax",))


def tied() -> Case:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = with_weights(
        nn.Sequential(nn.Linear(3, 4), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(4, 2))
    )
    dead(first, 0)
    unread(first, 1)
    kept = tuple(f"{n} reads and gives stay: a weight of it is shared" for n in (1, 3))
    return Case(model, (3,), {"0.weight": (4, 3), "1.weight": (4, 4), "5.weight": (2, 4)}, kept)


def slopes() -> Case:
    model = with_weights(
        nn.Sequential(nn.Linear(3, 5), nn.PReLU(5), nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 2))
    )
    dead(model[0], 0, bias=-1.0)
    unread(model[4], 1, 2)
    expected = {"0.weight": (4, 3), "1.weight": (4,), "2.weight": (2, 4), "3.slope": (2,)}
    return Case(model, (3,), expected)


def flattened() -> Case:
    """Channel 1 leaves with its four values; channel 2 stays while one of its values is read."""
    model = with_weights(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)))
    unread(model[2], 4, 5, 6, 7, 9, 10, 11)
    return Case(model, (1, 4, 4), {"0.weight": (2, 1, 3, 3), "2.weight": (2, 8)})


def flattened_constants() -> Case:
    model = with_weights(
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 2, bias=False))
    )
    dead(model[0], 2, bias=0.25)
    expected = {"0.weight": (2, 1, 3, 3), "3.weight": (2, 8), "3.bias": (2,)}
    return Case(model, (1, 4, 4), expected)


def cropped() -> Case:
    """Pixels that are cut off are the input's own, and stay there."""
    model = with_weights(Wired(lambda m, x: m.conv(x[:, :, 1:6, 2:]), conv=nn.Conv2d(1, 2, 3)))
    return Case(model, (1, 8, 8), {"conv.weight": (2, 1, 3, 3)})


def concatenated() -> Case:
    """Each branch loses what is not read of it; of the second one unit is a constant."""
    model = with_weights(
        Wired(
            lambda m, x: m.last(torch.cat([F.relu(m.first(x)), m.second(x)], 1)),
            first=nn.Conv2d(2, 4, 3),
            second=nn.Conv2d(2, 5, 3),
            last=nn.Conv2d(9, 3, 1),
        )
    )
    unread(model.last, 1, 4, 8)
    dead(model.second, 2, bias=2.0)
    expected = {
        "first.weight": (3, 2, 3, 3),
        "second.weight": (2, 2, 3, 3),
        "last.weight": (3, 5, 1, 1),
    }
    return Case(model, (2, 6, 6), expected)


def concatenated_and_added() -> Case:
    """A channel of the sum stays while the concatenation, too, is read of it."""
    model = with_weights(
        Wired(
            lambda m, x: m.last(torch.cat([(y := m.first(x)) + m.second(x), y], 1)),
            first=nn.Conv2d(2, 3, 3),
            second=nn.Conv2d(2, 3, 3),
            last=nn.Conv2d(6, 2, 1),
        )
    )
    unread(model.last, 0, 1, 3)  # of the sum 0 and 1, of the first branch 0
    expected = {"first.weight": (2, 2, 3, 3), "second.weight": (2, 2, 3, 3)}
    return Case(model, (2, 6, 6), expected | {"last.weight": (2, 4, 1, 1)})


def gated() -> Case:
    """Squeeze and excite: channel 0 is zero, 1 has a gate of zero, 2 is not read."""
    model = with_weights(
        Wired(
            lambda m, x: m.last(
                (y := m.first(x)) * F.relu(m.excite(F.relu(m.squeeze(F.adaptive_avg_pool2d(y, 1)))))
            ),
            first=nn.Conv2d(2, 6, 3),
            squeeze=nn.Conv2d(6, 3, 1),
            excite=nn.Conv2d(3, 6, 1),
            last=nn.Conv2d(6, 2, 3),
        )
    )
    dead(model.first, 0)
    dead(model.excite, 1, bias=-1.0)
    unread(model.last, 2)
    unread(model.squeeze, 0, 1, 2)
    dead(model.squeeze, 2, bias=-1.0)
    expected = {
        "first.weight": (3, 2, 3, 3),
        "squeeze.weight": (2, 3, 1, 1),
        "excite.weight": (3, 2, 1, 1),
        "last.weight": (2, 3, 3, 3),
    }
    return Case(model, (2, 7, 7), expected)


def sliced() -> Case:
    """Of six channels each slice takes two, one of which is not read; the last two none takes."""
    model = with_weights(
        Wired(
            lambda m, x: m.last(torch.tanh((y := m.first(x))[:, :2]) * y[:, 2:4]),
            first=nn.Linear(3, 6),
            last=nn.Linear(2, 2),
        )
    )
    unread(model.last, 1)
    return Case(model, (3,), {"first.weight": (2, 3), "last.weight": (2, 1)})


def padded_channels() -> Case:
    """A shortcut with channels of zeros: those that the block lacks, too, leave, others stay."""
    model = with_weights(
        Wired(
            lambda m, x: m.last(
                F.pad((y := m.first(x))[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2)) + m.block(y)
            ),
            first=nn.Conv2d(2, 3, 3),
            block=nn.Conv2d(3, 5, 3, stride=2, padding=1),
            last=nn.Conv2d(5, 2, 1),
        )
    )
    dead(model.block, 3, bias=0.0)
    unread(model.last, 0, 4)
    unread(model.block, 0)
    expected = {
        "first.weight": (2, 2, 3, 3),
        "block.weight": (2, 2, 3, 3),
        "last.weight": (2, 2, 1, 1),
    }
    return Case(model, (2, 7, 7), expected)


def padded_on_one_side() -> Case:
    """A constant has a margin of zeros, so that no bias can stand for it; a zero has none."""
    model = with_weights(
        nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 2, 3, 2)
        )
    )
    dead(model[0], 0, bias=2.0)
    dead(model[0], 1, bias=-2.0)
    expected = {"0.weight": (3, 2, 3, 3), "3.weight": (2, 3, 3, 3)}
    return Case(model, (2, 8, 8), expected, ("1 constant channels of 1 stay: 2 pads them",))


def input_channels() -> Case:
    model = with_weights(nn.Sequential(nn.Conv2d(4, 3, 3, padding=1)))
    unread(model[0], 0, 3)
    return Case(model, (4, 5, 5), {"input_select.indices": (2,), "0.weight": (3, 2, 3, 3)})


def input_pixels() -> Case:
    model = with_weights(nn.Sequential(nn.Flatten(), nn.Linear(18, 3)))
    unread(model[1], 0, 5, 17)
    return Case(model, (2, 3, 3), {"0_select.indices": (15,), "1.weight": (3, 15)})


def input_pixels_of_one_channel() -> Case:
    model = with_weights(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    unread(model[1], 0, 5, 11)
    return Case(model, (1, 4, 3), {"0_select.indices": (9,), "1.weight": (3, 9)})


def input_of_one_pixel_a_channel() -> Case:
    model = with_weights(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)))
    unread(model[1], 0, 5)
    return Case(model, (6, 1, 1), {"input_select.indices": (4,), "1.weight": (3, 4)})


def a_layer_of_zeros() -> Case:
    model = with_weights(
        nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    )
    unread(model[2], *range(5))
    expected = {"0.weight": (1, 1), "2.weight": (1, 1), "4.weight": (2, 1)}
    return Case(model, (3,), expected)


def weights_of_their_own() -> Case:
    """Parameters without a layer: the bias that is needed gets a name that is free."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4, 3))
            self.b = nn.Parameter(torch.zeros(4))
            self.v = nn.Parameter(torch.zeros(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(F.linear(x, self.w, self.b)), self.v)

    model = with_weights(Own())
    model.w.data[1] = 0
    return Case(model, (3,), {"w": (3, 3), "b": (3,), "v": (2, 3), "v_bias": (2,)})


CASES = (
    constants_unpadded,
    constants_padded,
    zeros_padded,
    constants_padded_but_unread,
    max_pool_padded,
    average_pool_padded,
    average_pool_padded_zeros,
    average_pool_padding_not_counted,
    batch_norm,
    batch_norm_before,
    batch_norm_read_twice,
    residual,
    residual_with_itself_alone,
    depthwise,
    depthwise_constants_padded,
    grouped,
    opaque,
    softmax,
    tied,
    slopes,
    flattened,
    flattened_constants,
    cropped,
    concatenated,
    concatenated_and_added,
    gated,
    sliced,
    padded_channels,
    padded_on_one_side,
    input_channels,
    input_pixels,
    input_pixels_of_one_channel,
    input_of_one_pixel_a_channel,
    a_layer_of_zeros,
    weights_of_their_own,
)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_exactly_what_cannot_matter_leaves(make):
    case = make()
    x = inputs(case.example)
    compacted = ez.compact(case.model, x[:1])
    close(compacted.model(x), case.model(x))
    found = shapes(compacted.model)
    assert {name: found.get(name) for name in case.shapes} == case.shapes
    assert len(compacted.kept) == len(case.kept), compacted.kept
    for text, part in zip(compacted.kept, case.kept, strict=True):
        assert part in text
    again = ez.compact(compacted.model)
    assert (again.removed, len(again.kept)) == ((), len(compacted.kept))
    close(again.model(x), case.model(x))


# Random networks, and what matters found by trying


def values(network: Network, x: Tensor, changed: tuple[str, int] | None = None) -> dict:
    """Every node's result; one channel of one node is replaced by noise, if so asked."""
    found = {}
    for node in network.graph.nodes:
        weights = {role: network.weight(name) for role, name in node.weights.items()}
        value = node.op.run([found[n] for n in node.inputs], weights) if node.inputs else x
        if changed is not None and changed[0] == node.name:
            value = value.clone()
            value[:, changed[1]] = torch.randn_like(value[:, 0])
        found[node.name] = value
    return found


@torch.no_grad()
def alive(network: Network, name: str, x: Tensor) -> list[int]:
    """Channels of a node that vary with the input, and whose change changes the output."""
    plain, output = values(network, x), network.graph.nodes[-1].name
    vary = (plain[name] - plain[name][:1]).abs().flatten(2 - (plain[name].ndim == 2)).amax(0)
    vary = vary.view(plain[name].shape[1], -1).amax(1) > 1e-12
    return [
        channel
        for channel in range(plain[name].shape[1])
        if vary[channel]
        and not torch.equal(values(network, x, (name, channel))[output], plain[output])
    ]


def sparse(model: Any, seed: int, layers: tuple[type, ...] = (nn.Linear, nn.Conv2d)) -> Any:
    """Of every layer, most weights, some rows and some columns are zero."""
    model = with_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, layers):
            w = layer.weight.data
            w *= torch.rand(w.shape, generator=generator) < 0.4
            rows = torch.rand(w.shape[0], generator=generator) < 0.75
            columns = torch.rand(w.shape[1], generator=generator) < 0.75
            w *= rows.view(-1, *[1] * (w.ndim - 1)) & columns.view(1, -1, *[1] * (w.ndim - 2))
    return model


def seeds(*, quick: int, slow: int) -> list[Any]:
    """The first few of them are tried always, the others by `pytest -m slow`."""
    more = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, quick + slow)]
    return [*range(quick), *more]


def random_mlp(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    bias = seed % 2 == 0
    layers = [nn.Linear(6, 9, bias=bias), nn.Tanh(), nn.Linear(9, 8), nn.BatchNorm1d(8)]
    layers += [nn.Sigmoid(), nn.Linear(8, 7, bias=bias), nn.Tanh(), nn.Linear(7, 3)]
    return nn.Sequential(*layers), (6,)


def random_convnet(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    stride = 1 + seed % 2
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=seed % 3 == 0),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Conv2d(6, 5, 2, stride=stride),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(5 * (4 if stride == 2 else 9), 6),
        nn.Tanh(),
        nn.Linear(6, 2),
    ), (3, 10, 10)


@pytest.mark.parametrize("seed", seeds(quick=3, slow=12))
@pytest.mark.parametrize("make", [random_mlp, random_convnet], ids=lambda make: make.__name__)
def test_what_leaves_is_what_makes_no_difference_when_tried(make, seed):
    plain, example = make(seed)
    model, x = sparse(plain, seed), inputs(example)
    traced = ez.trace(model, x[:1])
    compacted = ez.compact(traced)
    close(compacted.model(x), model(x))
    for node in traced.graph.nodes:
        if node.op.kind not in ("linear", "conv"):
            continue
        source = node.inputs[0]
        if traced.graph.nodes[0].name != source and len(traced.shapes[source]) == 1:
            before = next(n for n in traced.graph.nodes if n.name == source)
            if before.op.kind == "flatten":  # channels leave, with all of their values
                (channel,) = before.inputs
                size = traced.shapes[channel][1] * traced.shapes[channel][2]
                expected = max(len(alive(traced, channel, x)), 1) * size
                assert compacted.model.weight(node.weights["weight"]).shape[1] == expected
                continue
        expected = max(len(alive(traced, source, x)), 1)
        assert compacted.model.weight(node.weights["weight"]).shape[1] == expected, node.name
    assert ez.compact(compacted.model).removed == ()


def random_mixture(seed: int) -> Any:
    """Padding, residual connections, depthwise kernels, slopes, pools of every kind."""
    pools = [
        nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
        nn.MaxPool2d(3, 2, padding=1),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.MaxPool2d(2, ceil_mode=True),
    ]

    def wiring(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.norm(m.first(x)))
        y = y + m.second(m.slopes(y))
        y = m.pool(F.hardswish(m.deep(y)))
        y = F.relu(m.third(y) + y)
        flat = torch.flatten(y, 1)
        return m.last(F.relu(m.norm2(m.dense(flat))) + m.skip(torch.flatten(x, 1)))

    size = {0: 5, 1: 5, 2: 4, 3: 5}[seed % 4]
    return Wired(
        wiring,
        first=nn.Conv2d(3, 6, 3, padding=1, bias=seed % 2 == 0),
        norm=nn.BatchNorm2d(6),
        second=nn.Conv2d(6, 6, 3, padding=seed % 3, dilation=max(seed % 3, 1))
        if seed % 3
        else nn.Conv2d(6, 6, 1),
        slopes=nn.PReLU(6 if seed % 2 else 1),
        deep=nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=seed % 2 == 1),
        pool=pools[seed % 4],
        third=nn.Conv2d(6, 6, 1),
        dense=nn.Linear(6 * size * size, 8, bias=False),
        norm2=nn.BatchNorm1d(8),
        skip=nn.Linear(243, 8),
        last=nn.Linear(8, 3),
    )


@pytest.mark.parametrize("seed", seeds(quick=4, slow=24))
def test_the_output_of_any_mixture_stays(seed):
    model, x = sparse(random_mixture(seed), seed), inputs((3, 9, 9), 4)
    compacted = ez.compact(model, x[:1])
    close(compacted.model(x), model(x))
    count = sum(w.numel() for w in model.parameters())
    assert sum(w.numel() for w in compacted.model.parameters()) < count
    kinds = [node.op.kind for node in compacted.model.graph.nodes]
    assert "affine" not in kinds
    assert ez.compact(compacted.model).removed == ()


# The networks that are pruned, and what must not change


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("make", [lenet_300_100, lenet_5_caffe], ids=lambda make: make.__name__)
def test_pruned_lenets_become_small(make, scope):
    torch.manual_seed(0)
    model, x = make().double(), inputs((1, 28, 28))
    # as if trained: the weights of some units of every layer are small
    for w in model.parameters():
        if w.ndim > 1:
            w.data *= torch.rand(len(w)).view(-1, *[1] * (w.ndim - 1)) ** 2
    ez.prune(model, sparsity=0.985, scope=scope)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compacted = ez.compact(model, x[:1])
    close(compacted.model(x), model(x))
    smaller = shapes(compacted.model)
    assert set(state) <= set(smaller)
    for name in state:
        assert all(a <= b for a, b in zip(smaller[name], state[name].shape, strict=True))
    numel = sum(w.numel() for w in compacted.model.parameters())
    assert numel < 0.5 * sum(w.numel() for w in model.parameters())
    # every unit that stays is read, and reads something or is a constant of a padded layer
    last = "fc3" if make is lenet_300_100 else "fc2"
    assert smaller[f"{last}.weight"][0] == 10
    assert (compacted.model.weight(f"{last}.weight") != 0).any(0).all()
    assert ez.compact(compacted.model).removed == ()


def test_the_given_network_is_not_changed():
    model = sparse(random_mixture(0), 0).train()
    before, state = anatomy(model), {k: v.clone() for k, v in model.state_dict().items()}
    compacted = ez.compact(model, inputs((3, 9, 9), 1))
    for w in compacted.model.parameters():
        w.data.fill_(7.0)
    assert anatomy(model) == before
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_traced_network_is_not_changed_either():
    model, x = sparse(random_mixture(1), 1), inputs((3, 9, 9), 2)
    traced = ez.trace(model, x)
    graph, state = traced.graph, {k: v.clone() for k, v in traced.state_dict().items()}
    ez.compact(traced)
    assert traced.graph is graph
    assert all(torch.equal(v, state[k]) for k, v in traced.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_gradients_preprocessing_and_classes_stay(dtype):
    model = constants_unpadded().model.to(dtype)
    next(iter(model.parameters())).requires_grad_(False)
    preprocess = ez.Preprocess(0.5, 1.0)
    traced = ez.trace(
        model, torch.zeros(1, 2, 8, 8, dtype=dtype), preprocess=preprocess, classes=("a", "b", "c")
    )
    smaller = ez.compact(traced).model
    assert smaller.graph.preprocess == preprocess
    assert smaller.graph.classes == ("a", "b", "c")
    assert {w.dtype for w in smaller.parameters()} == {dtype}
    assert {n: w.requires_grad for n, w in smaller.named_parameters()} == {
        n: w.requires_grad for n, w in model.named_parameters()
    }
    assert not smaller.training


def test_a_smaller_network_can_be_trained_pruned_and_compacted_again():
    """A selection of the input that has become too large is narrowed, not followed by another."""
    model, x = input_pixels().model, inputs((2, 3, 3))
    smaller = ez.compact(model, x).model
    fill(smaller.weight("1.weight")[:, 2:4], torch.zeros(3, 2))
    again = ez.compact(smaller).model
    close(again(x), smaller(x))
    # of 1, 2, 3, 4, 6, ... the third and the fourth have left
    assert again.weight("0_select.indices").tolist() == [1, 2, 6, 7, *range(8, 17)]
    assert [n.op.kind for n in again.graph.nodes] == ["input", "flatten", "select", "linear"]


def test_what_is_left_is_data():
    smaller = ez.compact(sparse(random_mixture(2), 2), inputs((3, 9, 9), 1)).model
    read = type(smaller.graph).from_json(smaller.graph.to_json())
    x = inputs((3, 9, 9))
    close(Network(read, smaller.state_dict())(x), smaller(x))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(bad):
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight.data[1, 1] = bad
    with pytest.raises(ez.InputError, match=r"2\.weight \(2, 4\) holds NaN or inf"):
        ez.compact(model, torch.zeros(1, 3))


def test_a_network_that_was_not_traced_needs_an_example():
    with pytest.raises(ez.InputError, match="needs an example"):
        ez.compact(nn.Linear(3, 2))


# A tolerance


def barely_alive() -> Any:
    """A layer of which two units of four are read by weights of 1e-30 and 1e-8 alone."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 0.5, 1e-30, 0.0], [0.25, 2.0, 0.0, -1e-8]]))
    return model


@pytest.mark.parametrize(("tolerance", "units"), [(0.0, 4), (1e-20, 3), (1e-7, 2), (0.6, 1)])
def test_a_tolerance_says_which_weights_count_as_zeros(tolerance, units):
    model = barely_alive()
    before = {name: w.clone() for name, w in model.state_dict().items()}
    small = ez.compact(model, torch.zeros(1, 3), tolerance=tolerance).model
    assert len(small.weight("0.weight")) == units
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    if tolerance < 0.1:
        x = torch.randn(9, 3)
        torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan"), True, "1e-6"])
def test_tolerances_that_are_none(tolerance):
    with pytest.raises(ez.InputError, match=r"tolerance is .*; expected a number in \[0, 1\)"):
        ez.compact(barely_alive(), torch.zeros(1, 3), tolerance=tolerance)


# Numbers that folding would make too large


LARGEST = {
    torch.float16: 65_504.0,
    torch.bfloat16: 3.3895314e38,
    torch.float32: 3.4028235e38,
    torch.float64: 1.7976931348623157e308,
}


def normalized(weight: float, scale: float, dtype: torch.dtype) -> nn.Sequential:
    """A layer without a bias, all of its weights the same, and a normalization of this scale."""
    model: Any = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2, eps=0.0)).to(dtype)
    nn.init.constant_(model[0].weight, weight)
    nn.init.constant_(model[1].weight, scale)
    return model.eval()


@pytest.mark.parametrize("dtype", LARGEST)
def test_a_normalization_that_would_make_weights_infinite_stays(dtype):
    root = LARGEST[dtype] ** 0.5
    model = normalized(2 * root, root, dtype)
    compacted = ez.compact(model, torch.zeros(1, 3, dtype=dtype))
    assert compacted.removed == ()
    assert compacted.kept == (
        "1 stays a scale and a shift: in 0 before it the numbers would be too large",
    )
    x = torch.tensor([[1.0, -1.0, 0.25]], dtype=dtype) / root
    assert model(x).isfinite().all()
    torch.testing.assert_close(compacted.model(x), model(x))
    assert ez.compact(normalized(root / 2, root, dtype), torch.zeros(1, 3, dtype=dtype)).removed


def test_a_normalization_that_would_make_a_bias_infinite_stays():
    model: Any = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    fill(model[0].bias, [1e25, 1])
    fill(model[1].weight, [1e20, 1])
    (reason,) = ez.compact(model, torch.zeros(1, 3)).kept
    assert "the numbers would be too large" in reason


def test_constants_that_would_make_a_bias_infinite_stay():
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).half()
    fill(model[0].weight, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    fill(model[0].bias, [300, 0, 0, 0])
    fill(model[2].weight, [[300, -300, 0, 1], [1, 1, 1, 1]])
    fill(model[2].bias, [0, 0])
    x = torch.tensor([[290.0, 1.0, 2.0]]).half()  # 300 * 300 - 300 * 290 + 2 is finite
    compacted = ez.compact(model, x)
    assert compacted.kept == (
        "1 constant channels of 1 stay: that of 2 would be too large, so no bias can stand for "
        "them",
    )
    assert torch.equal(compacted.model(x), model(x))
    fill(model[0].bias, [200, 0, 0, 0])
    assert ez.compact(model, x).removed[0] == Removed("0", "outputs", 4, 3)


def test_a_constant_that_the_type_does_not_hold_is_not_known():
    model: Any = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 1), nn.Linear(1, 2))
    for layer, weight, bias in zip(model, (0.0, 1e20, 1e-30), (1e25, 0.0, 0.0), strict=True):
        nn.init.constant_(layer.weight, weight)
        nn.init.constant_(layer.bias, bias)
    x = torch.randn(5, 3)
    assert model(x).isinf().all()  # though 1e25 * 1e20 * 1e-30 would be finite
    assert ez.compact(model, x).model(x).isinf().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_stay_what_they_are(dtype, tmp_path):
    model: Any = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4)).to(dtype)
    bits = torch.arange(54, dtype=torch.int16).mul(590).view(dtype)  # subnormal ones, too
    assert bits.isfinite().all()
    model[0].weight.data.copy_(bits.view(6, 9))
    compacted = ez.compact(model, torch.zeros(1, 9, dtype=dtype)).model
    ez.pack(compacted, tmp_path / "x.ellz")
    loaded = ez.load(tmp_path / "x.ellz")
    for name, weight in model.state_dict().items():
        for other in (compacted, loaded):
            copy = other.state_dict()[name]
            assert copy.dtype == dtype
            assert torch.equal(copy.view(torch.int16), (weight + 0).view(torch.int16))
