"""One tensor in a packed file: the smallest of several exact ways to write it, and back.

A tensor is announced by its type, its shape and a layout: all values in a row; a mask and the
values that are not zero; a symbol per element that stands for one of few values; or, for indices, a
bitmap. Masks and symbols go into the stream that all tensors share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from ellzero.codebook import MAX_VALUES, find_codebook, half_exponent, round_half
from ellzero.errors import InputError
from ellzero.packed.entropy import Decoder, Integers
from ellzero.packed.fields import Reader, rice, varint, zigzag
from ellzero.tensors import INTEGERS

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

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 1 << 38
MAX_EXPONENT = 2200  # beyond it every half is 0 or infinite in any type
LISTED = 32  # from so many int8 values on, a bitmap of 32 bytes says which ones there are
BITS = {1: torch.int8, **INTEGERS}
MASK = np.array([False, True])


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
class Encoded:
    """One way to write a tensor: its fields, its values, and what goes into the shared stream."""

    fields: bytes
    values: bytes
    symbols: Integers
    counts: Integers

    @property
    def size(self) -> float:
        """Bytes, with the entropy of the symbols."""
        counts = self.counts.astype(np.float64)
        bits = -(counts * np.log2(counts / max(counts.sum(), 1))).sum()
        return len(self.fields) + len(self.values) + bits / 8


def encode(tensor: Tensor) -> Encoded:
    """The smallest exact way to write a finite tensor, of any shape and a type in DTYPES."""
    return min(_candidates(tensor), key=lambda candidate: candidate.size)


def _candidates(tensor: Tensor) -> Iterator[Encoded]:
    flat = tensor.flatten()
    mask = flat != 0
    zeros = len(flat) - int(mask.sum())

    def candidate(
        layout: Layout,
        extra: bytes,
        values: tuple[Encoding, bytes],
        symbols: Tensor,
        counts: list[int],
    ) -> Encoded:
        encoding, content = values
        first = DTYPES.index(tensor.dtype) << 4 | layout << 2 | encoding
        shape = b"".join(map(varint, tensor.shape))
        fields = bytes([first]) + varint(tensor.ndim) + shape + extra
        # only symbols that occur are coded; the zero is the one that may be missing
        shift = 1 if counts and not counts[0] else 0
        occurring = np.array([count for count in counts if count], np.int64)
        return Encoded(fields, content, symbols.numpy() - shift, occurring)

    nothing = torch.zeros(0, dtype=torch.int16)
    yield candidate(Layout.DENSE, b"", _values(flat), nothing, [])
    yield candidate(
        Layout.SPARSE,
        varint(zeros),
        _values(flat[mask]),
        mask.to(torch.int16),
        [zeros, len(flat) - zeros],
    )
    book = find_codebook(flat)
    if book is not None:
        counts = torch.bincount(book.codes, minlength=len(book.values) + 1).tolist()
        extra = varint(len(book.values)) + rice([count - 1 for count in counts[1:]])
        yield candidate(Layout.CODEBOOK, extra, _values(book.values), book.codes, counts)
        if book.integers is not None and tensor.is_floating_point():
            integers = _integers(book.values, book.integers)
            yield candidate(Layout.CODEBOOK, extra, (Encoding.INT8, integers), book.codes, counts)
    if _are_indices(tensor):
        size = int(tensor[-1]) + 1
        bitmap = torch.zeros(size, dtype=torch.int16)
        bitmap[tensor] = 1
        counts = [size - len(tensor), len(tensor)]
        yield candidate(Layout.INDICES, varint(size), (Encoding.RAW, b""), bitmap, counts)


def _values(values: Tensor) -> tuple[Encoding, bytes]:
    """Values as halves where that is exact and smaller, else as they are."""
    small = values.is_floating_point() and values.element_size() > 2 and len(values) > 0
    if small and torch.equal(round_half(values), values):
        exponent = half_exponent(values)
        halves = np.ldexp(values.double().numpy(), -exponent).astype("<f2")
        return Encoding.HALF, varint(zigzag(exponent)) + halves.tobytes()
    return Encoding.RAW, _raw(values)


def _raw(values: Tensor) -> bytes:
    size = values.element_size()
    return values.view(BITS[size]).numpy().astype(f"<i{size}").tobytes()


def _integers(values: Tensor, integers: Tensor) -> bytes:
    """The largest magnitude, which is 127 times the scale, then which int8 there are."""
    top = _raw(values.abs().max()[None])
    if len(integers) < LISTED:
        return top + integers.numpy().tobytes()
    present = np.zeros(256, bool)
    present[integers.numpy().astype(int) + 127] = True
    return top + np.packbits(present, bitorder="little").tobytes()


def _are_indices(tensor: Tensor) -> bool:
    return (
        tensor.dtype == torch.int64
        and tensor.ndim == 1
        and len(tensor) > 0
        and int(tensor[0]) >= 0
        and bool((tensor.diff() > 0).all())
        and int(tensor[-1]) < 1000 * len(tensor)  # else the bitmap is no gain
    )


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

    def decode(self, decoder: Decoder) -> Tensor:
        """The tensor itself, its symbols taken from the stream."""
        if self.layout is Layout.DENSE:
            return self.values.reshape(self.shape)
        counts = np.array(self.counts, np.int64)
        occurring = counts > 0
        if self.layout is Layout.CODEBOOK:
            table = torch.cat([torch.zeros(1, dtype=self.dtype), self.values])
            bits = table.view(BITS[self.dtype.itemsize]).numpy()
            values = decoder.values(counts[occurring], bits[occurring])
            return torch.from_numpy(values).view(self.dtype).reshape(self.shape)
        mask = torch.from_numpy(decoder.values(counts[occurring], MASK[occurring]))
        if self.layout is Layout.INDICES:
            return mask.nonzero()[:, 0]
        tensor = torch.zeros(len(mask), dtype=self.dtype)
        tensor[mask] = self.values
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
    if not values.isfinite().all():
        raise InputError("a value is NaN or infinite")
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
        exponent = reader.signed()
        if abs(exponent) > MAX_EXPONENT:
            raise InputError(f"values have the exponent {exponent}")
        halves = np.frombuffer(reader.take(2 * count), "<f2").astype(np.float64)
        with np.errstate(all="ignore"):  # what is not finite is refused below
            values = torch.tensor(np.ldexp(halves, exponent)).to(dtype)
    else:
        size = dtype.itemsize
        content = np.frombuffer(reader.take(size * count), f"<i{size}").astype(f"i{size}")
        if dtype == torch.bool and (content & ~1).any():
            raise InputError("a bool is neither 0 nor 1")
        values = torch.tensor(content).view(dtype)
    return values


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
