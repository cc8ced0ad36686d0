from typing import Any

import numpy as np
import pytest
import torch

import ellzero as ez
from c_programs import check_networks, needs_gcc
from ellzero.networks.audio import audio_conv, audio_gru
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


def test_audio_conv_has_the_layers_of_its_description():
    assert shapes_of(audio_conv()) == {
        "conv1": (32, 1, 81),
        "conv2": (32, 32, 3),
        "conv3": (64, 32, 3),
        "conv4": (64, 64, 3),
        "fc": (10, 64),
    }
    # 2592 + 3072 + 6144 + 12288 + 640 weights, 2 * 192 of batch norms, 10 biases
    assert parameter_count(audio_conv()) == 25_130


def test_audio_conv_computes_what_its_description_says():
    torch.manual_seed(0)
    network, x = lively(audio_conv()), torch.randn(2, 1, 8000, dtype=torch.float64)
    state, y = state_of(network), x.numpy()
    lengths = []
    for layer, stride in ((1, 4), (2, 1), (3, 1), (4, 1)):
        half = state[f"conv{layer}.weight"].shape[2] // 2
        y = convolved(y, state, f"conv{layer}", stride=stride, margins=[(half, half)])
        y = relu(normalized(y, state, f"norm{layer}", 1e-5))
        pooled = y.shape[2] // 4
        y = y[:, :, : 4 * pooled].reshape(*y.shape[:2], pooled, 4).max(3)
        lengths.append(pooled)
    assert lengths == [500, 125, 31, 7]
    assert_close(network(x), linear(y.mean(2), state, "fc"))


def test_audio_conv_takes_audio_of_any_length_from_1021_samples():
    network = audio_conv(classes=3).eval()
    for samples in (1021, 20_000):
        assert network(torch.randn(2, 1, samples)).isfinite().all()
    with pytest.raises(RuntimeError, match="output size: 0"):
        network(torch.randn(2, 1, 1020))


@pytest.mark.slow
@needs_gcc
def test_audio_conv_goes_all_the_way_to_c(tmp_path):
    torch.manual_seed(0)
    network: Any = lively(audio_conv()).float()
    for layer in (network.conv1, network.conv2, network.conv3, network.conv4, network.fc):
        ez.prune(layer, sparsity=0.9)
    with torch.no_grad():
        network.conv2.weight[:, 5] = 0
    small = ez.compact(network, torch.zeros(1, 1, 8000)).model
    assert small.weight("conv1.weight").shape[0] < 32
    ez.pack(small, tmp_path / "net.ellz")
    loaded: Any = ez.load(tmp_path / "net.ellz")
    x = torch.randn(2, 1, 8000)
    torch.testing.assert_close(loaded(x), network(x), rtol=1e-4, atol=1e-5)
    check_networks(tmp_path, {"net": loaded}, "smallest")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("layers", [1, 2])
def test_audio_gru_is_the_equations_of_a_gru_and_a_linear_layer_on_its_last_output(layers):
    torch.manual_seed(0)
    network = lively(audio_gru(features=5, hidden=4, layers=layers, classes=3))
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    state, frames = state_of(network), x.numpy()
    hidden = np.zeros((2, 4))
    for layer in range(layers):
        w, u, b, c = (
            state[f"gru.{name}_l{layer}"]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        hidden, outputs = np.zeros((2, 4)), []
        for frame in np.swapaxes(frames, 0, 1):
            of_frame, of_hidden = frame @ w.T + b, hidden @ u.T + c
            reset = sigmoid(of_frame[:, :4] + of_hidden[:, :4])
            update = sigmoid(of_frame[:, 4:8] + of_hidden[:, 4:8])
            new = np.tanh(of_frame[:, 8:] + reset * of_hidden[:, 8:])
            hidden = (1 - update) * new + update * hidden
            outputs.append(hidden)
        frames = np.stack(outputs, 1)
    assert_close(network(x), linear(hidden, state, "fc"))


def test_audio_gru_counts():
    # 3 * 64 * (40 + 64) weights and 2 * 192 biases of the GRU, 640 weights and 10 biases
    assert parameter_count(audio_gru()) == 21_002
    # a second layer gets 64 values: 3 * 64 * (64 + 64) + 2 * 192 more
    assert parameter_count(audio_gru(layers=2)) == 21_002 + 24_960
