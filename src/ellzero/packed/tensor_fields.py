"""One tensor in a packed file: what its fields announce, and its elements in the stream.

First come the kinds of the elements: which are zero and, where the values are few, which are
negative and which positive. Then come the values of those that are not zero, in one of the forms.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.packed.entropy import Coder, Integers, code_counted
from ellzero.packed.fields import Reader, varint
from ellzero.packed.forms import Few, Raw
from ellzero.packed.lines import MAX_UNITS, Evidence, Geometry, code_lines

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
)
"""Types that can be written; the position is the type's number in the file."""

SAME = 0xF0
"""The first byte of a tensor that is an earlier one once more."""

IN_LINES = 8
"""Set in the first byte where the kinds are coded line by line."""

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 1 << 36  # numbers reckoned with stay below 2^53
MAX_SIDE = 1 << 20  # of the images that lines are places of


class Form(IntEnum):
    """How the values that are not zero are written."""

    RAW = 0
    HALVES = 1
    BOOK = 2
    BOOK_OF_HALVES = 3
    GRID = 4
    INDICES = 5


SIGNED = (Form.BOOK, Form.BOOK_OF_HALVES, Form.GRID)
"""Forms of which the codes say what is negative."""


@dataclass(frozen=True, eq=False)
class Lines:
    """That kinds are coded line by line, and how.

    Args:
        geometry: what the lines are.
        places: the tensor, by its number, that tells the places of the lines; None: 0, 1, 2, ...
        weights: of the four measures, in 64ths; None where no element, or every one, is zero.
    """

    geometry: Geometry
    places: int | None = None
    weights: tuple[int, ...] | None = None

    def fields(self) -> bytes:
        start = bytes([self.geometry.rows])
        start += varint(self.geometry.height) + varint(self.geometry.width)
        start += varint(0 if self.places is None else self.places + 1)
        return start if self.weights is None else start + struct.pack("4b", *self.weights)

    @classmethod
    def read(cls, reader: Reader, earlier: Sequence[Announced], *, mixed: bool) -> Lines:
        rows, height, width = reader.byte(), reader.varint(), reader.varint()
        if rows > 1 or not 0 < height <= MAX_SIDE or not 0 < width <= MAX_SIDE:
            raise InputError(f"lines are {rows}, of images of {height} x {width}")
        number = reader.varint()
        if number > len(earlier) or (number and earlier[number - 1].form is not Form.INDICES):
            raise InputError(f"places of lines are those of tensor {number}, which has no indices")
        weights = struct.unpack("4b", reader.take(4)) if mixed else None
        geometry = Geometry(rows=bool(rows), height=height, width=width)
        return cls(geometry, number - 1 if number else None, weights)


@dataclass(frozen=True, eq=False)
class Announced:
    """What a file says about a tensor, before any memory is taken for its elements.

    Args:
        dtype, shape: of the tensor.
        zeros: how many of its elements are zero; of indices, those of the bitmap.
        negatives: how many are negative; None where that is not told.
        lines: how the kinds are coded; None: by their counts.
        form: of the values.
        values: the values themselves, in that form; None for indices.
        same: the earlier tensor, by its number, that it is once more.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    form: Form
    zeros: int
    negatives: int | None = None
    lines: Lines | None = None
    values: Raw | Few | None = None
    same: int | None = None

    @property
    def elements(self) -> int:
        """Elements of the tensor, or of the bitmap of its indices."""
        return math.prod(self.shape) + (self.zeros if self.form is Form.INDICES else 0)

    @property
    def memory_bytes(self) -> int:
        """Memory that the tensor takes; an element counts as 4 bytes at least."""
        return self.elements * max(self.dtype.itemsize, 4)

    @property
    def line_shape(self) -> tuple[int, int]:
        """How many lines there are, and units in each."""
        if self.lines is None or self.same is not None:
            return 0, 0
        first = self.shape[0]
        rest = math.prod(self.shape[1:])
        return (first, rest) if self.lines.geometry.rows else (rest, first)

    def fields(self) -> bytes:
        """The fields, without the values."""
        if self.same is not None:
            return bytes([SAME]) + varint(self.same)
        first = DTYPES.index(self.dtype) << 4 | (self.lines is not None) << 3 | self.form
        fields = bytes([first]) + varint(len(self.shape)) + b"".join(map(varint, self.shape))
        fields += varint(self.zeros)
        if self.lines is not None:
            fields += self.lines.fields()
        elif self.negatives is not None:
            fields += varint(self.negatives)
        return fields + (b"" if self.values is None else self.values.fields())

    def value_bytes(self) -> bytes:
        """What follows the fields: values that are not coded."""
        return b"" if self.values is None or self.same is not None else self.values.values()

    def code(self, coder: Coder, tensors: Sequence[Tensor], tensor: Tensor | None = None) -> Tensor:
        """The tensor: written, or read.

        Args:
            coder: of the stream.
            tensors: those before.
            tensor: what an encoder writes.
        """
        if self.same is not None:
            return tensors[self.same].clone()
        if self.values is None:
            bitmap = None
            if tensor is not None:
                bitmap = np.zeros(self.elements, np.uint8)
                bitmap[tensor.numpy()] = 1
            counts = np.array([self.zeros, self.elements - self.zeros])
            return torch.from_numpy(np.flatnonzero(code_counted(coder, counts, bitmap)))
        flat = None if tensor is None else tensor.flatten()
        kinds = self._code_kinds(coder, tensors, None if flat is None else kinds_of(flat))
        there = kinds != 0
        mask = torch.from_numpy(there)
        given = None if flat is None else flat[mask]
        values = self.values.code(coder, kinds[there], given)
        if self.zeros == 0:
            return values.reshape(self.shape)
        elements = torch.zeros(len(kinds), dtype=self.dtype)
        elements[mask] = values
        return elements.reshape(self.shape)

    def _code_kinds(
        self, coder: Coder, tensors: Sequence[Tensor], kinds: Integers | None
    ) -> Integers:
        """-1, 0 and 1 (n,); without signs 0 and 1."""
        assert self.values is not None
        signs = self.values.signs
        if kinds is not None and not all(signs):
            kinds = np.abs(kinds) * (-1 if signs[0] else 1)
        if self.lines is None:
            nonzeros = self.elements - self.zeros
            negatives = nonzeros * signs[0] if self.negatives is None else self.negatives
            counts = np.array([negatives, self.zeros, nonzeros - negatives])
            given = None if kinds is None else kinds + 1
            return (code_counted(coder, counts, given) - 1).astype(np.int8)
        geometry = self.lines.geometry
        count, units = self.line_shape
        places = np.arange(count)
        if self.lines.places is not None:
            places = tensors[self.lines.places].numpy()
        nonzeros = self.elements - self.zeros
        evidence = Evidence((count, units), nonzeros, geometry.neighbours(places))
        first = (count, units) if geometry.rows else (units, count)
        given = None if kinds is None else geometry.lines(kinds.reshape(first))
        coded = code_lines(coder, evidence, self.lines.weights, signs, given, (count, units))
        if np.count_nonzero(coded) != self.elements - self.zeros:
            raise InputError("the codes do not have the zeros that are announced")
        return geometry.lines(coded).reshape(-1)


def kinds_of(values: Tensor) -> Integers:
    """-1, 0 and 1 for what is negative, zero and positive: int8 (n,)."""
    return (values > 0).numpy().view(np.int8) - (values < 0).numpy().view(np.int8)


def announced(reader: Reader, earlier: Sequence[Announced]) -> Announced:
    """Read what the file says about the next tensor.

    Args:
        reader: of the file.
        earlier: what it said about those before.

    Raises:
        InputError: what no writer says.
    """
    first = reader.byte()
    if first == SAME:
        number = reader.varint()
        if number >= len(earlier):
            raise InputError(f"a tensor is said to be tensor {number} of {len(earlier)} before it")
        return replace(earlier[number], same=number)
    if first >> 4 >= len(DTYPES) or first & 7 not in tuple(Form):
        raise InputError(f"a tensor begins with {first:#04x}, which means nothing")
    dtype, form = DTYPES[first >> 4], Form(first & 7)
    dimensions = reader.varint()
    if dimensions > MAX_DIMENSIONS:
        raise InputError(f"a tensor has {dimensions} dimensions")
    shape = tuple(reader.varint() for _ in range(dimensions))
    if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise InputError(f"a tensor has the shape {shape}")
    elements, zeros = math.prod(shape), reader.varint()
    if form is Form.INDICES:
        if dtype != torch.int64 or dimensions != 1 or first & IN_LINES:
            raise InputError("indices are no int64 in one dimension")
        if zeros > MAX_ELEMENTS:
            raise InputError(f"{elements} indices are in a bitmap with {zeros} zeros")
        return Announced(dtype, shape, form, zeros)
    if zeros > elements:
        raise InputError(f"{zeros} of {elements} elements are zero")
    lines = negatives = None
    if first & IN_LINES:
        if not dimensions or zeros == elements:
            raise InputError(f"a tensor of the shape {shape} is cut into lines")
        lines = Lines.read(reader, earlier, mixed=0 < zeros < elements)
    elif form in SIGNED:
        negatives = reader.varint()
        if zeros + negatives > elements:
            raise InputError(f"{negatives} of {elements - zeros} elements are negative")
    values = _read_values(reader, dtype, form, elements - zeros)
    tensor = Announced(dtype, shape, form, zeros, negatives, lines, values)
    _check(tensor, earlier)
    return tensor


def _read_values(reader: Reader, dtype: torch.dtype, form: Form, count: int) -> Raw | Few:
    if form is Form.GRID:
        return Few.read_grid(reader, dtype)
    if form in SIGNED:
        return Few.read_book(reader, dtype, halves=form is Form.BOOK_OF_HALVES)
    return Raw.read(reader, dtype, count, halves=form is Form.HALVES)


def _check(tensor: Announced, earlier: Sequence[Announced]) -> None:
    """What fields say about each other."""
    assert tensor.values is not None
    signs = tensor.values.signs
    negatives, nonzeros = tensor.negatives, tensor.elements - tensor.zeros
    if (nonzeros and not any(signs)) or (
        negatives is not None
        and ((negatives and not signs[0]) or (negatives < nonzeros and not signs[1]))
    ):
        raise InputError(f"{nonzeros} elements are not zero, and there are no values for them")
    if tensor.lines is None:
        return
    count, units = tensor.line_shape
    if units > MAX_UNITS:
        raise InputError(f"lines of {units} elements; expected at most {MAX_UNITS}")
    places = tensor.lines.places
    if places is not None and earlier[places].shape != (count,):
        raise InputError(f"{count} lines have the places {earlier[places].shape}")
