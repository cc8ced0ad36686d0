"""Compaction around what changes places: transposed convolutions, norms, shuffles, upsampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from activation_cases import Own


def random(*layers: nn.Module) -> Any:
    torch.manual_seed(0)
    model: Any = nn.Sequential(*layers).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    for norm in (module for module in model if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean = torch.randn(norm.num_features, dtype=torch.float64)
        norm.running_var = torch.rand(norm.num_features, dtype=torch.float64) + 0.5
    return model


@torch.no_grad()
def dead(layer: Any, row: int, bias: float = 0.0) -> None:
    """An output that is its bias alone."""
    is_transposed = isinstance(layer, nn.ConvTranspose2d)
    (layer.weight[:, row] if is_transposed else layer.weight[row]).zero_()
    layer.bias[row] = bias


@torch.no_grad()
def unread(layer: Any, column: int) -> None:
    """An input that no output reads."""
    is_transposed = isinstance(layer, nn.ConvTranspose2d)
    (layer.weight[column] if is_transposed else layer.weight[:, column]).zero_()


def compacted(model: nn.Module, *shape: int) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
    """Shapes of the weights that are left, of an output that is the same, and what is kept."""
    x = torch.randn(3, *shape, dtype=torch.float64)
    result = ez.compact(model, x)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-10, atol=1e-10)
    again = ez.compact(result.model)
    assert again.removed == ()
    weights = {n: tuple(w.shape) for n, w in result.model.named_parameters() if w.ndim > 1}
    return weights, result.kept


def test_channels_leave_on_both_sides_of_a_transposed_convolution():
    first, transposed, last = (
        nn.Conv2d(2, 5, 1),
        nn.ConvTranspose2d(5, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 3, 1),
    )
    model = random(first, nn.ReLU(), transposed, nn.ReLU(), last)
    dead(first, 0, bias=-1.0)
    unread(transposed, 1)
    dead(transposed, 2, bias=2.0)
    unread(last, 3)
    weights, kept = compacted(model, 2, 4, 5)
    assert weights == {
        "0.weight": (3, 2, 1, 1),
        "2.weight": (3, 2, 3, 3),
        "4.weight": (3, 2, 1, 1),
    }
    assert kept == ()


def test_a_constant_before_a_transposed_convolution_stays():
    """At the margin fewer entries of the kernel meet it, so no bias can stand for it."""
    first, transposed = nn.Conv2d(2, 5, 1), nn.ConvTranspose2d(5, 4, 3)
    model = random(first, transposed)
    dead(first, 0, bias=1.0)
    weights, kept = compacted(model, 2, 4, 5)
    assert weights["0.weight"] == (5, 2, 1, 1)
    assert len(kept) == 1
    assert "1 constant channels of 0 stay: 1" in kept[0]


@pytest.mark.parametrize("groups", [1, 4])
def test_a_batch_normalization_becomes_part_of_a_transposed_convolution(groups):
    model = random(nn.ConvTranspose2d(4, 4, 3, stride=2, groups=groups), nn.BatchNorm2d(4))
    x = torch.randn(3, 4, 4, 5, dtype=torch.float64)
    result = ez.compact(model, x)
    assert [node.op.kind for node in result.model.graph.nodes] == ["input", "conv_transposed"]
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_batch_normalization_behind_groups_of_a_transposed_convolution_stays():
    model = random(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6))
    _, kept = compacted(model, 4, 4, 5)
    assert kept == ("1 stays a scale and a shift: what it scales is no row of 0 before it",)


def test_dead_channels_leave_around_a_depthwise_transposed_convolution():
    first, last = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 3, 1)
    model = random(first, nn.ConvTranspose2d(5, 5, 3, groups=5, bias=False), last)
    dead(first, 0)
    unread(last, 3)
    weights, _ = compacted(model, 2, 4, 5)
    assert weights["1.weight"] == (3, 1, 3, 3)


def test_nothing_leaves_around_a_group_norm():
    first, last = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1)
    model = random(first, nn.GroupNorm(2, 6), last)
    dead(first, 0)
    unread(last, 3)
    weights, kept = compacted(model, 2, 4, 5)
    assert weights == {"0.weight": (6, 2, 1, 1), "2.weight": (3, 6, 1, 1)}
    (reason,) = kept
    assert reason.endswith(
        "1 reads and gives stay: a group norm depends on every channel of a group"
    )


def test_channels_leave_around_an_instance_norm():
    first, norm, last = nn.Conv2d(2, 5, 1), nn.InstanceNorm2d(5, affine=True), nn.Conv2d(5, 3, 3)
    model = random(first, norm, last)
    dead(first, 0, bias=4.0)  # behind the norm it is the shift
    norm.weight.data[1] = 0  # so it is here, whatever comes in
    unread(last, 2)
    weights, kept = compacted(model, 2, 4, 5)
    assert weights == {"0.weight": (2, 2, 1, 1), "2.weight": (3, 2, 3, 3)}
    assert kept == ()


def test_channels_leave_around_an_upsampling():
    first, last = nn.Conv2d(2, 5, 1), nn.Conv2d(5, 3, 3)
    model = random(first, nn.Upsample(scale_factor=2, mode="bilinear"), last)
    dead(first, 0, bias=1.5)
    unread(last, 3)
    weights, _ = compacted(model, 2, 4, 5)
    assert weights["0.weight"] == (3, 2, 1, 1)


def test_channels_leave_together_around_a_pixel_shuffle():
    first, last = nn.Conv2d(2, 12, 1), nn.Conv2d(3, 2, 1)
    model = random(first, nn.PixelShuffle(2), last)
    unread(last, 1)  # four channels of the first
    dead(first, 0)  # one of four: it stays with the others
    weights, _ = compacted(model, 2, 4, 5)
    assert weights == {"0.weight": (8, 2, 1, 1), "2.weight": (2, 2, 1, 1)}


def test_channels_leave_around_a_pixel_unshuffle():
    first, last = nn.Conv2d(2, 3, 1), nn.Conv2d(12, 2, 1)
    model = random(first, nn.PixelUnshuffle(2), last)
    for channel in range(4, 8):
        unread(last, channel)
    weights, _ = compacted(model, 2, 4, 6)
    assert weights == {"0.weight": (2, 2, 1, 1), "2.weight": (2, 8, 1, 1)}


def test_what_becomes_infinite_is_no_constant():
    """The logarithm of a dead unit: what the sigmoid makes of it would be known again, 0."""
    first = nn.Linear(2, 4)
    model = random(first, Own(lambda x: x.abs().log()), nn.Sigmoid(), nn.Linear(4, 3))
    dead(first, 0)
    weights, _ = compacted(model, 2)
    assert weights == {"0.weight": (4, 2), "3.weight": (3, 4)}
