import math

import pytest
import torch
from torch import nn

from ellzero.networks.keras import HALVING, PaddedConv2d, conv3x3, keras_norm, keras_weights_
from network_cases import same_margins


@pytest.mark.parametrize("size", [4, 6, 32, 96])
def test_a_stride_of_two_pads_an_even_size_as_tensorflow_does(size):
    assert same_margins(size, kernel=3, stride=2) == HALVING[:2] == HALVING[2:]
    image = torch.randn(1, 2, size, size)
    assert conv3x3(2, 3, stride=2)(image).shape == (1, 3, size // 2, size // 2)
    assert conv3x3(2, 3, stride=1)(image).shape == (1, 3, size, size)


def test_the_first_window_begins_at_the_first_pixel_and_the_last_reaches_over_the_edge():
    conv = conv3x3(1, 1, stride=2)
    nn.init.ones_(conv.weight)
    image = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]).reshape(
        1, 1, 4, 4
    )
    # 1+2+3 + 5+6+7 + 9+10+11; 3+4 + 7+8 + 11+12; 9+10+11 + 13+14+15; 11+12 + 15+16
    assert conv(image).flatten().tolist() == [54, 45, 72, 54]


def test_margins_are_left_right_above_below():
    conv = PaddedConv2d(1, 1, (2, 1), stride=1, margins=(1, 0, 0, 2))
    nn.init.ones_(conv.weight)
    assert conv(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[0, 1, 2], [0, 0, 0]]]]


def test_the_statistics_of_a_batch_norm_move_by_a_hundredth():
    norm = keras_norm(1)
    norm.running_mean = torch.tensor([5.0])
    norm(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
    assert norm.running_mean.item() == pytest.approx(0.99 * 5 + 0.01 * 2)
    assert norm.eps == 1e-3


def test_initial_weights_are_drawn_as_by_keras():
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(50, 200, 3), nn.Linear(300, 500)
    keras_weights_(nn.ModuleList([conv, linear]), he_normal=(nn.Conv2d,))
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


def test_a_depthwise_convolution_counts_all_channels_as_keras_does():
    torch.manual_seed(0)
    depthwise = nn.Conv2d(4000, 4000, 3, groups=4000)
    keras_weights_(depthwise, he_normal=(nn.Conv2d,))
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 4000)), rel=0.02)
