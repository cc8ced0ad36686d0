import torch

from ellzero.networks.autoencoder import autoencoder
from network_cases import (
    assert_close,
    linear,
    lively,
    normalized,
    parameter_count,
    relu,
    shapes_of,
    state_of,
    statistics_count,
)

HIDDEN = {
    "encoder.0": (128, 640),
    "encoder.1": (128, 128),
    "encoder.2": (128, 128),
    "encoder.3": (128, 128),
    "encoder.4": (8, 128),
    "decoder.0": (128, 8),
    "decoder.1": (128, 128),
    "decoder.2": (128, 128),
    "decoder.3": (128, 128),
}


def test_has_the_layers_of_the_original():
    network = autoencoder()
    linears = {f"{layer}.linear": shape for layer, shape in HIDDEN.items()}
    assert shapes_of(network) == {**linears, "output": (640, 128)}
    # 2 * (640 * 128 + 3 * 128^2 + 128 * 8) weights, 2 * (8 * 128 + 8) of norms, 640 biases
    assert parameter_count(network) == 266_896
    # Keras' count of the original: a bias for each value of each norm, and the running statistics
    assert 266_896 + 1032 + statistics_count(network) == 269_992


def test_computes_what_the_original_does():
    torch.manual_seed(0)
    network, x = lively(autoencoder()), torch.randn(3, 640, dtype=torch.float64)
    state, y = state_of(network), x.numpy()
    for layer in HIDDEN:
        y = relu(normalized(linear(y, state, f"{layer}.linear"), state, f"{layer}.norm", 1e-3))
    assert_close(network(x), linear(y, state, "output"))


def test_the_number_of_inputs_is_an_option():
    assert autoencoder(inputs=5)(torch.randn(3, 5)).shape == (3, 5)
