import numpy as np
import pytest
import torch
from torch import nn

from ellzero.networks.resnet import resnet_8, resnet_20, resnet_50
from network_cases import (
    assert_close,
    convolved,
    linear,
    lively,
    normalized,
    parameter_count,
    relu,
    shapes_of,
    state_of,
    statistics_count,
)


def test_resnet_8_has_the_layers_of_the_original():
    network = resnet_8()
    assert shapes_of(network) == {
        "conv1": (16, 3, 3, 3),
        "stage1.0.conv1": (16, 16, 3, 3),
        "stage1.0.conv2": (16, 16, 3, 3),
        "stage2.0.conv1": (32, 16, 3, 3),
        "stage2.0.conv2": (32, 32, 3, 3),
        "stage2.0.shortcut": (32, 16, 1, 1),
        "stage3.0.conv1": (64, 32, 3, 3),
        "stage3.0.conv2": (64, 64, 3, 3),
        "stage3.0.shortcut": (64, 32, 1, 1),
        "fc": (10, 64),
    }
    # weights 432 + 4608 + 13824 + 512 + 55296 + 2048 + 640, biases 32 + 64 + 10, norms 2 * 240
    assert parameter_count(network) == 77_946
    # Keras' count of the original: a bias for each channel of each norm, and the running statistics
    assert 77_946 + 240 + statistics_count(network) == 78_666


def test_resnet_20_has_the_layers_of_the_paper():
    shapes, inputs = {"conv1": (16, 3, 3, 3)}, 16
    for stage, outputs in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            shapes[f"stage{stage}.{block}.conv1"] = (outputs, inputs, 3, 3)
            shapes[f"stage{stage}.{block}.conv2"] = (outputs, outputs, 3, 3)
            inputs = outputs
    assert shapes_of(resnet_20()) == {**shapes, "fc": (10, 64)}
    # 9 * (48 + 6*16^2 + 16*32 + 5*32^2 + 32*64 + 5*64^2) + 640 weights, 2 * 688 of norms, 10 biases
    # (table 6 of the paper: 0.27 million)
    assert parameter_count(resnet_20()) == 269_722


def block_by_hand(x, state, block, *, stride, eps, margins, shortcut):
    y = convolved(x, state, f"{block}.conv1", stride=stride, margins=margins)
    y = relu(normalized(y, state, f"{block}.norm1", eps))
    y = normalized(convolved(y, state, f"{block}.conv2"), state, f"{block}.norm2", eps)
    return relu(y + shortcut)


def test_resnet_8_computes_what_the_original_does():
    torch.manual_seed(0)
    network, images = lively(resnet_8()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state, keras = state_of(network), {"eps": 1e-3, "margins": None}
    x = relu(normalized(convolved(images.numpy(), state, "conv1"), state, "norm1", 1e-3))
    x = block_by_hand(x, state, "stage1.0", stride=1, shortcut=x, **keras)
    for block in ("stage2.0", "stage3.0"):
        shortcut = convolved(x, state, f"{block}.shortcut", stride=2)
        x = block_by_hand(x, state, block, stride=2, shortcut=shortcut, **keras)
    assert x.shape == (2, 64, 8, 8)
    assert_close(network(images), linear(x.mean((2, 3)), state, "fc"))


def test_resnet_20_computes_what_the_paper_describes():
    torch.manual_seed(0)
    network, images = lively(resnet_20()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state, torch_like = state_of(network), {"eps": 1e-5, "margins": [(1, 1), (1, 1)]}
    x = relu(normalized(convolved(images.numpy(), state, "conv1"), state, "norm1", 1e-5))
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            halves, shortcut = block == 0 and stage > 1, x
            if halves:  # option A: every second place, and zeros for the channels that are new
                shortcut = np.concatenate([x[..., ::2, ::2], np.zeros_like(x[..., ::2, ::2])], 1)
            name, stride = f"stage{stage}.{block}", 2 if halves else 1
            x = block_by_hand(x, state, name, stride=stride, shortcut=shortcut, **torch_like)
    assert x.shape == (2, 64, 8, 8)
    assert_close(network(images), linear(x.mean((2, 3)), state, "fc"))


def test_resnet_20_starts_he_normal():
    torch.manual_seed(0)
    network = resnet_20()
    for layer, fan_in in (("stage3.1.conv2", 9 * 64), ("stage3.0.conv1", 9 * 32)):
        weight = network.get_submodule(layer).get_parameter("weight")
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
        assert weight.abs().max().item() > 3 * weight.std().item()  # not cut off
    assert not network.fc.bias.any()


def largest_weight(network: nn.Module, layer: str) -> float:
    return network.get_submodule(layer).get_parameter("weight").abs().max().item()


def test_resnet_8_and_the_convolutions_of_resnet_50_start_he_normal_and_cut_off():
    torch.manual_seed(0)
    small, large = resnet_8(), resnet_50(width=8)
    for network, layer, fan_in in (
        (small, "stage3.0.conv2", 9 * 64),
        (small, "fc", 64),
        (large, "stage4.1.conv2", 9 * 64),
    ):
        cut = 2 * (2 / fan_in) ** 0.5 / 0.8796
        assert 0.9 * cut < largest_weight(network, layer) <= cut
    glorot = (6 / (256 + 256)) ** 0.5
    assert 0.9 * glorot < largest_weight(large, "fc1") <= glorot


def test_resnet_50_has_the_layers_of_keras_and_of_the_paper():
    with torch.device("meta"):
        network = resnet_50()
    shapes, inputs = {"conv1": (64, 3, 7, 7)}, 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], 1):
        for block in range(blocks):
            name, outputs = f"stage{stage}.{block}", 4 * width
            shapes[f"{name}.conv1"] = (width, inputs, 1, 1)
            shapes[f"{name}.conv2"] = (width, width, 3, 3)
            shapes[f"{name}.conv3"] = (outputs, width, 1, 1)
            if block == 0:
                shapes[f"{name}.shortcut.conv"] = (outputs, inputs, 1, 1)
            inputs = outputs
    assert shapes_of(network) == {**shapes, "fc1": (256, 2048), "fc2": (100, 256)}
    head = 2048 * 256 + 256 + 2 * 256 + 256 * 100 + 100
    assert parameter_count(network) == 24_085_348
    # Keras' count without top, with running statistics, and the head of the paper's network
    assert parameter_count(network) + statistics_count(network) == 23_587_712 + head + 2 * 256


def test_resnet_50_has_the_batch_norms_of_keras():
    norms = [
        (type(module), module.eps, module.momentum)
        for module in resnet_50(width=2).modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    # one after each of the 53 convolutions, the last after the hidden layer
    assert norms == [(nn.BatchNorm2d, 1.001e-5, 0.01)] * 53 + [(nn.BatchNorm1d, 1e-3, 0.01)]


def enlarged(x, factor):
    """Bilinear, with half-pixel centres: rows, then columns, each between its two neighbours."""
    for axis in (2, 3):
        size = x.shape[axis]
        places = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
        below = np.minimum(places.astype(int), size - 2)
        part = (places - below).reshape(-1, *[1] * (3 - axis))
        x = x.take(below, axis) * (1 - part) + x.take(below + 1, axis) * part
    return x


def bottleneck_by_hand(x, state, block, stride):
    def conv_norm(x, conv, norm, stride=1):
        y = convolved(x, state, f"{block}.{conv}", stride=stride)
        return normalized(y, state, f"{block}.{norm}", 1.001e-5)

    shortcut = x
    if f"{block}.shortcut.conv.weight" in state:
        shortcut = conv_norm(x, "shortcut.conv", "shortcut.norm", stride)
    y = relu(conv_norm(x, "conv1", "norm1", stride))
    y = relu(conv_norm(y, "conv2", "norm2"))
    return relu(conv_norm(y, "conv3", "norm3") + shortcut)


def test_resnet_50_computes_what_keras_and_the_paper_describe():
    torch.manual_seed(0)
    network = lively(resnet_50(width=2, upsample=3))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state = state_of(network)
    x = enlarged(images.numpy(), 3)
    x = convolved(x, state, "conv1", stride=2, margins=[(3, 3), (3, 3)])
    x = relu(normalized(x, state, "norm1", 1.001e-5))
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])  # of zeros, as Keras
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    x = windows[:, :, ::2, ::2].max((4, 5))
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 1 else 1
            x = bottleneck_by_hand(x, state, f"stage{stage}.{block}", stride)
    assert x.shape == (2, 64, 3, 3)
    hidden = normalized(relu(linear(x.mean((2, 3)), state, "fc1")), state, "norm2", 1e-3)
    assert_close(network(images), linear(hidden, state, "fc2"))


def test_resnet_50_enlarges_to_224_by_itself():
    network, sizes = resnet_50(width=2).eval(), []
    network.conv1.register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].shape)
    )
    network(torch.randn(1, 3, 32, 32))
    assert sizes == [(1, 3, 224, 224)]


def test_resnet_50_drops_a_quarter_in_training_alone():
    torch.manual_seed(0)
    network, x = resnet_50(width=2, upsample=1).eval(), torch.randn(4, 3, 32, 32)
    assert network(x).equal(network(x))
    network.dropout.train()
    assert not network(x).equal(network(x))
    dropped = network.dropout(torch.ones(100_000)) == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
