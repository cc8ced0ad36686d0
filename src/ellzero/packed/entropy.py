"""Entropy coding of symbols whose counts are known, with constriction's range coder.

All parts of a file share one stream: a stream ends on a whole word of 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np

from ellzero.errors import InputError

PRECISION = 24
"""Frequencies are out of 2^24, which the range coder fixes."""

CHUNK = 1 << 20  # symbols decoded in one go, so that memory does not grow with the tensor

Integers = np.ndarray[Any, np.dtype[np.integer]]


def frequencies(counts: Integers) -> Integers:
    """Frequencies out of 2^24 for symbols that occur `counts` times, every one at least 1.

    The frequencies before symbol i sum to `i + floor(C_i (2^24 - k) / n)`, where k is the number
    of symbols, n the sum of all counts and C_i that of the counts before i. Whole numbers only, so
    that every machine finds the same ones.

    Args:
        counts: int64 (k,), k >= 2, each at least 1, their sum below 2^39.

    Example:
        >>> frequencies(np.array([3, 1])), 3 / 4 * 2**24
        (array([12582911,  4194305]), 12582912.0)
    """
    free = (1 << PRECISION) - len(counts)
    ends = np.cumsum(counts, dtype=np.int64)
    return np.diff(ends * free // ends[-1], prepend=0) + 1


def encode(parts: Iterable[tuple[Integers, Integers]]) -> bytes:
    """The stream of all parts, each of them symbols 0, 1, ... (n,) and their counts (k,).

    A part of fewer than two symbols takes no space.
    """
    coder = None
    for symbols, counts in parts:
        if len(counts) > 1:
            coder = coder or _stream().queue.RangeEncoder()
            coder.encode(np.ascontiguousarray(symbols, dtype=np.int32), _model(counts))
    return b"" if coder is None else coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads the parts of a stream again, in the order in which they were encoded.

    Raises:
        InputError: a stream that is no whole number of words.
    """

    def __init__(self, stream: bytes) -> None:
        if len(stream) % 4:
            raise InputError(f"the codes are {len(stream)} bytes; expected a multiple of 4")
        self._words = np.frombuffer(stream, "<u4").astype(np.uint32)
        self._coder: Any = None

    def values(self, counts: Integers, table: np.ndarray) -> np.ndarray:
        """The values of one part: `table[symbol]` (n,) for symbols that occur `counts` times.

        Raises:
            InputError: codes that no encoder wrote.
        """
        if len(counts) < 2:
            return np.repeat(table, counts)
        self._coder = self._coder or _stream().queue.RangeDecoder(self._words)
        model, total = _model(counts), int(counts.sum())
        values = np.empty(total, table.dtype)
        seen = np.zeros(len(counts), np.int64)
        for start in range(0, total, CHUNK):
            try:
                symbols = self._coder.decode(model, min(CHUNK, total - start))
            except AssertionError:  # constriction's way to say so
                raise InputError("the codes are none that an encoder writes") from None
            values[start : start + CHUNK] = table[symbols]
            seen += np.bincount(symbols, minlength=len(counts))
            if (seen > counts).any():
                raise InputError("the codes do not have the counts that are announced")
        return values

    def finish(self) -> None:
        """Make sure that the stream holds nothing more.

        Raises:
            InputError: it does.
        """
        done = not len(self._words) if self._coder is None else self._coder.maybe_exhausted()
        if not done:
            raise InputError("there are more codes than weights")


def _model(counts: Integers) -> Any:
    # constriction gives a symbol of probability p the frequency 1 + p (2^24 - k) / sum(p), rounded
    # down; these probabilities sum to 2^24 - k, so that the frequencies are exactly ours
    probabilities = (frequencies(counts) - 1).astype(np.float64)
    return _stream().model.Categorical(probabilities, perfect=False)


def _stream() -> Any:
    try:
        return import_module("constriction").stream
    except ImportError:
        raise InputError("packed files need constriction: pip install 'ellzero[export]'") from None
