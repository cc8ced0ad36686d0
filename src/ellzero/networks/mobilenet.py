"""MLPerf Tiny's network for visual wake words, a quarter as wide as MobileNet."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.networks.keras import SeparableBlock, conv3x3, initialize, norm2d, pad_for

CHANNELS = (8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
"""After the first convolution and after each block, a quarter of MobileNet's."""

HALVING = (1, 3, 5, 11)
"""The blocks, counted from 0, whose depthwise convolution has stride 2."""


class MobileNet(nn.Module):
    """The network that `mobilenet_v1_025` makes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.pad = pad_for(stride=2)
        self.conv1 = conv3x3(3, CHANNELS[0], stride=2)
        self.norm1 = norm2d(CHANNELS[0])
        self.blocks = nn.Sequential(
            *(
                SeparableBlock(inputs, outputs, stride=2 if number in HALVING else 1)
                for number, (inputs, outputs) in enumerate(pairwise(CHANNELS))
            )
        )
        self.fc = nn.Linear(CHANNELS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, 96, 96)."""
        x = F.relu(self.norm1(self.conv1(self.pad(x))))  # (N, 8, 48, 48)
        x = self.blocks(x)  # (N, 256, 3, 3)
        return self.fc(x.mean((2, 3)))


def mobilenet_v1_025(*, classes: int = 2) -> MobileNet:
    """MLPerf Tiny's MobileNetV1 of width 0.25 for visual wake words, 213,586 parameters.

    Takes float images (N, 3, 96, 96) and gives logits (N, classes). After `conv1`, of stride 2,
    there are 13 blocks of a depthwise 3x3 and a pointwise 1x1 convolution (`blocks.0.depthwise`,
    `blocks.0.pointwise`), all with batch norm and ReLU (not ReLU6); `fc` is linear, on the average
    over all places. Padding, batch norm (epsilon 0.001) and initial weights (He-normal, those of
    `fc` Glorot-uniform, biases 0) are as in the original.

    The original has a bias in each convolution as well, which the batch norm after it takes away
    again. Keras counts these 2,736 biases and the 5,472 running means and variances too: 221,794.

    Args:
        classes: number of logits; the original's are whether there is a person or not.

    Example:
        >>> network = mobilenet_v1_025()
        >>> sum(parameter.numel() for parameter in network.parameters())
        213586

    Source:
        Banbury et al.: MLPerf Tiny benchmark, NeurIPS Datasets and Benchmarks 2021,
        https://arxiv.org/abs/2106.07597; `mobilenet_v1` in https://github.com/mlcommons/tiny,
        benchmark/training/visual_wake_words/vww_model.py; after Howard et al.: MobileNets, 2017,
        https://arxiv.org/abs/1704.04861.
    """
    network = MobileNet(classes)
    initialize(network, he_normal=(nn.Conv2d,))
    return network
