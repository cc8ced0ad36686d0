import pytest
import torch

from ellzero.networks.ds_cnn import ds_cnn
from network_cases import (
    assert_close,
    convolved,
    linear,
    lively,
    normalized,
    parameter_count,
    relu,
    same_margins,
    shapes_of,
    state_of,
    statistics_count,
)


def test_has_the_layers_of_the_original():
    network = ds_cnn()
    blocks = {
        f"blocks.{number}.{layer}": shape
        for number in range(4)
        for layer, shape in (("depthwise", (64, 1, 3, 3)), ("pointwise", (64, 64, 1, 1)))
    }
    assert shapes_of(network) == {"conv1": (64, 1, 10, 4), **blocks, "fc": (12, 64)}
    # 2560 + 4 * (576 + 4096) + 768 weights, 2 * 9 * 64 of norms, 12 biases
    assert parameter_count(network) == 23_180
    # Keras' count of the original: a bias for each channel of each norm, and the running statistics
    assert 23_180 + 9 * 64 + statistics_count(network) == 24_908


def test_computes_what_the_original_does():
    torch.manual_seed(0)
    network, x = lively(ds_cnn()), torch.randn(2, 1, 49, 10, dtype=torch.float64)
    state = state_of(network)
    assert (same_margins(49, 10, 2), same_margins(10, 4, 2)) == ((4, 5), (1, 1))
    y = relu(normalized(convolved(x.numpy(), state, "conv1", stride=2), state, "norm1", 1e-3))
    for block in range(4):
        for layer, norm in (("depthwise", "norm1"), ("pointwise", "norm2")):
            y = convolved(y, state, f"blocks.{block}.{layer}")
            y = relu(normalized(y, state, f"blocks.{block}.{norm}", 1e-3))
    assert y.shape == (2, 64, 25, 5)
    # windows of (49 // 2, 10 // 2), of which a second one would not fit
    assert_close(network(x), linear(y[:, :, :24].mean((2, 3)), state, "fc"))


@pytest.mark.parametrize(("place", "probability"), [("dropout1", 0.2), ("dropout2", 0.4)])
def test_dropout_acts_in_training_alone(place, probability):
    torch.manual_seed(0)
    network, x = ds_cnn().eval(), torch.randn(4, 1, 49, 10)
    assert network(x).equal(network(x))
    dropout = network.get_submodule(place).train()
    assert not network(x).equal(network(x))
    assert (dropout(torch.ones(100_000)) == 0).float().mean().item() == pytest.approx(
        probability, abs=0.01
    )
