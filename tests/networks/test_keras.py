import math

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.networks.keras import SeparableBlock, conv3x3, initialize, norm1d, norm2d, pad_for
from network_cases import assert_close, convolved, lively, normalized, relu, same_margins, state_of


@pytest.mark.parametrize("size", [4, 6, 32, 96])
def test_a_stride_of_two_pads_an_even_size_as_tensorflow_does(size):
    image = torch.ones(1, 1, size, size)
    margins = [same_margins(size, kernel=3, stride=2)] * 2
    np.testing.assert_array_equal(pad_for(2)(image)[0, 0], np.pad(image[0, 0], margins))
    assert pad_for(1)(image) is image
    assert conv3x3(1, 3, stride=2)(pad_for(2)(image)).shape == (1, 3, size // 2, size // 2)
    assert conv3x3(1, 3, stride=1)(image).shape == (1, 3, size, size)


def test_the_first_window_begins_at_the_first_pixel_and_the_last_reaches_over_the_edge():
    conv = conv3x3(1, 1, stride=2)
    nn.init.ones_(conv.weight)
    image = torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    # 1+2+3 + 5+6+7 + 9+10+11; 3+4 + 7+8 + 11+12; 9+10+11 + 13+14+15; 11+12 + 15+16
    assert conv(pad_for(2)(image)).flatten().tolist() == [54, 45, 72, 54]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_separable_block_computes_what_its_description_says(stride):
    torch.manual_seed(0)
    block = lively(SeparableBlock(3, 5, stride=stride))
    assert block.get_parameter("depthwise.weight").shape == (3, 1, 3, 3)
    state, x = state_of(block), torch.randn(2, 3, 6, 8, dtype=torch.float64)
    y = convolved(x.numpy(), state, "depthwise", stride=stride)
    y = relu(normalized(y, state, "norm1", 1e-3))
    y = relu(normalized(convolved(y, state, "pointwise"), state, "norm2", 1e-3))
    assert y.shape == (2, 5, 6 // stride, 8 // stride)
    assert_close(block(x), y)


@pytest.mark.parametrize(("norm", "shape"), [(norm1d, (2, 1)), (norm2d, (2, 1, 1, 1))])
def test_the_statistics_of_a_batch_norm_move_by_a_hundredth(norm, shape):
    layer = norm(1)
    layer.running_mean.fill_(5)
    layer(torch.tensor([1.0, 3.0]).reshape(shape))
    assert layer.running_mean.item() == pytest.approx(0.99 * 5 + 0.01 * 2)
    assert layer.eps == 1e-3


def test_initial_weights_are_drawn_as_by_keras():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(50, 200, 3), nn.Linear(300, 500)
    initialize(nn.ModuleList([conv, linear]), he_normal=(nn.Conv2d,))
    # He: variance 2 / fan_in, and none beyond two deviations of the distribution that was cut off
    std = math.sqrt(2 / (50 * 9))
    assert conv.weight.std().item() == pytest.approx(std, rel=0.01)
    assert 2.2 * std < conv.weight.abs().max().item() <= 2 * std / 0.8796
    # Glorot: uniform up to sqrt(6 / (fan_in + fan_out))
    bound = math.sqrt(6 / 800)
    assert 0.99 * bound < linear.weight.abs().max().item() <= bound
    assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert conv.bias is not None
    assert not conv.bias.any()
    assert not linear.bias.any()


@pytest.mark.parametrize("he_normal", [True, False])
def test_a_depthwise_convolution_counts_all_channels_as_keras_does(he_normal):
    torch.manual_seed(0)
    channels = 4000
    depthwise = nn.Conv2d(channels, channels, 3, groups=channels)
    initialize(depthwise, he_normal=(nn.Conv2d,) if he_normal else ())
    # Keras' kernel is (3, 3, channels, 1): fan_in 9 * channels, fan_out 9
    variance = 2 / (9 * channels) if he_normal else 2 / (9 * channels + 9)
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(variance), rel=0.02)
