import torch

from ellzero.networks.mobilenet import mobilenet_v1_025
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

# table 1 of the paper, a quarter as wide, for 96 x 96: stride, channels and size after each block
BLOCKS = [
    (1, 16, 48),
    (2, 32, 24),
    (1, 32, 24),
    (2, 64, 12),
    (1, 64, 12),
    (2, 128, 6),
    (1, 128, 6),
    (1, 128, 6),
    (1, 128, 6),
    (1, 128, 6),
    (1, 128, 6),
    (2, 256, 3),
    (1, 256, 3),
]


def test_has_the_layers_of_the_original():
    network, shapes, inputs = mobilenet_v1_025(), {"conv1": (8, 3, 3, 3)}, 8
    for number, (_, outputs, _) in enumerate(BLOCKS):
        shapes[f"blocks.{number}.depthwise"] = (inputs, 1, 3, 3)
        shapes[f"blocks.{number}.pointwise"] = (outputs, inputs, 1, 1)
        inputs = outputs
    assert shapes_of(network) == {**shapes, "fc": (2, 256)}
    # 216 + 9 * 1240 + 196224 + 512 weights, 2 * 2736 of norms, 2 biases
    assert parameter_count(network) == 213_586
    # Keras' count of the original: a bias for each channel of each norm, and the running statistics
    assert 213_586 + 2736 + statistics_count(network) == 221_794


def test_computes_what_the_original_does():
    torch.manual_seed(0)
    network, x = lively(mobilenet_v1_025()), torch.randn(1, 3, 96, 96, dtype=torch.float64)
    state = state_of(network)
    y = relu(normalized(convolved(x.numpy(), state, "conv1", stride=2), state, "norm1", 1e-3))
    for number, (stride, outputs, size) in enumerate(BLOCKS):
        block = f"blocks.{number}"
        y = convolved(y, state, f"{block}.depthwise", stride=stride)
        y = relu(normalized(y, state, f"{block}.norm1", 1e-3))
        y = convolved(y, state, f"{block}.pointwise")
        y = relu(normalized(y, state, f"{block}.norm2", 1e-3))
        assert y.shape == (1, outputs, size, size)
    assert_close(network(x), linear(y.mean((2, 3)), state, "fc"))


def test_convolutions_start_he_normal_and_the_linear_layer_glorot_uniform():
    torch.manual_seed(0)
    network = mobilenet_v1_025()
    bound = (6 / (256 + 2)) ** 0.5
    assert 0.9 * bound < network.fc.weight.abs().max().item() <= bound
    pointwise = network.get_submodule("blocks.12.pointwise").get_parameter("weight")
    assert abs(pointwise.std().item() / (2 / 256) ** 0.5 - 1) < 0.02
