"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 colour pixels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.data.archive import read_files
from ellzero.data.augment import Augment
from ellzero.data.data import Data
from ellzero.data.folders import Published, find_files
from ellzero.data.image_folder import AUGMENTATIONS
from ellzero.data.split import require_validation, train_and_validation
from ellzero.errors import InputError
from ellzero.preprocess import Preprocess

CIFAR_10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""Class names of CIFAR-10, by label."""

_FINE_LABELS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""

CIFAR_100_CLASSES = tuple(_FINE_LABELS.split())
"""Class names of CIFAR-100, by fine label."""

_URL = "https://www.cs.toronto.edu/~kriz/"
_ARCHIVE_10 = "cifar-10-binary.tar.gz"
_ARCHIVE_100 = "cifar-100-binary.tar.gz"

CIFAR_10 = Published(
    name="cifar-10",
    url=_URL,
    sha256={_ARCHIVE_10: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    unpacked=("cifar-10-batches-bin",),
)
"""CIFAR-10's binary version, where its author put it."""

CIFAR_100 = Published(
    name="cifar-100",
    url=_URL,
    sha256={_ARCHIVE_100: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
    unpacked=("cifar-100-binary",),
)
"""CIFAR-100's binary version, where its author put it."""

_TRAIN, _TEST = 50_000, 10_000
_SHAPE = (3, 32, 32)
_PIXELS = math.prod(_SHAPE)


@dataclasses.dataclass(frozen=True)
class _Records:
    """Where the images of a data set lie: labels of a byte each, then the pixels, by channel."""

    train: Sequence[str]
    test: str
    labels: Mapping[str, int]  # kind of label -> how many there are; the last one is the class


_RECORDS_10 = _Records(
    train=[f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)],
    test="cifar-10-batches-bin/test_batch.bin",
    labels={"label": 10},
)
_RECORDS_100 = _Records(
    train=["cifar-100-binary/train.bin"],
    test="cifar-100-binary/test.bin",
    labels={"coarse label": 20, "fine label": 100},
)


def cifar_10(
    *,
    data_root: Path | str | None = None,
    validation: int = 5000,
    base_url: str | None = None,
    augment: Mapping[str, Any] | Augment | None = None,
) -> Data:
    """CIFAR-10: 45,000 images for training, 5,000 for validation, 10,000 for testing.

    Images are uint8 (N, 3, 32, 32), labels int64 (N,). The validation images are a stratified part
    of the 50,000 training images, the same in every run. Channels are standardized by the rest.

    Args:
        data_root: the folder that holds `cifar-10/`, with the archive `cifar-10-binary.tar.gz` (the
            binary version, not that for Python) or its folder `cifar-10-batches-bin/`; see
            `ellzero.data.folders.find_files`.
        validation: number of validation images.
        base_url: the address to download from, in place of the author's.
        augment: `shift`, `flip`, `crop`, `gain` and `noise` of `ez.Augment`, for training only.

    Raises:
        InputError: the files are not found or damaged, or `validation` leaves no image to one side.

    Source:
        A. Krizhevsky: Learning multiple layers of features from tiny images, 2009,
        https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    return _load(CIFAR_10, _RECORDS_10, CIFAR_10_CLASSES, data_root, validation, base_url, augment)


def cifar_100(
    *,
    data_root: Path | str | None = None,
    validation: int = 5000,
    base_url: str | None = None,
    augment: Mapping[str, Any] | Augment | None = None,
) -> Data:
    """CIFAR-100: images in the format and numbers of `cifar_10`, in a hundred classes.

    The classes are the fine labels; the twenty coarse ones are not used.

    Args:
        data_root: the folder that holds `cifar-100/`, with the archive `cifar-100-binary.tar.gz` or
            its folder `cifar-100-binary/`; see `ellzero.data.folders.find_files`.
        validation: number of validation images.
        base_url: the address to download from, in place of the author's.
        augment: `shift`, `flip`, `crop`, `gain` and `noise` of `ez.Augment`, for training only.

    Raises:
        InputError: the files are not found or damaged, or `validation` leaves no image to one side.

    Source:
        As for `cifar_10`.
    """
    return _load(
        CIFAR_100, _RECORDS_100, CIFAR_100_CLASSES, data_root, validation, base_url, augment
    )


def _load(
    published: Published,
    records: _Records,
    classes: tuple[str, ...],
    data_root: Path | str | None,
    validation: int,
    base_url: str | None,
    augment: Mapping[str, Any] | Augment | None,
) -> Data:
    require_validation(validation, _TRAIN)
    changes = Augment.parse(augment, AUGMENTATIONS)
    if base_url is not None:
        published = dataclasses.replace(published, url=base_url)
    (path,) = find_files(published, data_root).values()
    examples, test = _read(path, records)
    train, held_out = train_and_validation(*examples, validation)
    return Data(
        train,
        held_out,
        test,
        preprocess=Preprocess.standardizing(train[0]),
        augment=changes,
        classes=classes,
    )


def _read(path: Path, records: _Records) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images (N, 3, 32, 32) and labels (N,) to train on and to test on."""
    counts = {**dict.fromkeys(records.train, _TRAIN // len(records.train)), records.test: _TEST}
    bytes_each = len(records.labels) + _PIXELS
    largest = max(counts.values()) * bytes_each
    files = read_files(path, counts.__contains__, largest=largest, total=10 * largest)
    with closing(files):
        contents = {name: np.frombuffer(content, np.uint8) for name, content in files}
    for name, count in counts.items():
        if name not in contents:
            raise InputError(f"{path} has no {name}; expected the binary version of the data set")
        if contents[name].size != count * bytes_each:
            raise InputError(
                f"{path}: {name} has {contents[name].size:,} bytes; "
                f"expected {count:,} records of {bytes_each:,}"
            )
        contents[name] = contents[name].reshape(count, bytes_each)
        for column, (kind, classes) in enumerate(records.labels.items()):
            highest = contents[name][:, column].max()
            if highest >= classes:
                raise InputError(
                    f"{path}: {name} has the {kind} {highest}; expected 0 to {classes - 1}"
                )
    train = np.concatenate([contents[name] for name in records.train])
    return _as_tensors(train), _as_tensors(contents[records.test])


def _as_tensors(records: np.ndarray) -> tuple[Tensor, Tensor]:
    images = records[:, -_PIXELS:].copy().reshape(-1, *_SHAPE)
    return torch.from_numpy(images), torch.from_numpy(records[:, -_PIXELS - 1].astype(np.int64))
