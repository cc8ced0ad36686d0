"""Arrays of the user's, a NumPy .npz file, as a data set; nothing in it is unpickled."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ellzero.data.archive import GIB, looked_for, read_files
from ellzero.data.augment import Augment
from ellzero.data.data import Data
from ellzero.data.split import SPLIT_SEED, held_out
from ellzero.errors import InputError
from ellzero.preprocess import Preprocess

MOST_BYTES = 16 * GIB
"""The most that all arrays of a file may take, decompressed."""

MOST_DIMENSIONS = 8
"""The most dimensions of an array."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_PARTS = {
    "": "train",
    "_train": "train",
    "_validation": "validation",
    "_val": "validation",
    "_test": "test",
}  # how the names of two arrays end -> the part that they are
_NAMES = [letter + ending for ending in _PARTS for letter in "xy"]
_TYPES = {  # of the file -> of torch, each exact but for float64
    "bool": "uint8",
    "uint8": "uint8",
    "int8": "int8",
    "int16": "int16",
    "uint16": "int32",
    "int32": "int32",
    "uint32": "int64",
    "int64": "int64",
    "float16": "float32",
    "float32": "float32",
    "float64": "float32",
}


def npz(
    *,
    path: Path | str,
    validation: float = 0.1,
    test: float = 0.1,
    standardize: str = "channel",
    classes: Sequence[str] = (),
    augment: Mapping[str, Any] | Augment | None = None,
) -> Data:
    """The arrays of a .npz file: inputs (N, F) or (N, C, ...), targets of as many examples.

    They are named `x` and `y`, or `x_train` and `y_train`; beside these may stand `x_validation`
    (or `x_val`) and `x_test` with theirs. A part that is not there is split off the training
    arrays. Integers in `y` are labels (int64), floating numbers the targets of a regression
    (float32), in the shape of the network's outputs. Floating inputs become float32, float64 is
    rounded to it; integers stay what they are, or become a wider type that torch has.

    Args:
        path: the file, its arrays at most 16 GiB.
        validation: fraction of the training examples for validation, of each class alike.
        test: the same for testing; 0: no test part.
        standardize: what gets mean 0 and deviation 1 over the training examples: "channel", each
            index of dimension 1; "all", all values alike; "none": integers are tokens, int64.
        classes: names of the classes.
        augment: changes of training inputs, see `ellzero.Augment`; `gain` and `noise` alone where
            inputs are (N, F), none for tokens.

    Raises:
        InputError: no such file, or a damaged one; an array of another name or type, or without its
            partner; parts that do not go together; too few examples.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "waves.npz")
        ...     np.savez(path, x=np.zeros((20, 1, 8)), y=np.arange(20) % 2)
        ...     data = npz(path=path, classes=["flat", "level"])
        >>> [part.examples for part in data.parts]
        [16, 2, 2]
    """
    if standardize not in ("channel", "all", "none"):
        raise InputError(f"standardize is {standardize!r}; expected channel, all or none")
    parts = _parts(Path(path), keep_integers=standardize != "none")
    _split(parts, {"validation": validation, "test": test})
    inputs, targets = parts["train"]
    if classes and targets.is_floating_point():
        raise InputError(
            f"{path} has floating numbers in y, so there are no classes to name; "
            "save labels as integers"
        )
    preprocess = None
    if standardize != "none":
        preprocess = Preprocess.standardizing(inputs, per_channel=standardize == "channel")
    is_tokens = standardize == "none" and not inputs.is_floating_point()
    known = () if is_tokens else ("gain", "noise")
    if inputs.ndim > 2 and not is_tokens:
        known = ("shift", "flip", "crop", "speed", *known)
    return Data(
        parts["train"],
        parts["validation"],
        parts.get("test"),
        preprocess=preprocess,
        augment=Augment.parse(augment, known),
        classes=classes or None,
    )


def _parts(path: Path, *, keep_integers: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """The parts that the file has, as inputs and targets that go together."""
    arrays = _read(path, keep_integers)
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for ending, part in _PARTS.items():
        x, y = f"x{ending}", f"y{ending}"
        if x not in arrays and y not in arrays:
            continue
        if x not in arrays or y not in arrays:
            lacks, has = (x, y) if y in arrays else (y, x)
            raise InputError(f"{path} has {has} and no {lacks}; save both")
        if part in parts:
            raise InputError(f"{path} has the {part} examples twice, as {x} too; keep one of them")
        pair = arrays[x], arrays[y]
        if len(pair[0]) != len(pair[1]):
            raise InputError(f"{path}: {x} has {len(pair[0])} examples and {y} {len(pair[1])}")
        if pair[0].ndim < 2:
            raise InputError(
                f"{path}: {x} has the shape {tuple(pair[0].shape)}; expected (N, features) or "
                "(N, channels, ...)"
            )
        for name, tensor, first in zip((x, y), pair, parts.get("train", pair), strict=True):
            if tensor.shape[1:] != first.shape[1:] or tensor.dtype != first.dtype:
                raise InputError(
                    f"{path}: {name} is {_kind(tensor)}; that of the training examples "
                    f"{_kind(first)}; expected the same"
                )
        parts[part] = pair
    if "train" not in parts:
        raise InputError(f"{path} has no training examples; save x and y, or x_train and y_train")
    return parts


def _kind(tensor: Tensor) -> str:
    shape = f"({', '.join(map(str, ('N', *tensor.shape[1:])))})"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"


def _split(parts: dict[str, tuple[Tensor, Tensor]], fractions: Mapping[str, float]) -> None:
    """Split what is missing off the training examples, by its fraction of them."""
    missing = {part: fraction for part, fraction in fractions.items() if part not in parts}
    x, y = parts["train"]
    is_label = y.ndim == 1 and not y.is_floating_point()
    strata = y.numpy() if is_label else np.zeros(len(y), np.int64)
    indices = held_out(strata, missing, SPLIT_SEED)
    for part, rows in zip(("train", *missing), indices, strict=True):
        if len(rows) or part != "test":
            parts[part] = x[rows], y[rows]


def _read(path: Path, keep_integers: bool) -> dict[str, Tensor]:
    """All arrays of the file, by name."""
    if not path.is_file():
        raise InputError(f"{path} is no file{looked_for(path)}")
    try:
        with path.open("rb") as file:
            start = file.read(len(npy.MAGIC_PREFIX))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if start == npy.MAGIC_PREFIX:
        raise InputError(f"{path} is a single array; save inputs and targets by numpy.savez")
    if not start.startswith(b"PK"):
        raise InputError(f"{path} is no .npz file, as numpy.savez writes it")

    def wanted(member: str) -> bool:
        if member not in [f"{name}.npy" for name in _NAMES]:
            known = ", ".join(_NAMES)
            raise InputError(f"{path} has {member!r}, which is not used; known arrays: {known}")
        return True

    arrays = {}
    for member, content in read_files(path, wanted, largest=MOST_BYTES, total=MOST_BYTES):
        name = member.removesuffix(".npy")
        array = _array(f"{path}: {name}", content)
        as_type = _type(f"{path}: {name}", array.dtype, name[0], keep_integers)
        with np.errstate(over="ignore"):  # what is infinite as float32, `Data` refuses
            arrays[name] = torch.from_numpy(array.astype(as_type, order="C"))
    return arrays


def _type(where: str, dtype: np.dtype[Any], letter: str, keep_integers: bool) -> str:
    """The type that an array becomes."""
    as_type = _TYPES.get(dtype.name)
    if as_type is None or (letter == "y" and dtype.name == "bool"):
        raise InputError(f"{where} is of {dtype.name}; expected integers or floating numbers")
    if as_type == "float32" or (letter == "x" and keep_integers):
        return as_type
    return "int64"


def _array(where: str, content: bytes) -> np.ndarray:
    """An array as it lies in the content of a .npy file, checked before it is made."""
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        shape, is_fortran, dtype = _HEADERS[version](stream)
    except Exception as error:  # numpy hands the header to Python's parser, which raises anything
        raise InputError(f"{where} has no header of an array: {error!r}") from error
    if dtype.hasobject:
        raise InputError(f"{where} has Python objects, which are not unpickled; save numbers")
    start = stream.tell()
    size = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or size != len(content) - start:
        raise InputError(
            f"{where} announces {dtype.name} of shape {shape}, {size:,} bytes; it has "
            f"{len(content) - start:,}"
        )
    if not size or len(shape) not in range(1, MOST_DIMENSIONS + 1):
        raise InputError(
            f"{where} has the shape {shape}; expected values, in 1 to {MOST_DIMENSIONS} dimensions"
        )
    array = np.frombuffer(content, dtype, offset=start)
    return array.reshape(shape, order="F" if is_fortran else "C")
