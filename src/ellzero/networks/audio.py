"""Two networks for a second of speech: convolutions on raw audio, a GRU on its log-mel frames."""

from torch import Tensor, nn
from torch.nn import functional as F


class AudioConv(nn.Module):
    """The convolutional network that `audio_conv` makes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, 32, 81, stride=4, padding=40, bias=False)
        self.norm1 = nn.BatchNorm1d(32)
        self.conv2 = nn.Conv1d(32, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(32)
        self.conv3 = nn.Conv1d(32, 64, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm1d(64)
        self.conv4 = nn.Conv1d(64, 64, 3, padding=1, bias=False)
        self.norm4 = nn.BatchNorm1d(64)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of raw audio (N, 1, samples)."""
        x = F.max_pool1d(F.relu(self.norm1(self.conv1(x))), 4)  # 8000 samples -> 500 places
        x = F.max_pool1d(F.relu(self.norm2(self.conv2(x))), 4)  # 125
        x = F.max_pool1d(F.relu(self.norm3(self.conv3(x))), 4)  # 31
        x = F.max_pool1d(F.relu(self.norm4(self.conv4(x))), 4)  # 7
        return self.fc(x.mean(2))


def audio_conv(*, classes: int = 10) -> AudioConv:
    """Four convolutions on raw audio, 25,130 parameters.

    Takes float audio (N, 1, 8000), one second at 8 kHz, and gives logits (N, classes). It averages
    over time, so that any length of 1021 samples or more can be given. The convolutions `conv1` to
    `conv4` have no bias, as batch norm, ReLU and a max pool of 4 follow each; `fc` is linear.
    Initial weights are PyTorch's defaults.

    Args:
        classes: number of logits.

    Example:
        >>> import torch
        >>> network = audio_conv()
        >>> network(torch.zeros(2, 1, 8000)).shape
        torch.Size([2, 10])
        >>> sum(parameter.numel() for parameter in network.parameters())
        25130

    Source:
        After M5 of Dai, Dai, Qu, Li, Das: Very deep convolutional neural networks for raw
        waveforms, ICASSP 2017, https://arxiv.org/abs/1610.00087. Smaller: 32 to 64 channels in
        place of 128 to 512, and a linear layer after the average over time, where M5 ends in a
        softmax of it.
    """
    return AudioConv(classes)


class AudioGRU(nn.Module):
    """The recurrent network that `audio_gru` makes."""

    def __init__(self, features: int, hidden: int, layers: int, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, hidden, layers, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of frames (N, time, features)."""
        outputs, _ = self.gru(x)  # (N, time, hidden)
        return self.fc(outputs[:, -1])


def audio_gru(
    *, features: int = 40, hidden: int = 64, layers: int = 1, classes: int = 10
) -> AudioGRU:
    """A GRU on frames of features, and a linear layer on its last output, 21,002 parameters.

    Takes float frames (N, time, features), such as log-mel spectra, of any length, and gives logits
    (N, classes). The layers are `gru` and `fc`; initial weights are PyTorch's defaults.

    Args:
        features: values in one frame.
        hidden: values in the GRU's state.
        layers: GRUs, each on the outputs of the one before.
        classes: number of logits.

    Raises:
        ValueError: no hidden value or no layer (PyTorch's own check).

    Example:
        >>> import torch
        >>> network = audio_gru()
        >>> network(torch.zeros(2, 61, 40)).shape
        torch.Size([2, 10])
        >>> sum(parameter.numel() for parameter in network.parameters())
        21002

    Source:
        Cho, van Merriënboer, Gulcehre, Bahdanau, Bougares, Schwenk, Bengio: Learning phrase
        representations using RNN encoder-decoder for statistical machine translation, EMNLP 2014,
        https://arxiv.org/abs/1406.1078, in the form of `torch.nn.GRU`, which multiplies by the
        reset gate after the matrix product.
    """
    return AudioGRU(features, hidden, layers, classes)
