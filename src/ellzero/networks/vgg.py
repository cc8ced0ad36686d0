"""A small network in the manner of VGG, for images of clothes or digits."""

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU, and a 2x2 max pool."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, height // 2, width // 2) of (N, inputs, height, width)."""
        x = F.relu(self.norm1(self.conv1(x)))
        return F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)


class SmallVGG(nn.Module):
    """The convolutional network that `vgg_small` makes."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            Block(channels, width), Block(width, 2 * width), Block(2 * width, 4 * width)
        )
        self.fc = nn.Linear(4 * width * 3 * 3, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, channels, 28, 28)."""
        return self.fc(self.blocks(x).flatten(1))


def vgg_small(*, width: int = 16, channels: int = 1, classes: int = 10) -> SmallVGG:
    """Three blocks of two 3x3 convolutions and a linear layer, 77,786 parameters.

    Takes float images (N, channels, 28, 28), such as those of Fashion-MNIST, and gives logits
    (N, classes). The blocks have `width`, 2 `width` and 4 `width` channels; batch norm and ReLU
    follow each convolution (`blocks.0.conv1`, `blocks.0.conv2`), a 2x2 max pool each block, down
    to 14, 7 and 3 rows and columns. `fc` is linear, on all that is left. Initial weights are
    PyTorch's defaults.

    Args:
        width: channels of the first block.
        channels: of the images.
        classes: number of logits.

    Example:
        >>> network = vgg_small()
        >>> sum(parameter.numel() for parameter in network.parameters())
        77786

    Source:
        After Simonyan, Zisserman: Very deep convolutional networks for large-scale image
        recognition, ICLR 2015, https://arxiv.org/abs/1409.1556. Smaller, with batch norm (Ioffe,
        Szegedy, 2015, https://arxiv.org/abs/1502.03167) and one linear layer in place of three.
    """
    return SmallVGG(width, channels, classes)
