"""Residual networks for small images: MLPerf Tiny's ResNet-8."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.networks.keras import conv3x3, keras_norm, keras_weights_

Norm = Callable[[int], nn.BatchNorm2d]


class BasicBlock(nn.Module):
    """Two convolutions, each with batch norm, whose result is added to that of a shortcut."""

    def __init__(self, conv1: nn.Conv2d, conv2: nn.Conv2d, shortcut: nn.Module, norm: Norm) -> None:
        super().__init__()
        self.conv1 = conv1
        self.norm1 = norm(conv1.out_channels)
        self.conv2 = conv2
        self.norm2 = norm(conv2.out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, rows, columns) of (N, inputs, height, width)."""
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x))


class SmallResNet(nn.Module):
    """The network that `resnet_8` makes."""

    def __init__(self, stages: Sequence[Sequence[BasicBlock]], norm: Norm, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = norm(16)
        self.stage1, self.stage2, self.stage3 = (nn.Sequential(*blocks) for blocks in stages)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, 32, 32)."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))  # (N, 64, 8, 8)
        return self.fc(x.mean((2, 3)))


def resnet_8(*, classes: int = 10) -> SmallResNet:
    """MLPerf Tiny's ResNet-8 for CIFAR-10, 77,946 parameters.

    Takes float images (N, 3, 32, 32) and gives logits (N, classes). After `conv1` there are the
    stages `stage1` to `stage3` of 16, 32 and 64 channels, with one block of two 3x3 convolutions
    each (`stage2.0.conv1`). Where a stage halves the size, its shortcut is a 1x1 convolution with
    bias and without batch norm (`stage2.0.shortcut`). `fc` is linear, on the average over all
    places. Padding, batch norm (epsilon 0.001) and initial weights (He-normal, biases 0) are as in
    the original.

    The original has a bias in each 3x3 convolution as well, which the batch norm after it takes
    away again. Keras counts these 240 biases and the 480 running means and variances too: 78,666.

    Args:
        classes: number of logits.

    Example:
        >>> network = resnet_8()
        >>> sum(parameter.numel() for parameter in network.parameters())
        77946

    Source:
        Banbury et al.: MLPerf Tiny benchmark, NeurIPS Datasets and Benchmarks 2021,
        https://arxiv.org/abs/2106.07597; `resnet_v1_eembc` with 16 filters (later versions have 26)
        in https://github.com/mlcommons/tiny,
        benchmark/training/image_classification/keras_model.py.
    """

    def block(inputs: int, outputs: int) -> BasicBlock:
        halves = inputs != outputs
        shortcut = nn.Conv2d(inputs, outputs, 1, stride=2) if halves else nn.Identity()
        conv1 = conv3x3(inputs, outputs, stride=2 if halves else 1)
        return BasicBlock(conv1, conv3x3(outputs, outputs, stride=1), shortcut, keras_norm)

    network = SmallResNet([[block(16, 16)], [block(16, 32)], [block(32, 64)]], keras_norm, classes)
    keras_weights_(network, he_normal=(nn.Conv2d, nn.Linear))
    return network
