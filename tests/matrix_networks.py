"""The kinds of networks that people deploy, narrow; `test_matrix.py` takes each through all stages.

Some are ellzero's own (`ellzero.networks`), the others are written as their users write them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.networks.audio import audio_conv, audio_gru
from ellzero.networks.autoencoder import autoencoder
from ellzero.networks.gpt import gpt_small
from ellzero.networks.resnet import BasicBlock, resnet_8, resnet_50
from ellzero.networks.vgg import vgg_small


@dataclass(frozen=True)
class Numbers:
    """An input of standard normal numbers; `shape` is one example's."""

    shape: tuple[int, ...]

    def batch(self, count: int) -> Tensor:
        return torch.randn(count, *self.shape)


@dataclass(frozen=True)
class Tokens(Numbers):
    """An input of tokens below `vocabulary`."""

    vocabulary: int

    def batch(self, count: int) -> Tensor:
        return torch.randint(self.vocabulary, (count, *self.shape))


@dataclass(frozen=True, eq=False)
class MatrixCase:
    """A network, what it takes, and what is expected of it."""

    make: Callable[[], nn.Module]
    inputs: tuple[Numbers, ...]
    dead: Mapping[str, Any]  # parts of weights to set to zero, so that units in front are dead
    smaller: Mapping[str, tuple[int, ...]]  # weights that compaction cuts then, and to which shapes
    not_selected: tuple[str, ...] = ()  # matrices that are not of layers, such as embeddings
    refused: Mapping[str, str] = field(default_factory=dict)  # stage -> why, part of the message

    def model(self, seed: int = 0) -> nn.Module:
        """The network in evaluation mode, nothing in its normalizations as it starts."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make().eval()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 1.5)
            return model

    def batches(self, count: int, seed: int = 0) -> list[Tensor]:
        """A batch of each input."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return [known.batch(count) for known in self.inputs]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    )


class ResNet18(nn.Module):
    """Four stages of two blocks, after a convolution of 7x7 and a pool."""

    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__()
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(_basic(before, after), _basic(after, after))
                for before, after in pairwise(widths)
            )
        )
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 3, 2, 1)
        return self.fc(F.adaptive_avg_pool2d(self.stages(x), 1).flatten(1))


def _basic(inputs: int, outputs: int) -> BasicBlock:
    stride = outputs // inputs
    shortcut = nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
    )
    return BasicBlock(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d,
        pad=nn.Identity(),
        shortcut=nn.Identity() if stride == 1 else shortcut,
    )


class InvertedResidual(nn.Module):
    """MobileNetV3's block: wider, a convolution of each channel, a gate of each, narrower."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(
            hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False
        )
        self.norm2 = nn.BatchNorm2d(hidden)
        self.squeeze = nn.Conv2d(hidden, hidden // 4, 1)
        self.excite = nn.Conv2d(hidden // 4, hidden, 1)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm1(self.expand(x)))
        y = self.norm2(self.depthwise(y))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = F.hardswish(y * F.hardsigmoid(gate))
        y = self.norm3(self.project(y))
        return x + y if self.is_residual else y


class MobileNetV3(nn.Module):
    """Three inverted residuals with squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()
        )
        self.blocks = nn.Sequential(
            InvertedResidual(8, 16, 8, 3, 1),
            InvertedResidual(8, 24, 12, 5, 2),
            InvertedResidual(12, 24, 12, 3, 1),
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 20), nn.Hardswish()
        )
        self.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(20, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.blocks(self.stem(x))))


class UNet(nn.Module):
    """Two levels down and up: one by a transposed convolution, one bilinearly."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _twice(1, 6), _twice(6, 12)
        self.bottom = _twice(12, 16)
        self.grow = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.up2, self.up1 = _twice(24, 12), _twice(18, 6)
        self.output = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(F.max_pool2d(fine, 2))
        y = self.grow(self.bottom(F.max_pool2d(coarse, 2)))
        y = self.up2(torch.cat([coarse, y], 1))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.output(self.up1(torch.cat([fine, y], 1)))


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class LSTM(nn.Module):
    """Two layers, and a linear one on the last step of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, 2, batch_first=True)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.rnn(x)
        return self.fc(outputs[:, -1])


class ViT(nn.Module):
    """A vision transformer: patches by a convolution, a class token, positions."""

    def __init__(self, width: int = 16, heads: int = 4, classes: int = 5) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.encoder(x))[:, 0])


class TextEncoder(nn.Module):
    """Tokens through a transformer's encoder, their mean over time classified."""

    def __init__(self, vocabulary: int = 20, width: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.encoder(self.tokens(tokens)).mean(1))


class TwoInputs(nn.Module):
    """A text's tokens and a row of numbers, each through a layer of its own, then together."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.words = nn.Linear(8, 12)
        self.numbers = nn.Linear(5, 10)
        self.output = nn.Linear(22, 3)

    def forward(self, tokens: Tensor, numbers: Tensor) -> Tensor:
        words = F.relu(self.words(self.tokens(tokens).mean(1)))
        return self.output(torch.cat([words, F.relu(self.numbers(numbers))], 1))


class Volumes(nn.Module):
    """Two convolutions of volumes, as of scans or short films."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 6, 3, padding=1)
        self.conv2 = nn.Conv3d(6, 8, 3)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.max_pool3d(F.relu(self.conv1(x)), 2)))
        return self.fc(x.mean((2, 3, 4)))


IMAGE = (Numbers((3, 32, 32)),)

MATRIX_NETWORKS = {
    "MLP": MatrixCase(
        mlp,
        (Numbers((12,)),),
        dead={"4.weight": np.s_[:, :5]},
        smaller={"2.weight": (11, 16), "4.weight": (4, 11)},
    ),
    "VGG": MatrixCase(
        lambda: vgg_small(width=4),
        (Numbers((1, 28, 28)),),
        dead={"blocks.0.conv2.weight": np.s_[:, :2], "fc.weight": np.s_[:, : 4 * 9]},
        smaller={
            "blocks.0.conv1.weight": (2, 1, 3, 3),
            "blocks.2.conv2.weight": (12, 16, 3, 3),
            "fc.weight": (10, 12 * 9),
        },
    ),
    "ResNet-8": MatrixCase(
        resnet_8,
        IMAGE,
        dead={"stage2.0.conv2.weight": np.s_[:, :10], "fc.weight": np.s_[:, :8]},
        smaller={
            "stage2.0.conv1.weight": (22, 16, 3, 3),
            "stage3.0.conv2.weight": (56, 64, 3, 3),
            "stage3.0.shortcut.weight": (56, 32, 1, 1),
        },
    ),
    "ResNet-18": MatrixCase(
        ResNet18,
        IMAGE,
        dead={"stages.1.0.conv2.weight": np.s_[:, :3], "stages.3.1.conv2.weight": np.s_[:, 20:]},
        smaller={
            "stages.1.0.conv1.weight": (5, 4, 3, 3),
            "stages.3.1.conv1.weight": (20, 32, 3, 3),
        },
    ),
    "ResNet-50": MatrixCase(
        lambda: resnet_50(width=4, upsample=2, classes=10),
        IMAGE,
        dead={"stage2.0.conv2.weight": np.s_[:, :3], "fc2.weight": np.s_[:, :56]},
        smaller={"stage2.0.conv1.weight": (5, 16, 1, 1), "fc1.weight": (200, 128)},
    ),
    "MobileNet with squeeze-and-excite": MatrixCase(
        MobileNetV3,
        IMAGE,
        dead={"blocks.1.project.weight": np.s_[:, :4], "blocks.1.squeeze.weight": np.s_[:, :4]},
        smaller={
            "blocks.1.expand.weight": (20, 8, 1, 1),
            "blocks.1.depthwise.weight": (20, 1, 5, 5),
            "blocks.1.excite.weight": (20, 6, 1, 1),
            "blocks.1.project.weight": (12, 20, 1, 1),
        },
    ),
    "U-Net": MatrixCase(
        UNet,
        (Numbers((1, 16, 16)),),
        dead={"up2.0.weight": np.s_[:, 20:], "up1.0.weight": np.s_[:, 6:9]},
        smaller={"grow.weight": (16, 8, 2, 2), "up2.3.weight": (9, 12, 3, 3)},
    ),
    "1-d convolutions": MatrixCase(
        audio_conv,
        (Numbers((1, 1200)),),
        dead={"conv2.weight": np.s_[:, :20]},
        smaller={"conv1.weight": (12, 1, 81), "conv2.weight": (32, 12, 3)},
    ),
    "3-d convolutions": MatrixCase(
        Volumes,
        (Numbers((1, 6, 6, 8)),),
        dead={"conv2.weight": np.s_[:, :2]},
        smaller={"conv1.weight": (4, 1, 3, 3, 3), "conv2.weight": (8, 4, 3, 3, 3)},
        refused={"C": "there is no C for conv1 (conv) in 3 dimensions"},
    ),
    "LSTM": MatrixCase(
        LSTM,
        (Numbers((7, 6)),),
        dead={"rnn.weight_hh_l0": np.s_[:, :3], "rnn.weight_ih_l1": np.s_[:, :3]},
        smaller={
            "rnn.weight_ih_l0": (20, 6),
            "rnn.weight_hh_l0": (20, 5),
            "rnn.weight_ih_l1": (32, 5),
        },
    ),
    "GRU": MatrixCase(
        lambda: audio_gru(features=10, hidden=12),
        (Numbers((9, 10)),),
        dead={"gru.weight_hh_l0": np.s_[:, :4], "fc.weight": np.s_[:, :4]},
        smaller={"gru.weight_ih_l0": (24, 10), "gru.weight_hh_l0": (24, 8), "fc.weight": (10, 8)},
    ),
    "small GPT": MatrixCase(
        lambda: gpt_small(vocabulary=11, layers=2, width=32, context=12),
        (Tokens((12,), 11),),
        dead={
            "blocks.0.attention.output.weight": np.s_[:, :8],  # a head
            "blocks.1.feed_forward.contract.weight": np.s_[:, :28],
        },
        smaller={
            "blocks.0.attention.qkv.weight": (72, 32),
            "blocks.0.attention.output.weight": (32, 24),
            "blocks.1.feed_forward.expand.weight": (100, 32),
        },
        not_selected=("tokens.weight", "positions.weight"),
    ),
    "ViT": MatrixCase(
        ViT,
        (Numbers((3, 16, 16)),),
        dead={
            "encoder.layers.0.self_attn.out_proj.weight": np.s_[:, 4:8],  # a head
            "encoder.layers.1.linear2.weight": np.s_[:, :12],
        },
        smaller={
            "encoder.layers.0.self_attn.in_proj_weight": (36, 16),
            "encoder.layers.0.self_attn.out_proj.weight": (16, 12),
            "encoder.layers.1.linear1.weight": (20, 16),
        },
        not_selected=("token", "positions"),
    ),
    "transformer encoder": MatrixCase(
        TextEncoder,
        (Tokens((9,), 20),),
        dead={
            "encoder.layers.0.self_attn.out_proj.weight": np.s_[:, :4],  # a head
            "encoder.layers.1.linear2.weight": np.s_[:, :12],
        },
        smaller={
            "encoder.layers.0.self_attn.in_proj_weight": (36, 16),
            "encoder.layers.0.self_attn.out_proj.weight": (16, 12),
            "encoder.layers.1.linear1.weight": (20, 16),
        },
        not_selected=("tokens.weight",),
    ),
    "autoencoder": MatrixCase(
        lambda: autoencoder(inputs=32),
        (Numbers((32,)),),
        dead={"output.weight": np.s_[:, :100]},
        smaller={"decoder.3.linear.weight": (28, 128), "output.weight": (32, 28)},
    ),
    "two inputs": MatrixCase(
        TwoInputs,
        (Tokens((6,), 20), Numbers((5,))),
        dead={"output.weight": np.s_[:, 8:16]},
        smaller={"words.weight": (8, 8), "numbers.weight": (6, 5), "output.weight": (3, 14)},
        not_selected=("tokens.weight",),
    ),
}
