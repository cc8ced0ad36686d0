"""How the values of a tensor that are not zero are written: as they are, or by few magnitudes.

A form has a part in the fields, which is read before any memory is taken, and a part in the stream
of codes. `code` is the same for both directions, as a `Coder` is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ellzero.codebook import MAX_VALUES, half_exponent, round_half
from ellzero.errors import InputError
from ellzero.packed.entropy import Coder, Integers, code_adaptive
from ellzero.packed.fields import Reader, varint, zigzag

MAX_EXPONENT = 2200  # beyond it every half is 0 or infinite in any type
MAX_MAGNITUDES = 127
"""Multiples of a grid's step, of either sign."""


@dataclass(frozen=True, eq=False)
class Raw:
    """Numbers as they are, a byte of all of them after the other; some of the bytes are coded.

    The bits of a floating number are rotated by one to the left, so that the highest byte is the
    exponent alone and the lowest bit the sign.

    Args:
        dtype: of the tensor.
        exponent: where the numbers are float16 times 2^exponent, the exponent; None elsewhere.
        count: how many numbers.
        plain: each byte of the numbers (count,), from the lowest on, None for those that are coded.
    """

    dtype: torch.dtype
    exponent: int | None
    count: int
    plain: tuple[np.ndarray | None, ...]

    signs = (False, True)
    """All are positive, as far as kinds go: what is coded is whether a number is zero."""

    @classmethod
    def of(cls, values: Tensor, *, halves: bool) -> Raw:
        """What values (v,) are written as; halves are exact only where `are_halves` says so."""
        exponent = half_exponent(values) if halves else None
        planes = _planes(values, exponent)
        plain = (None if bits_learned(p, 256) + 8 < 8 * len(p) else p for p in planes)
        return cls(values.dtype, exponent, len(values), tuple(plain))

    def bits(self, values: Tensor) -> float:
        """Bits that values take, in fields and codes together."""
        pairs = zip(self.plain, _planes(values, self.exponent), strict=True)
        return sum(8 * len(p) if kept is not None else bits_learned(p, 256) for kept, p in pairs)

    def fields(self) -> bytes:
        start = b"" if self.exponent is None else varint(zigzag(self.exponent))
        coded = sum(1 << index for index, plane in enumerate(self.plain) if plane is None)
        return start + bytes([coded])

    def values(self) -> bytes:
        return b"".join(plane.tobytes() for plane in self.plain if plane is not None)

    @classmethod
    def read(cls, reader: Reader, dtype: torch.dtype, count: int, *, halves: bool) -> Raw:
        exponent = read_exponent(reader, dtype) if halves else None
        size = 2 if halves else dtype.itemsize
        coded = reader.byte()
        if coded >> size:
            raise InputError(f"{coded:#x} names more bytes than {dtype} has")
        plain = (
            None if coded >> index & 1 else np.frombuffer(reader.take(count), np.uint8)
            for index in range(size)
        )
        return cls(dtype, exponent, count, tuple(plain))

    def code(self, coder: Coder, kinds: Integers, values: Tensor | None) -> Tensor:
        """The values (v,) of which some bytes are plain, and the others in the stream."""
        planes = None if values is None else _planes(values, self.exponent)
        if len(kinds) != self.count:
            raise InputError(f"{self.count} values are announced where {len(kinds)} are not zero")
        columns = np.empty((self.count, len(self.plain)), np.uint8)
        for index, plane in enumerate(self.plain):
            if plane is None:
                given = None if planes is None else planes[index]
                plane = code_adaptive(coder, 256, self.count, given)
            columns[:, index] = plane
        if values is not None:
            return values
        return _from_planes(columns, self.dtype, self.exponent)


@dataclass(frozen=True, eq=False)
class Few:
    """Few distinct values: codes of those that are negative, then of those that are positive.

    Args:
        negative: (k,) in the order of their codes.
        positive: (l,) in the order of their codes.
        listing: the bytes that tell them.
    """

    negative: Tensor
    positive: Tensor
    listing: bytes

    @property
    def signs(self) -> tuple[bool, bool]:
        """Whether there are negative values, and positive ones."""
        return len(self.negative) > 0, len(self.positive) > 0

    @classmethod
    def of_book(cls, values: Tensor, *, halves: bool) -> Few:
        """The form of a codebook: values (k,), ascending, not zero."""
        negative = values < 0
        counts = varint(int(negative.sum())) + varint(int((~negative).sum()))
        if halves:
            exponent = half_exponent(values)
            listing = varint(zigzag(exponent)) + _as_halves(values, exponent).tobytes()
        else:
            listing = bits_of(values).tobytes()
        return cls(values[negative], values[~negative], counts + listing)

    @classmethod
    def of_grid(cls, scale: Tensor, lowest: int, highest: int) -> Few:
        """The form of multiples of a step: from `lowest` <= 0 to `highest` >= 0 times it."""
        listing = bits_of(scale[None]).tobytes() + bytes([-lowest, highest])
        return cls(_multiples(scale, -1, -lowest), _multiples(scale, 1, highest), listing)

    @classmethod
    def read_book(cls, reader: Reader, dtype: torch.dtype, *, halves: bool) -> Few:
        negative, positive = reader.varint(), reader.varint()
        count = negative + positive
        if count > MAX_VALUES:
            raise InputError(f"a codebook has {count} values")
        if halves:
            exponent = read_exponent(reader, dtype)
            values = from_halves(np.frombuffer(reader.take(2 * count), "<f2"), exponent, dtype)
        else:
            values = from_bits(reader.take(dtype.itemsize * count), dtype)
        return cls(values[:negative], values[negative:], b"")

    @classmethod
    def read_grid(cls, reader: Reader, dtype: torch.dtype) -> Few:
        if not dtype.is_floating_point:
            raise InputError(f"{dtype} values are written as multiples of a step")
        scale = from_bits(reader.take(dtype.itemsize), dtype)[0]
        lowest, highest = reader.byte(), reader.byte()
        if max(lowest, highest) > MAX_MAGNITUDES:
            raise InputError(f"a grid reaches from -{lowest} to {highest}")
        return cls(_multiples(scale, -1, lowest), _multiples(scale, 1, highest), b"")

    def fields(self) -> bytes:
        return b""

    def values(self) -> bytes:
        return self.listing

    def code(self, coder: Coder, kinds: Integers, values: Tensor | None) -> Tensor:
        """The values of kinds (v,), -1 for a negative one and 1 for a positive one."""
        coded = torch.zeros(len(kinds), dtype=self.negative.dtype)
        for kind, table in ((-1, self.negative), (1, self.positive)):
            places = torch.from_numpy(kinds == kind)
            given = None if values is None else codes_of(values[places], table)
            codes = code_adaptive(coder, len(table), int(places.sum()), given)
            if len(codes):
                coded[places] = table[torch.from_numpy(codes).long()]
        return coded

    def bits(self, values: Tensor) -> float:
        """Bits that values take, in listing and codes together, with their signs."""
        bits = 8.0 * len(self.listing)
        for table, side in ((self.negative, values < 0), (self.positive, values >= 0)):
            bits += bits_learned(codes_of(values[side], table), len(table))
        return bits


def codes_of(values: Tensor, table: Tensor) -> Integers:
    """Where in a table, in ascending or descending order, values stand: uint8 (n,)."""
    if len(table) < 2:
        return np.zeros(len(values), np.uint8)
    exact = torch.float64 if values.is_floating_point() else torch.int64
    rising = table[0] < table[-1]
    ordered = table.to(exact) if rising else table.to(exact).flip(0)
    codes = torch.searchsorted(ordered, values.to(exact))
    return (codes if rising else len(table) - 1 - codes).to(torch.uint8).numpy()


def bits_learned(symbols: Integers, size: int) -> float:
    """Bits that `code_adaptive` takes, but for the blocks: log2 of a Dirichlet-multinomial."""
    if size < 2:
        return 0.0
    counts = torch.from_numpy(np.bincount(symbols, minlength=size).astype(np.float64))
    half = torch.tensor(0.5, dtype=torch.float64)
    seen = torch.lgamma(counts + half).sum() - size * torch.lgamma(half)
    total = torch.lgamma(counts.sum() + size / 2) - torch.lgamma(size * half)
    return float(total - seen) / np.log(2)


def are_halves(values: Tensor) -> bool:
    """Whether values are float16 times a power of two, in a type that has more bits."""
    small = values.is_floating_point() and values.element_size() > 2 and len(values) > 0
    return small and torch.equal(round_half(values), values)


def bits_of(values: Tensor) -> np.ndarray:
    """The bits of values (n,) as unsigned integers, the low byte first."""
    return values.contiguous().view(torch.uint8).numpy().view(f"<u{values.element_size()}")


def from_bits(content: bytes, dtype: torch.dtype) -> Tensor:
    """Numbers from their bits; a bool is 0 or 1.

    Raises:
        InputError: what is no finite number.
    """
    unsigned = np.frombuffer(content, f"<u{dtype.itemsize}").astype(f"u{dtype.itemsize}")
    if dtype == torch.bool and (unsigned > 1).any():
        raise InputError("a bool is neither 0 nor 1")
    return _finite(torch.from_numpy(unsigned.view(np.uint8)).view(dtype))


def from_halves(halves: np.ndarray, exponent: int, dtype: torch.dtype) -> Tensor:
    """float16 times a power of two.

    Raises:
        InputError: what is not finite.
    """
    with np.errstate(all="ignore"):
        exact = torch.from_numpy(np.ldexp(halves.astype(np.float64), exponent))
    return _finite(exact.to(dtype))


def read_exponent(reader: Reader, dtype: torch.dtype) -> int:
    """The exponent that halves of a tensor share.

    Raises:
        InputError: one that makes no sense, or a type that is no floating one.
    """
    exponent = reader.signed()
    if not dtype.is_floating_point:
        raise InputError(f"{dtype} values are written as halves")
    if abs(exponent) > MAX_EXPONENT:
        raise InputError(f"values have the exponent {exponent}")
    return exponent


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise InputError("a value is NaN or infinite")
    return values


def _as_halves(values: Tensor, exponent: int) -> np.ndarray:
    return np.ldexp(values.double().numpy(), -exponent).astype("<f2")


def _multiples(scale: Tensor, sign: int, count: int) -> Tensor:
    """1 to count times a step, of a sign, in float64 and then rounded."""
    return _finite((torch.arange(1, count + 1) * (sign * scale.double())).to(scale.dtype))


def _planes(values: Tensor, exponent: int | None) -> list[np.ndarray]:
    """The bytes of numbers, from the lowest on, each (v,)."""
    if exponent is not None:
        values = torch.from_numpy(_as_halves(values, exponent).astype(np.float16))
    bits = bits_of(values)
    if values.is_floating_point():
        bits = bits << 1 | bits >> (8 * bits.itemsize - 1)
    return [np.ascontiguousarray(p) for p in bits.view(np.uint8).reshape(-1, bits.itemsize).T]


def _from_planes(columns: np.ndarray, dtype: torch.dtype, exponent: int | None) -> Tensor:
    size = columns.shape[1]
    bits = np.ascontiguousarray(columns).view(f"<u{size}").reshape(-1)
    if dtype.is_floating_point:
        bits = bits >> 1 | bits << (8 * size - 1)
    if exponent is None:
        return from_bits(bits.tobytes(), dtype)
    return from_halves(bits.view("<f2"), exponent, dtype)
