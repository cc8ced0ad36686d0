"""What networks have that were first written in Keras: its padding, batch norm, initial weights."""

import math
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

Margins = tuple[int, int, int, int]
"""Columns of zeros left and right, rows above and below."""

HALVING: Margins = (0, 1, 0, 1)
"""TensorFlow's padding "same" of a 3x3 kernel with stride 2 on an even size, which it halves."""

keras_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
"""Keras' batch norm; its momentum, 0.99, is the part that stays of the running statistics."""

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal distribution that is cut off at -2 and 2."""


class PaddedConv2d(nn.Conv2d):
    """A convolution without bias whose margins of zeros may differ from side to side."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int,
        margins: Margins,
        groups: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.margins = margins

    def forward(self, input: Tensor) -> Tensor:
        """(N, outputs, rows, columns) of (N, inputs, height, width)."""
        return super().forward(F.pad(input, self.margins))


def conv3x3(inputs: int, outputs: int, *, stride: int, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias, padded as by TensorFlow's "same", with stride 1 or 2.

    With stride 2 it is for an input of even size.
    """
    if stride == 1:
        return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
    return PaddedConv2d(inputs, outputs, 3, stride=2, margins=HALVING, groups=groups)


def keras_weights_(network: nn.Module, he_normal: tuple[type[nn.Module], ...] = ()) -> None:
    """Draw the initial weights of linear layers and convolutions as Keras does; biases become 0.

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
