"""Residual networks: MLPerf Tiny's ResNet-8, ResNet-20 for CIFAR, ResNet-50 on enlarged images."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.networks.keras import conv3x3, initialize, norm1d, norm2d, pad_for

Norm = Callable[[int], nn.BatchNorm2d]

resnet_50_norm = partial(nn.BatchNorm2d, eps=1.001e-5, momentum=0.01)
"""Batch norm of Keras' ResNet50."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, whose result is added to that of a shortcut.

    `pad` comes before the first convolution.
    """

    def __init__(
        self,
        conv1: nn.Conv2d,
        conv2: nn.Conv2d,
        *,
        norm: Norm,
        pad: nn.Module,
        shortcut: nn.Module,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.conv1 = conv1
        self.norm1 = norm(conv1.out_channels)
        self.conv2 = conv2
        self.norm2 = norm(conv2.out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, rows, columns) of (N, inputs, height, width)."""
        residual = F.relu(self.norm1(self.conv1(self.pad(x))))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x))


class SmallResNet(nn.Module):
    """The network that `resnet_8` and `resnet_20` make."""

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
        stride = outputs // inputs
        return BasicBlock(
            conv3x3(inputs, outputs, stride=stride),
            conv3x3(outputs, outputs, stride=1),
            norm=norm2d,
            pad=pad_for(stride),
            shortcut=nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride=2),
        )

    network = SmallResNet([[block(16, 16)], [block(16, 32)], [block(32, 64)]], norm2d, classes)
    initialize(network, he_normal=(nn.Conv2d, nn.Linear))
    return network


class ZeroChannels(nn.Module):
    """Every second row and column, and new channels of zeros after the input's: no parameters."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs + added, height / 2, width / 2) of (N, inputs, height, width)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))


def resnet_20(*, classes: int = 10) -> SmallResNet:
    """ResNet-20 for CIFAR with shortcuts that have no parameters (option A), 269,722 parameters.

    Takes float images (N, 3, 32, 32) and gives logits (N, classes). After `conv1` there are the
    stages `stage1` to `stage3` of 16, 32 and 64 channels, with three blocks of two 3x3 convolutions
    each (`stage2.0.conv1`), without bias, each with batch norm. Where a stage halves the size, the
    shortcut takes every second row and column and adds channels of zeros. `fc` is linear, on the
    average over all places. Initial weights are He-normal by inputs, biases 0.

    Args:
        classes: number of logits.

    Example:
        >>> network = resnet_20()
        >>> sum(parameter.numel() for parameter in network.parameters())
        269722

    Source:
        He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016,
        https://arxiv.org/abs/1512.03385, section 4.2 (n = 3); initial weights of He et al., 2015,
        https://arxiv.org/abs/1502.01852.
    """

    def block(inputs: int, outputs: int) -> BasicBlock:
        stride = outputs // inputs
        return BasicBlock(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d,
            pad=nn.Identity(),
            shortcut=nn.Identity() if stride == 1 else ZeroChannels(outputs - inputs),
        )

    stages = [[block(n, m), block(m, m), block(m, m)] for n, m in ((16, 16), (16, 32), (32, 64))]
    network = SmallResNet(stages, nn.BatchNorm2d, classes)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(network.fc.bias)
    return network


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, four times as wide, whose result a shortcut is added to.

    All have a bias and batch norm, also the shortcut where it is a convolution (`projected`). The
    stride is that of the first convolution.
    """

    def __init__(self, inputs: int, width: int, *, stride: int, projected: bool) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, stride)
        self.norm1 = resnet_50_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = resnet_50_norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1)
        self.norm3 = resnet_50_norm(outputs)
        self.shortcut = nn.Sequential()
        if projected:
            self.shortcut.add_module("conv", nn.Conv2d(inputs, outputs, 1, stride))
            self.shortcut.add_module("norm", resnet_50_norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4 width, rows, columns) of (N, inputs, height, width)."""
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = F.relu(self.norm2(self.conv2(residual)))
        return F.relu(self.norm3(self.conv3(residual)) + self.shortcut(x))


class ResNet50(nn.Module):
    """The network that `resnet_50` makes."""

    def __init__(self, width: int, upsample: int, classes: int) -> None:
        super().__init__()
        self.upsample = upsample
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3)
        self.norm1 = resnet_50_norm(width)
        self.stage1 = _bottlenecks(3, width, width, stride=1)
        self.stage2 = _bottlenecks(4, 4 * width, 2 * width, stride=2)
        self.stage3 = _bottlenecks(6, 8 * width, 4 * width, stride=2)
        self.stage4 = _bottlenecks(3, 16 * width, 8 * width, stride=2)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(32 * width, 256)
        self.norm2 = norm1d(256)
        self.fc2 = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 3, 32, 32)."""
        x = F.interpolate(x, scale_factor=self.upsample, mode="bilinear")
        x = F.relu(self.norm1(self.conv1(x)))
        # none of these values is negative, so the original's zeros around them change no maximum
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))  # (N, 2048, 7, 7)
        x = self.dropout(x.mean((2, 3)))
        return self.fc2(self.norm2(F.relu(self.fc1(x))))


def _bottlenecks(count: int, inputs: int, width: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride=stride, projected=True)
    rest = (Bottleneck(4 * width, width, stride=1, projected=False) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def resnet_50(*, classes: int = 100, width: int = 64, upsample: int = 7) -> ResNet50:
    """ResNet-50 on images enlarged to 224 x 224, with a hidden layer, 24,085,348 parameters.

    Takes float images (N, 3, 32, 32) and gives logits (N, classes). It enlarges them itself,
    bilinearly with half-pixel centres. Then come `conv1`, a max pool and the stages `stage1` to
    `stage4` of 3, 4, 6 and 3 blocks (`stage2.0.conv1`, `stage2.0.shortcut.conv`), the average over
    all places, a dropout of a quarter, `fc1` of 256 values, ReLU, batch norm and `fc2`.

    The convolutions are those of Keras' ResNet50 without its top: the first of a block has the
    stride, all have a bias, batch norm has epsilon 1.001e-5. Keras counts 23,587,712 for this part,
    with its 53,120 running means and variances. Initial weights are He-normal for convolutions and
    Glorot-uniform for linear layers; biases are 0.

    Args:
        classes: number of logits.
        width: channels of the first convolution; the last stage has 32 times as many.
        upsample: factor by which rows and columns are enlarged.

    Example:
        >>> network = resnet_50(width=4)
        >>> network.stage4[2].conv2.weight.shape
        torch.Size([32, 32, 3, 3])

    Source:
        Experiment 5 of de R. Oliveira, Batista, Seara: On the compression of neural networks using
        l0-norm regularization and weight pruning, Neural Networks 171, 2024,
        https://arxiv.org/abs/2109.05075; `ResNet50` in https://github.com/keras-team/keras,
        keras/src/applications/resnet.py; after He, Zhang, Ren, Sun: Deep residual learning for
        image recognition, CVPR 2016, https://arxiv.org/abs/1512.03385.
    """
    network = ResNet50(width, upsample, classes)
    initialize(network, he_normal=(nn.Conv2d,))
    return network
