"""A second reader of packed files, written from docs/format.md alone: plain Python, no torch.

It shares nothing with the library's, down to the preset dictionary, which it takes from the page.
"""

import bisect
import functools
import itertools
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
SIZES = (4, 8, 2, 2, 1, 1, 1, 2, 4, 8)
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
    version = content[4]
    assert content[:4] == b"ELLZ"
    assert version in (1, 2)
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
    announced: list = []
    for _ in names:
        announced.append(Old(file) if version == 1 else New(file, announced))
    rest = file.content[file.at :]
    coder = Coder(struct.unpack(f"<{len(rest) // 4}I", rest))
    tensors: list[tuple[list[int], list]] = []
    for tensor in announced:
        tensors.append((tensor.shape, tensor.elements(coder, tensors)))
    return document, dict(zip(names, tensors, strict=True))


class Old:
    """A tensor of version 1."""

    def __init__(self, file: Bytes) -> None:
        self.layout, self.shape, self.counts, self.values = tensor_fields(file)

    def elements(self, coder: "Coder", earlier: list) -> list:
        """All elements."""
        if self.layout == 0:
            return self.values
        symbols = coder.counted(self.counts)
        if self.layout == 1:
            following = iter(self.values)
            return [next(following) if symbol else 0 for symbol in symbols]
        if self.layout == 2:
            return [self.values[symbol - 1] if symbol else 0 for symbol in symbols]
        return [position for position, symbol in enumerate(symbols) if symbol]


def tensor_fields(file: Bytes) -> tuple[int, list[int], list[int], list]:
    """Of version 1: layout, shape, how often each symbol occurs, values."""
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
        values = halves(file.signed(), file.take(2 * v))
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


def halves(exponent: int, content: bytes) -> list[float]:
    """Halves times a power of two."""
    numbers = struct.unpack(f"<{len(content) // 2}e", content)
    return [float(Fraction(number) * Fraction(2) ** exponent) for number in numbers]


NEIGHBOURS = {
    (0, 1): 4,
    (1, 0): 4,
    (1, 1): 2,
    (1, -1): 2,
    (0, 2): 1,
    (2, 0): 1,
    (1, 2): 1,
    (1, -2): 1,
    (2, 1): 1,
    (2, -1): 1,
}
NEAR = ((0, 1), (1, 0), (1, 1), (1, -1))


class New:
    """A tensor of version 2: its fields, and then its elements."""

    def __init__(self, file: Bytes, earlier: "list[New]") -> None:
        (first,) = file.take(1)
        self.same = file.varint() if first == 0xF0 else None
        if self.same is not None:
            self.shape = earlier[self.same].shape
            return
        self.dtype, self.form = first >> 4, first & 7
        self.shape = [file.varint() for _ in range(file.varint())]
        self.n, self.z = math.prod(self.shape), file.varint()
        v = self.n - self.z
        self.negatives, self.lines = 0, bool(first & 8)
        if self.lines:
            (self.rows,) = file.take(1)
            self.h, self.w, self.places = file.varint(), file.varint(), file.varint()
            self.weights = struct.unpack("4b", file.take(4)) if self.z else ()
        elif self.form in (2, 3, 4):
            self.negatives = file.varint()
        self.negative: list[float] = []
        self.positive: list[float] = []
        if self.form in (0, 1):
            self.exponent = file.signed() if self.form == 1 else None
            (coded,) = file.take(1)
            size = 2 if self.form == 1 else SIZES[self.dtype]
            self.bytes = [None if coded >> j & 1 else file.take(v) for j in range(size)]
        if self.form in (2, 3):
            k, count = file.varint(), file.varint()
            values = (
                raw(file, self.dtype, k + count)
                if self.form == 2
                else halves(file.signed(), file.take(2 * (k + count)))
            )
            self.negative, self.positive = values[:k], values[k:]
        if self.form == 4:
            (step,) = raw(file, self.dtype, 1)
            k, count = file.take(2)
            self.negative = [rounded(-step * q, self.dtype) for q in range(1, k + 1)]
            self.positive = [rounded(step * q, self.dtype) for q in range(1, count + 1)]

    def elements(self, coder: "Coder", earlier: list) -> list:
        """All elements."""
        if self.same is not None:
            return earlier[self.same][1]
        if self.form == 5:
            symbols = coder.counted([self.z, self.n])
            return [position for position, symbol in enumerate(symbols) if symbol]
        kinds = self.in_lines(coder, earlier) if self.lines else self.counted(coder)
        v = self.n - self.z
        if self.form in (0, 1):
            planes = [coder.learned(256, v) if b is None else list(b) for b in self.bytes]
            numbers = iter(self.numbers(planes))
            return [next(numbers) if kind else 0 for kind in kinds]
        codes = {
            sign: iter(coder.learned(len(values), kinds.count(sign)))
            for sign, values in ((-1, self.negative), (1, self.positive))
        }
        tables = {-1: self.negative, 1: self.positive}
        return [tables[kind][next(codes[kind])] if kind else 0 for kind in kinds]

    def numbers(self, planes: list[list[int]]) -> list:
        """Numbers from all their lowest bytes, all their next ones and so on."""
        size, bits = len(planes), 8 * len(planes)
        content = b""
        for each in zip(*planes, strict=True):
            number = int.from_bytes(bytes(each), "little")
            if self.dtype < 4:
                number = number >> 1 | (number & 1) << (bits - 1)
            content += number.to_bytes(size, "little")
        if self.exponent is not None:
            return halves(self.exponent, content)
        return raw(Bytes(content), self.dtype, len(planes[0]))

    def counted(self, coder: "Coder") -> list[int]:
        """Kinds -1, 0 and 1 by their counts."""
        v = self.n - self.z
        negatives = self.negatives
        return [kind - 1 for kind in coder.counted([negatives, self.z, v - negatives])]

    def in_lines(self, coder: "Coder", earlier: list) -> list[int]:
        """Kinds -1, 0 and 1, line by line."""
        first = self.shape[0]
        lines, units = (first, self.n // first) if self.rows else (self.n // first, first)
        places = earlier[self.places - 1][1] if self.places else list(range(lines))
        line_at = {place: line for line, place in enumerate(places)}
        d = min(max((self.n - self.z) * 2**16 // self.n, 1), 2**16 - 1)
        d2 = 2**16 - d
        kinds: list[list[int]] = []
        of_pattern = [[0, 0] for _ in range(19)]
        of_signs = [[0, 0] for _ in range(9)]
        of_unit = [0] * units
        signed = bool(self.negative and self.positive)
        for t, p in enumerate(places):
            x, y = p % self.w, p // self.w % self.h
            near = {}
            for u, v in NEIGHBOURS:
                place = p - u * self.w - v
                if y >= u and 0 <= x - v < self.w and place in line_at:
                    near[u, v] = kinds[line_at[place]]
            patterns = [
                sum(NEIGHBOURS[at] for at, line in near.items() if line[e]) for e in range(units)
            ]
            contexts = [
                sum(line[e] for (u, v), line in near.items() if (u, v) in NEAR)
                for e in range(units)
            ]
            there = [1] * units
            if self.z:
                s = sum(NEIGHBOURS[at] * (units - line.count(0)) for at, line in near.items())
                every = units * sum(NEIGHBOURS[at] for at in near)
                for e in range(units):
                    o = of_unit[e]
                    zeros, ones = of_pattern[patterns[e]]
                    pairs = (
                        (2**16 * o + 8 * d, 2**16 * (t - o) + 8 * d2),
                        (2**16 * s + units * d // 4 + 1, 2**16 * (every - s) + units * d2 // 4 + 1),
                        (2**16 * ones + 2 * d, 2**16 * zeros + 2 * d2),
                        (d, d2),
                    )
                    odds = (
                        sum(
                            w * (lg(a) - lg(b))
                            for w, (a, b) in zip(self.weights, pairs, strict=True)
                        )
                        // 64
                    )
                    odds = min(max(odds, -4095), 4095)
                    q, r = divmod(abs(odds), 256)
                    rarer = 2**40 // (2**16 + 2**q * math.floor(2**16 * 2 ** (r / 256)))
                    ones = rarer if odds < 0 else 2**24 - rarer
                    there[e] = coder.symbol([2**24 - ones, ones])
            line = [1 if one else 0 for one in there]
            if not self.positive and self.negative:
                line = [-kind for kind in line]
            if signed:
                for e in range(units):
                    if there[e]:
                        m, plus = of_signs[contexts[e]]
                        positive = (2 * plus + 1) * (2**24 - 2) // (2 * plus + 2 * m + 2) + 1
                        line[e] = 1 if coder.symbol([2**24 - positive, positive]) else -1
            for e in range(units):
                of_unit[e] += there[e]
                of_pattern[patterns[e]][there[e]] += 1
                if line[e]:
                    of_signs[contexts[e]][line[e] > 0] += 1
            kinds.append(line)
        rows = kinds if self.rows else list(zip(*kinds, strict=True))
        flat = [kind for row in rows for kind in row]
        assert flat.count(0) == self.z
        return flat


@functools.cache
def lg(number: int) -> int:
    """The page's logarithm in 256ths."""
    e = number.bit_length() - 1
    return 256 * e + math.floor(256 * math.log2(1 + ((number << 8 >> e) - 256) / 256))


class Coder:
    """The range decoder of the page's four steps."""

    def __init__(self, words: tuple[int, ...]) -> None:
        self.words = iter(words)
        self.lower, self.range = 0, M64
        self.point = self.word() << 32 | self.word()

    def word(self) -> int:
        return next(self.words, 0)

    def symbol(self, frequencies: list[int]) -> int:
        """The next symbol."""
        assert sum(frequencies) == 2**24
        left = [0, *itertools.accumulate(frequencies)]
        scale = self.range // 2**24
        position = (self.point - self.lower & M64) // scale
        assert position < 2**24
        i = bisect.bisect_right(left, position) - 1
        self.lower = self.lower + scale * left[i] & M64
        self.range = scale * frequencies[i]
        if self.range < 2**32:
            self.lower = self.lower << 32 & M64
            self.range <<= 32
            self.point = self.point << 32 & M64 | self.word()
        return i

    def counted(self, counts: list[int]) -> list[int]:
        """Symbols that occur so often."""
        occurring = [symbol for symbol, count in enumerate(counts) if count]
        if len(occurring) < 2:
            return occurring * sum(counts)
        model = frequencies([counts[symbol] for symbol in occurring])
        symbols = [occurring[self.symbol(model)] for _ in range(sum(counts))]
        assert [symbols.count(symbol) for symbol in range(len(counts))] == counts
        return symbols

    def learned(self, size: int, count: int) -> list[int]:
        """Symbols of an alphabet, learned from those before."""
        if size < 2:
            return [0] * count
        counts, symbols = [1] * size, []
        while len(symbols) < count:
            block = min(max(16, len(symbols) // 8), 2**20, count - len(symbols))
            model = frequencies(counts)
            fresh = [self.symbol(model) for _ in range(block)]
            for symbol in fresh:
                counts[symbol] += 2
            symbols += fresh
        return symbols


def frequencies(counts: list[int]) -> list[int]:
    """Frequencies out of 2^24 of symbols that occur so often."""
    k, total = len(counts), sum(counts)
    before = [0, *itertools.accumulate(counts)]
    left = [i + before[i] * (2**24 - k) // total for i in range(k + 1)]
    return [end - start for start, end in itertools.pairwise(left)]
