import torch

from ellzero.networks.vgg import vgg_small
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
)


def test_has_the_layers_of_its_description():
    assert shapes_of(vgg_small(width=8, channels=3, classes=7)) == {
        "blocks.0.conv1": (8, 3, 3, 3),
        "blocks.0.conv2": (8, 8, 3, 3),
        "blocks.1.conv1": (16, 8, 3, 3),
        "blocks.1.conv2": (16, 16, 3, 3),
        "blocks.2.conv1": (32, 16, 3, 3),
        "blocks.2.conv2": (32, 32, 3, 3),
        "fc": (7, 32 * 3 * 3),
    }
    # 9 * (16 + 16^2 + 16*32 + 32^2 + 32*64 + 64^2) + 5760 weights, 2 * 224 of norms, 10 biases
    assert parameter_count(vgg_small()) == 77_786
    # 9 * (8 + 8^2 + 8*16 + 16^2 + 16*32 + 32^2) + 2880 weights, 2 * 112 of norms, 10 biases
    assert parameter_count(vgg_small(width=8)) == 21_042


def test_computes_what_its_description_says():
    torch.manual_seed(0)
    network, images = lively(vgg_small(width=4)), torch.randn(2, 1, 28, 28, dtype=torch.float64)
    state, x = state_of(network), images.numpy()
    for block, size in ((0, 14), (1, 7), (2, 3)):
        for layer in (1, 2):
            x = convolved(x, state, f"blocks.{block}.conv{layer}")
            x = relu(normalized(x, state, f"blocks.{block}.norm{layer}", 1e-5))
        x = x[:, :, : 2 * size, : 2 * size].reshape(*x.shape[:2], size, 2, size, 2).max((3, 5))
    assert_close(network(images), linear(x.reshape(2, -1), state, "fc"))
