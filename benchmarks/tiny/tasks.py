"""Data in the shapes of MLPerf Tiny's four tasks, made of what this project has at hand.

Named by the recipes beside this file, which are run from this folder. The benchmark's own data
(Speech Commands, Visual Wake Words, ToyADMOS) are not used, so errors are no figures of it.
All inputs are standardized by the training part.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

import ellzero as ez
from ellzero.data.cifar_jpeg import cifar_10_jpeg
from ellzero.data.part import Part
from ellzero.data.spoken_digits import spoken_digits

BATCH = 500

CIFAR_COUNTS = 10_000, 2000, 10_000
WAKE_COUNTS = 3000, 1000, 1000
"""Examples of each part that are used; in float32 they take 300 and 550 MB."""

ANIMALS = 2, 3, 4, 5, 6, 7
"""Of CIFAR-10's classes: bird, cat, deer, dog, frog, horse."""


def keywords() -> ez.Data:
    """Spoken digits, (N, 1, 49, 10): every other log-mel frame, four bands to a value."""
    parts = [_some(part) for part in spoken_digits(features="log-mel").parts]
    return ez.Data(*((x[:, None, ::2].unflatten(3, (10, 4)).mean(4), y) for x, y in parts))


def images() -> ez.Data:
    """CIFAR-10 as JPEG files, (N, 3, 32, 32)."""
    cifar = cifar_10_jpeg()
    parts = [_some(part, count) for part, count in zip(cifar.parts, CIFAR_COUNTS, strict=True)]
    return ez.Data(*parts, augment=ez.Augment(shift=2, flip=True), classes=cifar.classes)


def wake_words() -> ez.Data:
    """Is there an animal? CIFAR-10 at three times its size, (N, 3, 96, 96)."""
    cifar = cifar_10_jpeg()
    parts = [_some(part, count) for part, count in zip(cifar.parts, WAKE_COUNTS, strict=True)]
    animals = torch.tensor(ANIMALS)
    larger = [(F.interpolate(x, scale_factor=3), torch.isin(y, animals).long()) for x, y in parts]
    return ez.Data(*larger, augment=ez.Augment(flip=True), classes=("none", "animal"))


def anomalies() -> ez.Data:
    """Sounds to restore, (N, 640): 16 log-mel frames of 40 values of spoken digits."""
    parts = [_some(part)[0] for part in spoken_digits(features="log-mel").parts]
    windows = [x[:, :96].reshape(-1, 640) for x in parts]
    return ez.Data(*((x, x) for x in windows))


def _some(part: Part, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Inputs and targets from all over a part, whose order may be that of its classes; or all."""
    chosen = part if count is None else part.spread(count)
    batches = list(chosen.batches(BATCH, torch.device("cpu")))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
