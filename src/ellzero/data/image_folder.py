"""Images in folders, one for each class, or in an archive of such folders."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ellzero.data.archive import GIB, MIB, read_files
from ellzero.data.augment import Augment
from ellzero.data.data import Data
from ellzero.data.image_file import ENDINGS, Decoder
from ellzero.data.split import SPLIT_SEED, held_out
from ellzero.errors import InputError, warn
from ellzero.preprocess import Preprocess

AUGMENTATIONS = ("shift", "flip", "crop", "gain", "noise")
"""What of `ez.Augment` means something for images."""

_PARTS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Name of a folder -> the part of the data that it holds."""

_FLAT = "CLASS/IMAGE, or only train/, validation/ and test/ above the classes"
_LARGEST_FILE = 256 * MIB
_MOST_READ = 64 * GIB
_MOST_DECODED = 8 * GIB


def image_folder(
    *,
    path: Path | str,
    size: int | Sequence[int] | None = None,
    grey: bool = False,
    validation: float = 0.1,
    test: float = 0.1,
    augment: Mapping[str, Any] | Augment | None = None,
) -> Data:
    """Images of yours: a folder, .zip, .tar, .tar.gz or .tar.xz with a folder for each class.

    Above the folders of classes there may be `train/` with `test/` and `val/`, `valid/` or
    `validation/`. A part that has no folder is taken from the training images, stratified and the
    same in every run. Folders that all images share are passed over. Classes are the sorted names
    of the training images' folders. Files that do not end as images do (.jpg .jpeg .png .bmp .ppm
    .pgm .webp) are left out with a warning, hidden ones without.

    Images are uint8 (N, C, H, W), sorted by name, labels int64 (N,). Channels are standardized by
    the training images. Nothing is unpacked; the images, decoded, take up to 8 GiB of memory, for a
    moment twice that.

    Args:
        path: the folder or archive.
        size: [H, W] or one number for both; an image is scaled until it covers that size, and its
            middle is cut out. Left out: all images have to have one size.
        grey: whether images become grey (C = 1) and not RGB (C = 3).
        validation: fraction of the training images, where no folder holds the part.
        test: likewise; 0 for none.
        augment: `shift`, `flip`, `crop`, `gain` and `noise` of `ez.Augment`, for training only.

    Raises:
        InputError: Pillow is not installed (extra `data`); no such folder or archive, a damaged or
            hostile one; an image that cannot be read, at the wrong depth or of another size; fewer
            than two classes, or one without training images; more than 8 GiB.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("black", "white"):
        ...     (folder / name).mkdir()
        ...     for number in range(10):
        ...         Image.new("RGB", (8, 6), name).save(folder / name / f"{number}.png")
        >>> data = image_folder(path=folder, grey=True)
        >>> data.classes, data.train.example[0].shape, [part.examples for part in data.parts]
        (('black', 'white'), torch.Size([1, 1, 6, 8]), [16, 2, 2])
    """
    changes = Augment.parse(augment, AUGMENTATIONS)
    images = read_images(path, size=size, grey=grey)
    if images.left_out:
        shown = ", ".join(map(repr, images.left_out[:3])) + ", ..." * (len(images.left_out) > 3)
        warn(f"{path}: {len(images.left_out):,} files are no images by their names: {shown}")
    parts = dict(images.parts)
    fractions = {"validation": validation, "test": test}
    missing = {name: fraction for name, fraction in fractions.items() if name not in parts}
    if missing:
        pixels, labels = parts["train"]
        chosen = held_out(labels.numpy(), missing, SPLIT_SEED)
        for name, indices in zip(("train", *missing), chosen, strict=True):
            parts[name] = pixels[indices], labels[indices]
    return Data(
        parts["train"],
        parts["validation"],
        parts["test"] if len(parts["test"][1]) else None,
        preprocess=Preprocess.standardizing(parts["train"][0]),
        augment=changes,
        classes=images.classes,
    )


@dataclass(frozen=True)
class LabelledImages:
    """Images and labels of each part that a folder or archive holds."""

    parts: Mapping[str, tuple[Tensor, Tensor]]
    """"train" and, if they are there, "validation" and "test": uint8 (N, C, H, W), int64 (N,)."""
    classes: tuple[str, ...]
    """The class of each label."""
    left_out: Sequence[str]
    """Names of the files that do not end as images do."""


def read_images(
    path: Path | str, *, size: int | Sequence[int] | None = None, grey: bool = False
) -> LabelledImages:
    """The images of a folder or archive, each part sorted by name; see `image_folder`."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path is {path!r}; expected the name of a folder or archive")
    path = Path(path)
    decode = Decoder(path, size, grey)
    left_out = []

    def is_image(name: str) -> bool:
        if name.lower().endswith(ENDINGS):
            return True
        left_out.append(name)
        return False

    names, content = [], bytearray()
    files = read_files(path, is_image, largest=_LARGEST_FILE, total=_MOST_READ)
    with closing(files):
        for name, file in files:
            pixels = decode(name, file)
            if len(content) + pixels.nbytes > _MOST_DECODED:
                raise InputError(
                    f"the images of {path} take more than {_MOST_DECODED // GIB} GiB of memory; "
                    "give a smaller size"
                )
            content += pixels.tobytes()
            names.append(name)
    if not names:
        raise InputError(f"{path} has no images; expected files that end in {', '.join(ENDINGS)}")

    images = torch.frombuffer(content, dtype=torch.uint8).view(len(names), *decode.shape)
    places = _places(path, names)
    classes = _classes(path, places)
    indices: dict[str, list[int]] = {}
    for index in sorted(range(len(names)), key=names.__getitem__):
        indices.setdefault(places[index][0], []).append(index)
    parts = {
        part: (images[chosen], torch.tensor([classes.index(places[i][1]) for i in chosen]))
        for part, chosen in indices.items()
    }
    return LabelledImages(parts, classes, left_out)


def _places(path: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """The part and the class of each image, by the folders that it lies in."""
    shared = posixpath.commonpath([posixpath.dirname(name) for name in names])
    steps = [name[len(shared) :].lstrip("/").split("/") for name in names]
    tops = {step[0] for step in steps}
    has_parts = "train" in tops and tops <= _PARTS.keys()
    for name, step in zip(names, steps, strict=True):
        if len(step) != (3 if has_parts else 2):
            raise InputError(
                f"{path}: the image {name!r} is in no folder of a class, or too deep; expected "
                + (f"{step[0]}/CLASS/IMAGE" if has_parts else _FLAT)
            )
    if has_parts:
        return [(_PARTS[part], label) for part, label, _ in steps]
    return [("train", label) for label, _ in steps]


def _classes(path: Path, places: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The sorted names of the training images' classes."""
    classes = {label for part, label in places if part == "train"}
    for part, label in places:
        if label not in classes:
            raise InputError(f"{path} has the class {label!r} in its {part} part alone")
    if len(classes) < 2:
        raise InputError(f"{path} has one class alone, {min(classes)!r}; expected two or more")
    return tuple(sorted(classes))
