"""IDX files, the format in which MNIST and its kin are published."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ellzero.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, gzip-compressed or not.

    The header must announce exactly `shape`: the caller knows the data set, so no length that a
    damaged or hostile file claims decides how much memory is taken.

    Args:
        path: the file.
        shape: the dimensions the file must have.

    Returns:
        A writable uint8 array of that shape.

    Raises:
        InputError: the file cannot be read, is no IDX file of unsigned bytes, has another shape,
            or has fewer or more values than its header says.

    Source:
        http://yann.lecun.com/exdb/mnist, "the IDX file format": two zero bytes, the type, the
        number of dimensions, each dimension as a big-endian 32-bit integer, the values.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not compressed:
                return _read(raw, path, shape)
            with gzip.open(raw, "rb") as content:
                return _read(content, path, shape)
    except (OSError, EOFError, zlib.error) as error:  # gzip reports damage by any of the three
        raise InputError(
            f"{path} cannot be read: {error or type(error).__name__}; fetch the file again"
        ) from error


def _read(content: BinaryIO | gzip.GzipFile, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    header_size = 4 + 4 * len(shape)
    header = content.read(header_size)
    magic = bytes([0, 0, _UNSIGNED_BYTE, len(shape)])
    if header[:4] != magic:
        raise InputError(
            f"{path} starts with {header[:4].hex(' ') or 'nothing'}; expected {magic.hex(' ')}, "
            f"an IDX file of unsigned bytes with {len(shape)} dimensions"
        )
    if len(header) < header_size:
        raise InputError(f"{path} ends within its header; fetch the file again")
    announced = struct.unpack(f">{len(shape)}I", header[4:])
    if announced != shape:
        raise InputError(f"{path} announces the shape {announced}; expected {shape}")

    size = math.prod(shape)
    values = bytearray(content.read(size + 1))  # one more, to see that nothing follows
    if len(values) != size:
        count = f"only {len(values)}" if len(values) < size else "more"
        raise InputError(f"{path} holds {count} values; its header announces {size}")
    return np.frombuffer(values, np.uint8).reshape(shape)
