"""Constant arrays of generated C: their smallest types, their bytes, their text."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill, indent

import numpy as np

from ellzero.errors import InputError

_UNSIGNED = (np.uint8, np.uint16, np.uint32)
_C_TYPES = {"float32": "float", "int8": "int8_t", "int32": "int32_t"} | {
    np.dtype(t).name: f"{np.dtype(t).name}_t" for t in _UNSIGNED
}


@dataclass(frozen=True, eq=False)
class Array:
    """One `static const` array: a name, and values whose numpy type is its C type."""

    name: str
    values: np.ndarray

    @property
    def c_type(self) -> str:
        """The C type of an element."""
        return _C_TYPES[self.values.dtype.name]

    @property
    def size_bytes(self) -> int:
        """Bytes that the array takes in flash; C has none of length 0."""
        return max(self.values.nbytes, self.values.itemsize)

    def source(self) -> str:
        """The definition, in lines of about 100 characters."""
        flat = self.values.ravel()
        if not len(flat):
            flat = np.zeros(1, self.values.dtype)
        if self.values.dtype == np.float32:
            words = [c_float(value) for value in flat.tolist()]
        else:
            words = [str(value) for value in flat.tolist()]
        body = indent(fill(", ".join(words) + ",", 94, break_on_hyphens=False), "    ")
        return f"static const {self.c_type} {self.name}[{len(flat)}] = {{\n{body}\n}};\n"


def unsigned(name: str, values: Sequence[int] | np.ndarray) -> Array:
    """An array of the smallest unsigned type that holds all values."""
    exact = np.asarray(values, dtype=np.int64)
    top = int(exact.max(initial=0))
    dtype = next(t for t in _UNSIGNED if top <= np.iinfo(t).max)
    return Array(name, exact.astype(dtype))


def floats(name: str, values: np.ndarray) -> Array:
    """An array of float."""
    return Array(name, np.ascontiguousarray(values, dtype=np.float32))


def c_float(value: float) -> str:
    """A number, rounded to float32, as a C constant of it: nine significant digits say all.

    Raises:
        InputError: it is not finite as float32.
    """
    rounded = ctypes.c_float(value).value
    if not math.isfinite(rounded):
        raise InputError(f"the number {value:g} is none as float32; C cannot hold it")
    text = f"{rounded:.9g}"
    return f"{text}f" if any(mark in text for mark in ".e") else f"{text}.0f"
