"""Fields of a packed file: numbers of any size, and a reader that never reads past the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ellzero.errors import InputError

MAX_LOW_BITS = 40


def varint(value: int) -> bytes:
    """A number >= 0, seven bits a byte, the low ones first; all bytes but the last are >= 128.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def zigzag(value: int) -> int:
    """A number of either sign as one >= 0: 0, -1, 1, -2, ... are 0, 1, 2, 3, ...

    Example:
        >>> zigzag(-2)
        3
    """
    return 2 * value if value >= 0 else -2 * value - 1


def rice(numbers: Sequence[int]) -> bytes:
    """Numbers >= 0 of similar size in few bits each: Golomb-Rice codes.

    A byte says how many low bits r each number has as they are. Then follow, the low bits of each
    byte first: for each number n >> r ones, a zero, and the r low bits of n, the lowest first. The
    last byte is filled with zeros.

    Example:
        >>> rice([1, 0, 2]).hex()  # r = 0, then 10 0 110
        '0019'
    """

    def bits_with(low: int) -> int:
        return sum(number >> low for number in numbers) + low * len(numbers)

    low = min(range(MAX_LOW_BITS + 1), key=bits_with)
    bits: list[int] = []
    for number in numbers:
        bits += [1] * (number >> low) + [0] + [number >> i & 1 for i in range(low)]
    return bytes([low]) + np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


class Reader:
    """Reads a file's fields one after the other.

    Example:
        >>> reader = Reader(bytes([7, 0xAC, 2]))
        >>> reader.byte(), reader.varint(), reader.left
        (7, 300, 0)
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    @property
    def left(self) -> int:
        """How many bytes have not been read."""
        return len(self._content) - self._position

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            InputError: there are fewer.
        """
        if count > self.left:
            raise InputError(f"{count} bytes are announced where {self.left} are left")
        self._position += count
        return self._content[self._position - count : self._position]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """The next number that `varint` wrote, below 2^63."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise InputError("a number has more than 63 bits")

    def rice(self, count: int) -> list[int]:
        """The next numbers that `rice` wrote."""
        low = self.byte()
        if low > MAX_LOW_BITS:
            raise InputError(f"numbers have {low} low bits")
        bits = self._bits()
        numbers = []
        for _ in range(count):
            high = 0
            while next(bits):
                high += 1
            numbers.append(high << low | sum(next(bits) << i for i in range(low)))
        return numbers

    def _bits(self) -> Iterator[int]:
        while True:
            byte = self.byte()
            yield from (byte >> i & 1 for i in range(8))

    def signed(self) -> int:
        """The next number of either sign, as `zigzag` folds it."""
        folded = self.varint()
        return folded // 2 if folded % 2 == 0 else -(folded // 2) - 1
