"""The two LeNets on which pruning is compared, with the weight counts that papers report."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet300100(nn.Module):
    """The fully connected network that `lenet_300_100` makes."""

    def __init__(self, inputs: int, classes: int, dropout: float, input_dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)
        self.input_dropout = nn.Dropout(input_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, ...) with `inputs` values each."""
        x = self.input_dropout(torch.flatten(x, 1))
        x = self.dropout(F.relu(self.fc1(x)))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)


def lenet_300_100(
    *, inputs: int = 784, classes: int = 10, dropout: float = 0.0, input_dropout: float = 0.0
) -> LeNet300100:
    """LeNet-300-100: two hidden layers, 266,200 weights and 410 biases.

    Takes float images (N, 1, 28, 28) or (N, 784) and gives logits (N, classes). The layers are
    `fc1`, `fc2` and `fc3`; initial weights are PyTorch's defaults.

    Args:
        inputs: values in one image.
        classes: number of logits.
        dropout: probability with which a hidden value is dropped in training.
        input_dropout: probability with which an input value is dropped in training.

    Raises:
        ValueError: a probability is not in [0, 1] (PyTorch's own check).

    Example:
        >>> network = lenet_300_100()
        >>> sum(w.numel() for w in network.parameters() if w.dim() > 1)
        266200

    Source:
        LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition,
        Proceedings of the IEEE 86(11), 1998, section III (28x28-300-100-10; with ReLU, as in the
        pruning literature since Han et al., 2015, https://arxiv.org/abs/1506.02626).
    """
    return LeNet300100(inputs, classes, dropout, input_dropout)


class LeNet5Caffe(nn.Module):
    """The convolutional network that `lenet_5_caffe` makes."""

    def __init__(self, classes: int, dropout: float, input_dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)
        self.input_dropout = nn.Dropout(input_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, 1, 28, 28)."""
        x = self.input_dropout(x)
        # ReLU after the pooling gives the same values for a quarter of the work
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 20, 12, 12)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 50, 4, 4)
        x = torch.flatten(x, 1)
        x = self.dropout(F.relu(self.fc1(x)))
        return self.fc2(x)


def lenet_5_caffe(
    *, classes: int = 10, dropout: float = 0.0, input_dropout: float = 0.0
) -> LeNet5Caffe:
    """LeNet-5-Caffe: two 5x5 convolutions, one hidden layer, 430,500 weights and 580 biases.

    Takes float images (N, 1, 28, 28) and gives logits (N, classes). The layers are `conv1`,
    `conv2`, `fc1` and `fc2`; initial weights are PyTorch's defaults. A ReLU follows each
    convolution, as in the implementations behind the pruning literature; Caffe's own file has one
    only after `fc1`. The weights are the same in number and shape.

    Args:
        classes: number of logits.
        dropout: probability with which a value of the hidden layer is dropped in training.
        input_dropout: probability with which a pixel is dropped in training.

    Raises:
        ValueError: a probability is not in [0, 1] (PyTorch's own check).

    Example:
        >>> network = lenet_5_caffe()
        >>> sum(w.numel() for w in network.parameters() if w.dim() > 1)
        430500

    Source:
        Caffe's example `lenet.prototxt` (https://caffe.berkeleyvision.org/gathered/examples/mnist.html),
        after LeCun et al., 1998.
    """
    return LeNet5Caffe(classes, dropout, input_dropout)
