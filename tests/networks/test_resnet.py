import torch
from torch import nn

from ellzero.networks.resnet import resnet_8
from network_cases import assert_close, convolved, linear, lively, normalized, relu, state_of


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    weights = ((name, p) for name, p in network.named_parameters() if p.dim() > 1)
    return {name.removesuffix(".weight"): tuple(p.shape) for name, p in weights}


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
    assert sum(p.numel() for p in network.parameters()) == 77_946
    # Keras' count of the original: the biases of 240 channels, their running means and variances
    assert 77_946 + 240 + 2 * 240 == 78_666


def block_by_hand(x, state, block, stride, eps, shortcut):
    y = convolved(x, state[f"{block}.conv1.weight"], stride=stride)
    y = relu(normalized(y, state, f"{block}.norm1", eps))
    y = normalized(convolved(y, state[f"{block}.conv2.weight"]), state, f"{block}.norm2", eps)
    return relu(y + shortcut)


def test_resnet_8_computes_what_the_original_does():
    torch.manual_seed(0)
    network, images = lively(resnet_8()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for module in network.modules():  # biases start at 0
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    state = state_of(network)
    x = relu(normalized(convolved(images.numpy(), state["conv1.weight"]), state, "norm1", 1e-3))
    x = block_by_hand(x, state, "stage1.0", 1, 1e-3, x)
    for block in ("stage2.0", "stage3.0"):
        weight, bias = state[f"{block}.shortcut.weight"], state[f"{block}.shortcut.bias"]
        shortcut = convolved(x, weight, stride=2) + bias.reshape(-1, 1, 1)
        x = block_by_hand(x, state, block, 2, 1e-3, shortcut)
    assert x.shape == (2, 64, 8, 8)
    assert_close(network(images), linear(x.mean((2, 3)), state, "fc"))
