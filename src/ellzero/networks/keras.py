"""What networks have that were first written in Keras: its padding, batch norm, initial weights."""

import math
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

norm1d = partial(nn.BatchNorm1d, eps=1e-3, momentum=0.01)
norm2d = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
"""Keras' batch norm; its momentum, 0.99, is the part that stays of the running statistics."""

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal distribution that is cut off at -2 and 2."""


def conv3x3(inputs: int, outputs: int, *, stride: int, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution of stride 1 or 2, without bias; stride 2 expects what `pad_for` gives."""
    padding = 1 if stride == 1 else 0
    return nn.Conv2d(inputs, outputs, 3, stride, padding, groups=groups, bias=False)


def pad_for(stride: int) -> nn.Module:
    """TensorFlow's padding "same" for `conv3x3`, where it is not the same on both sides.

    That is for stride 2 on an even size, which it halves: a row of zeros below, a column at right.
    """
    return nn.ZeroPad2d((0, 1, 0, 1)) if stride == 2 else nn.Identity()


class SeparableBlock(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 convolution, each with batch norm, ReLU.

    The 1x1 convolution mixes the channels.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.pad = pad_for(stride)
        self.depthwise = conv3x3(inputs, inputs, stride=stride, groups=inputs)
        self.norm1 = norm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = norm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, rows, columns) of (N, inputs, height, width)."""
        x = F.relu(self.norm1(self.depthwise(self.pad(x))))
        return F.relu(self.norm2(self.pointwise(x)))


def initialize(network: nn.Module, he_normal: tuple[type[nn.Module], ...] = ()) -> None:
    """Draw the weights of linear layers and convolutions as Keras does; biases become 0.

    Those of the classes in `he_normal` come from a normal distribution of variance 2 / fan_in, cut
    off at two deviations, the others from Glorot's uniform distribution. Keras counts all input
    channels in the fan_in of a depthwise convolution, of which each output sees one.
    """
    for layer in network.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        if isinstance(layer, he_normal):
            inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            fan_in = inputs * math.prod(layer.weight.shape[2:])
            std = math.sqrt(2 / fan_in) / TRUNCATED_STD
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        else:
            nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
