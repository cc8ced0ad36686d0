"""MLPerf Tiny's network for anomaly detection: sounds that it restores badly are anomalous."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.networks.keras import initialize, norm1d


class Hidden(nn.Module):
    """A linear layer, batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = norm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs) of (N, inputs)."""
        return F.relu(self.norm(self.linear(x)))


class Autoencoder(nn.Module):
    """The network that `autoencoder` makes."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        widths = (inputs, 128, 128, 128, 128, 8)
        self.encoder = nn.Sequential(*(Hidden(n, m) for n, m in pairwise(widths)))
        self.decoder = nn.Sequential(*(Hidden(n, m) for n, m in pairwise(widths[:0:-1])))
        self.output = nn.Linear(128, inputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) of features (N, inputs)."""
        return self.output(self.decoder(self.encoder(x)))


def autoencoder(*, inputs: int = 640) -> Autoencoder:
    """MLPerf Tiny's autoencoder for anomalous sounds of machines (ToyADMOS), 266,896 parameters.

    Takes float features (N, inputs), five frames of a log-mel spectrum with 128 values each, and
    gives the same shape back. Linear layers of 128 values lead to 8 (`encoder.0.linear` to
    `encoder.4.linear`) and back (`decoder.0.linear` to `decoder.3.linear`), each with batch norm
    and ReLU; `output` is linear. Batch norm (epsilon 0.001) and initial weights (Glorot-uniform,
    biases 0) are as in the original.

    The original has a bias in each linear layer, which the batch norm after it takes away again.
    Keras counts these 1,032 biases and the 2,064 running means and variances too: 269,992.

    Args:
        inputs: values of one example.

    Example:
        >>> network = autoencoder()
        >>> sum(parameter.numel() for parameter in network.parameters())
        266896

    Source:
        Banbury et al.: MLPerf Tiny benchmark, NeurIPS Datasets and Benchmarks 2021,
        https://arxiv.org/abs/2106.07597; `get_model` in https://github.com/mlcommons/tiny,
        benchmark/training/anomaly_detection/keras_model.py; after the baseline of the DCASE 2020
        challenge, Koizumi et al., 2020, https://arxiv.org/abs/2006.05822.
    """
    network = Autoencoder(inputs)
    initialize(network)
    return network
