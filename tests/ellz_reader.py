"""A second reader of packed files, written from docs/format.md alone: plain Python, no torch.

It shares nothing with the library's, down to the preset dictionary, which it takes from the page.
"""

import bisect
import json
import math
import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "format.md"
FORMATS = ("f", "d", "e", "bfloat16", "?", "B", "b", "h", "i", "q")
M64 = (1 << 64) - 1


def dictionary() -> bytes:
    """The preset dictionary as the page shows it."""
    found = re.search(
        r"## The preset dictionary\n.*?```text\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    assert found is not None
    return found[1].replace("\n", "").encode()


class Bytes:
    """The numbers of the page's first table."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, count: int) -> bytes:
        self.at += count
        assert self.at <= len(self.content)
        return self.content[self.at - count : self.at]

    def varint(self) -> int:
        value, factor = 0, 1
        while True:
            (byte,) = self.take(1)
            value += byte % 128 * factor
            if byte < 128:
                return value
            factor *= 128

    def signed(self) -> int:
        value = self.varint()
        return -(value + 1) // 2 if value % 2 else value // 2

    def rice(self, count: int) -> list[int]:
        (low,) = self.take(1)
        numbers, bits = [], ""
        while len(numbers) < count:
            found = re.match(rf"(1*)0([01]{{{low}}})", bits)
            if found:
                numbers.append(len(found[1]) * 2**low + int("0" + found[2][::-1], 2))
                bits = bits[found.end() :]
            else:
                bits += f"{self.take(1)[0]:08b}"[::-1]
        return numbers


def read(content: bytes) -> tuple[Any, dict[str, tuple[list[int], list]]]:
    """The text of a packed file, and of each weight its shape and its elements in a flat list."""
    assert content[:5] == b"ELLZ\x01"
    assert struct.unpack("<I", content[5:9])[0] == zlib.crc32(content[9:])
    file = Bytes(content[9:])
    assert file.varint() == len(file.content) - file.at
    (kind,) = file.take(1)
    length, compressed = file.varint(), file.varint()
    text = zlib.decompressobj(-15, zdict=dictionary()).decompress(file.take(compressed))
    assert len(text) == length
    document = json.loads(text)
    names = document
    if kind == 1:
        names = list(
            dict.fromkeys(n for d in document["nodes"] for n in d.get("weights", {}).values())
        )
    fields = [tensor_fields(file) for _ in names]
    rest = file.content[file.at :]
    coder = Coder(struct.unpack(f"<{len(rest) // 4}I", rest))
    return document, {
        name: (shape, elements(layout, counts, values, shape, coder))
        for name, (layout, shape, counts, values) in zip(names, fields, strict=True)
    }


def tensor_fields(file: Bytes) -> tuple[int, list[int], list[int], list]:
    """Layout, shape, how often each symbol occurs, values."""
    (first,) = file.take(1)
    dtype, layout, form = first // 16, first // 4 % 4, first % 4
    shape = [file.varint() for _ in range(file.varint())]
    n = math.prod(shape)
    counts: list[int] = []
    v = n
    if layout == 1:
        zeros = file.varint()
        counts, v = [zeros, n - zeros], n - zeros
    if layout == 2:
        v = file.varint()
        counts = [less + 1 for less in file.rice(v)]
        counts = [n - sum(counts), *counts]
    if layout == 3:
        counts, v = [file.varint() - n, n], 0
    if form == 0:
        values = raw(file, dtype, v)
    elif form == 1:
        exponent = file.signed()
        halves = struct.unpack(f"<{v}e", file.take(2 * v))
        values = [float(Fraction(half) * Fraction(2) ** exponent) for half in halves]
    else:
        (top,) = raw(file, dtype, 1)
        if v < 32:
            integers = struct.unpack(f"<{v}b", file.take(v))
        else:
            bitmap = int.from_bytes(file.take(32), "little")
            integers = [j - 127 for j in range(255) if bitmap >> j & 1]
        values = [rounded(q * (top / 127), dtype) for q in integers]
    return layout, shape, counts, values


def raw(file: Bytes, dtype: int, count: int) -> list:
    """Numbers of a type as they are."""
    if FORMATS[dtype] == "bfloat16":  # the upper half of a float32
        halves = [b"\0\0" + file.take(2) for _ in range(count)]
        return [struct.unpack("<f", half)[0] for half in halves]
    code = f"<{count}{FORMATS[dtype]}"
    return list(struct.unpack(code, file.take(struct.calcsize(code))))


def rounded(value: float, dtype: int) -> float:
    """A float64 rounded to a floating type."""
    if FORMATS[dtype] != "bfloat16":
        return struct.unpack("<" + FORMATS[dtype], struct.pack("<" + FORMATS[dtype], value))[0]
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits += 0x7FFF + (bits >> 16) % 2  # halfway between two goes to the even one
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]


def elements(
    layout: int, counts: list[int], values: list, shape: list[int], coder: "Coder"
) -> list:
    """All elements of a tensor."""
    if layout == 0:
        return values
    symbols = coder.symbols(counts)
    if layout == 1:
        following = iter(values)
        return [next(following) if symbol else 0 for symbol in symbols]
    if layout == 2:
        return [values[symbol - 1] if symbol else 0 for symbol in symbols]
    return [position for position, symbol in enumerate(symbols) if symbol]


class Coder:
    """The range decoder of the page's four steps."""

    def __init__(self, words: tuple[int, ...]) -> None:
        self.words = iter(words)
        self.lower, self.range = 0, M64
        self.point = self.word() << 32 | self.word()

    def word(self) -> int:
        return next(self.words, 0)

    def symbols(self, counts: list[int]) -> list[int]:
        occurring = [symbol for symbol, count in enumerate(counts) if count]
        if len(occurring) < 2:
            return occurring * sum(counts)
        k, total = len(occurring), sum(counts)
        left, before = [], 0
        for i, symbol in enumerate([*occurring, None]):
            left.append(i + before * (2**24 - k) // total)
            before += counts[symbol] if symbol is not None else 0
        found = []
        for _ in range(total):
            scale = self.range // 2**24
            position = (self.point - self.lower & M64) // scale
            i = bisect.bisect_right(left, position) - 1
            assert i < k
            self.lower = self.lower + scale * left[i] & M64
            self.range = scale * (left[i + 1] - left[i])
            if self.range < 2**32:
                self.lower = self.lower << 32 & M64
                self.range <<= 32
                self.point = self.point << 32 & M64 | self.word()
            found.append(occurring[i])
        assert [found.count(symbol) for symbol in occurring] == [c for c in counts if c]
        return found
