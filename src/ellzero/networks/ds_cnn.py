"""MLPerf Tiny's network for keyword spotting, of depthwise separable convolutions."""

from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.networks.keras import SeparableBlock, initialize, norm2d


class DSCNN(nn.Module):
    """The network that `ds_cnn` makes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        # TensorFlow's "same" for 49 rows and 10 columns: left, right, above, below
        self.pad = nn.ZeroPad2d((1, 1, 4, 5))
        self.conv1 = nn.Conv2d(1, 64, (10, 4), stride=2, bias=False)
        self.norm1 = norm2d(64)
        self.dropout1 = nn.Dropout(0.2)
        self.blocks = nn.Sequential(*(SeparableBlock(64, 64) for _ in range(4)))
        self.dropout2 = nn.Dropout(0.4)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of features (N, 1, 49, 10)."""
        x = self.dropout1(F.relu(self.norm1(self.conv1(self.pad(x)))))  # (N, 64, 25, 5)
        x = self.dropout2(self.blocks(x))
        x = F.avg_pool2d(x, (24, 5))  # the original's window, which leaves out the last row
        return self.fc(x.flatten(1))


def ds_cnn(*, classes: int = 12) -> DSCNN:
    """MLPerf Tiny's DS-CNN for keyword spotting, 23,180 parameters.

    Takes float features (N, 1, 49, 10), 49 frames of a second of speech with 10 MFCCs each, and
    gives logits (N, classes). `conv1` has windows of 10 frames and 4 features and stride 2; four
    blocks of a depthwise 3x3 and a pointwise 1x1 convolution follow (`blocks.0.depthwise`,
    `blocks.0.pointwise`), all with batch norm and ReLU; `fc` is linear, on the average over the
    first 24 of 25 rows. A fifth of the values after `conv1` is dropped in training, and two fifths
    of those before the average. Padding, batch norm (epsilon 0.001) and initial weights
    (Glorot-uniform, biases 0) are as in the original.

    The original has a bias in each convolution as well, which the batch norm after it takes away
    again. Keras counts these 576 biases and the 1,152 running means and variances too: 24,908.

    Args:
        classes: number of logits; the original's are ten words, silence and any other word.

    Example:
        >>> network = ds_cnn()
        >>> sum(parameter.numel() for parameter in network.parameters())
        23180

    Source:
        Banbury et al.: MLPerf Tiny benchmark, NeurIPS Datasets and Benchmarks 2021,
        https://arxiv.org/abs/2106.07597; `ds_cnn` in https://github.com/mlcommons/tiny,
        benchmark/training/keyword_spotting/keras_model.py; after Zhang, Suda, Lai, Chandra: Hello
        edge, 2017, https://arxiv.org/abs/1711.07128.
    """
    network = DSCNN(classes)
    initialize(network)
    return network
