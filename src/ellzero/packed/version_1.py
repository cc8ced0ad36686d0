"""Tensors of packed files of version 1, which are read and no longer written; docs/format.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ellzero.codebook import MAX_VALUES
from ellzero.errors import InputError
from ellzero.packed.entropy import Decoder, code_counted
from ellzero.packed.fields import Reader
from ellzero.packed.forms import from_bits, from_halves, read_exponent
from ellzero.packed.tensor_fields import DTYPES, MAX_DIMENSIONS, MAX_ELEMENTS

LISTED = 32  # from so many int8 values on, a bitmap of 32 bytes says which ones there are


class Layout(IntEnum):
    """What stands where."""

    DENSE = 0
    SPARSE = 1
    CODEBOOK = 2
    INDICES = 3


class Encoding(IntEnum):
    """How values are written."""

    RAW = 0
    HALF = 1
    INT8 = 2


@dataclass(frozen=True, eq=False)
class Announced:
    """What a file says about a tensor, before any memory is taken for its elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: Layout
    values: Tensor
    """All values; those of the mask; or the codebook."""
    counts: tuple[int, ...]
    """How often each symbol occurs, zeros first; nothing where there are no symbols."""

    @property
    def memory_bytes(self) -> int:
        """Memory that the tensor takes; an element counts as 4 bytes at least."""
        elements = max(math.prod(self.shape), sum(self.counts))
        return elements * max(self.dtype.itemsize, 4)

    def code(self, decoder: Decoder, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor itself, its symbols taken from the stream; those before do not matter."""
        if self.layout is Layout.DENSE:
            return self.values.reshape(self.shape)
        symbols = torch.from_numpy(code_counted(decoder, np.array(self.counts, np.int64), None))
        if self.layout is Layout.INDICES:
            return symbols.nonzero()[:, 0]
        if self.layout is Layout.CODEBOOK:
            table = torch.cat([torch.zeros(1, dtype=self.dtype), self.values])
            return table[symbols.long()].reshape(self.shape)
        tensor = torch.zeros(len(symbols), dtype=self.dtype)
        tensor[symbols != 0] = self.values
        return tensor.reshape(self.shape)


def announced(reader: Reader) -> Announced:
    """Read what the file says about the next tensor.

    Raises:
        InputError: what no writer says.
    """
    first = reader.byte()
    if first >> 4 >= len(DTYPES) or first & 3 not in tuple(Encoding):
        raise InputError(f"a tensor begins with {first:#04x}, which means nothing")
    dtype, layout, encoding = DTYPES[first >> 4], Layout(first >> 2 & 3), Encoding(first & 3)
    if encoding is not Encoding.RAW and not dtype.is_floating_point:
        raise InputError(f"{dtype} values are written as {encoding.name}")
    dimensions = reader.varint()
    if dimensions > MAX_DIMENSIONS:
        raise InputError(f"a tensor has {dimensions} dimensions")
    shape = tuple(reader.varint() for _ in range(dimensions))
    if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise InputError(f"a tensor has the shape {shape}")
    counts = _counts(reader, layout, math.prod(shape))
    if layout is Layout.INDICES and (
        dtype != torch.int64 or dimensions != 1 or encoding != Encoding.RAW
    ):
        raise InputError("indices are no int64 in one dimension")
    if encoding is Encoding.INT8:
        if layout is not Layout.CODEBOOK or len(counts) < 2:
            raise InputError("int8 values without a codebook")
        values = _read_integers(reader, dtype, len(counts) - 1)
    else:
        count = {
            Layout.DENSE: math.prod(shape),
            Layout.SPARSE: sum(counts[1:]),
            Layout.CODEBOOK: len(counts) - 1,
            Layout.INDICES: 0,
        }[layout]
        values = _read_values(reader, dtype, encoding, count)
    return Announced(dtype, shape, layout, values, counts)


def _counts(reader: Reader, layout: Layout, elements: int) -> tuple[int, ...]:
    if layout is Layout.DENSE:
        return ()
    number = reader.varint()
    if layout is Layout.CODEBOOK:
        if number > MAX_VALUES:
            raise InputError(f"a codebook has {number} values")
        counts = [number + 1 for number in reader.rice(number)]
        if sum(counts) > elements:
            raise InputError(f"the values of a codebook occur {sum(counts)} times in {elements}")
        return elements - sum(counts), *counts
    if layout is Layout.INDICES:
        if not elements <= number <= MAX_ELEMENTS:
            raise InputError(f"{elements} indices are in a bitmap of {number}")
        return number - elements, elements
    if number > elements:
        raise InputError(f"{number} of {elements} elements are zero")
    return number, elements - number


def _read_values(reader: Reader, dtype: torch.dtype, encoding: Encoding, count: int) -> Tensor:
    if encoding is Encoding.HALF:
        exponent = read_exponent(reader, dtype)
        return from_halves(np.frombuffer(reader.take(2 * count), "<f2"), exponent, dtype)
    return from_bits(reader.take(dtype.itemsize * count), dtype)


def _read_integers(reader: Reader, dtype: torch.dtype, count: int) -> Tensor:
    top = _read_values(reader, dtype, Encoding.RAW, 1).double()
    if count < LISTED:
        integers = np.frombuffer(reader.take(count), np.int8).astype(np.float64)
    else:
        bitmap = np.frombuffer(reader.take(32), np.uint8)
        integers = np.flatnonzero(np.unpackbits(bitmap, bitorder="little")) - 127.0
        if len(integers) != count:
            raise InputError(f"{len(integers)} int8 values are there instead of {count}")
    return (torch.from_numpy(integers) * (top / 127)).to(dtype)
