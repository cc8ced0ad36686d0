"""Image files: from their contents to pixels, within limits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ellzero.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp")
"""How the names of image files end, in capitals or not."""

MOST_PIXELS = 80_000_000
"""Height times width of the largest image that is decoded."""

_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
_WIDE_MODES = ("I", "F")  # pixels of more than 8 bits, which a conversion would clip


class Decoder:
    """Decodes image files to uint8 (C, H, W), all of one shape.

    An image is turned as its camera says (EXIF) and becomes RGB (C = 3) or grey (C = 1); it loses
    its transparency, and colours of 16 bits their lower 8.

    Args:
        path: where the files are, for messages.
        size: (H, W) or one number for both; an image is scaled until it covers that size, and its
            middle is cut out. None: all images have to have one size.
        grey: whether images become grey.

    Raises:
        InputError: Pillow is not installed; `size` or `grey` is of the wrong kind.
    """

    def __init__(self, path: Path, size: int | Sequence[int] | None, grey: bool) -> None:
        try:
            from PIL import Image, ImageOps
        except ImportError as error:
            raise InputError(
                "Pillow, which reads images, is not installed; "
                "install it with: pip install 'ellzero[data]'"
            ) from error
        if type(grey) is not bool:
            raise InputError(f"grey is {grey!r}; expected true or false")
        self._image, self._operations = Image, ImageOps
        self._path, self._mode = path, "L" if grey else "RGB"
        self._size = None if size is None else _height_and_width(size)
        self._first: tuple[str, tuple[int, ...]] | None = None
        self.shape: tuple[int, ...] = ()
        """(C, H, W) of the images, once there is one."""

    def __call__(self, name: str, content: bytes) -> np.ndarray:
        """The pixels of an image file, uint8 (C, H, W).

        Raises:
            InputError: no image, or a damaged one; more than `MOST_PIXELS`; grey pixels of more
                than 8 bits; several frames; another size than the images before it.
        """
        try:
            pixels = np.asarray(self._decoded(name, content))
        except InputError:
            raise
        except self._image.UnidentifiedImageError:
            raise InputError(
                f"{self._path}: {name!r} is no image of {', '.join(_FORMATS)}"
            ) from None
        except Exception as error:  # Pillow raises every kind on damaged files
            raise InputError(f"{self._path}: {name!r} cannot be decoded: {error}") from error
        pixels = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        if self._first is None:
            self._first, self.shape = (name, pixels.shape), pixels.shape
        elif pixels.shape != self.shape:
            (first, (_, *size)), (_, *other) = self._first, pixels.shape
            raise InputError(
                f"{self._path}: {first!r} has {_by(size)} pixels and {name!r} has {_by(other)} "
                f"(height x width); give size = {size} to scale them all"
            )
        return pixels

    def _decoded(self, name: str, content: bytes) -> Image:
        with self._image.open(io.BytesIO(content), formats=_FORMATS) as file:
            if file.width * file.height > MOST_PIXELS:
                raise InputError(
                    f"{self._path}: {name!r} declares {_by((file.height, file.width))} pixels; "
                    f"expected at most {MOST_PIXELS:,}"
                )
            if file.mode.startswith(_WIDE_MODES):
                raise InputError(
                    f"{self._path}: {name!r} has grey pixels of more than 8 bits; "
                    "make it an image of 8 bits"
                )
            # a JPEG file may hold other views of the same picture; cameras put them there
            if getattr(file, "is_animated", False) and file.format != "MPO":
                raise InputError(f"{self._path}: {name!r} is animated; expected one picture")
            self._operations.exif_transpose(file, in_place=True)
            image = file if file.mode == self._mode else file.convert(self._mode)
        if self._size is None:
            return image
        height, width = self._size
        return self._operations.fit(image, (width, height), self._image.Resampling.BILINEAR)


def _height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    sizes = [size, size] if isinstance(size, int) else list(size) if _is_list(size) else []
    if len(sizes) != 2 or any(type(s) is not int or s < 1 for s in sizes):
        raise InputError(f"size is {size!r}; expected [height, width] or one number, in pixels")
    return sizes[0], sizes[1]


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
