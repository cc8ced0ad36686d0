"""Entropy coding with constriction's range coder: one stream for all that a file has to code.

An `Encoder` and a `Decoder` have one method `code`, so that a model of symbols is written once, for
both directions: the one takes the symbols that it is given, the other finds them in the stream.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import numpy as np

from ellzero.errors import InputError

PRECISION = 24
"""Frequencies are out of 2^24, which the range coder fixes."""

CHUNK = 1 << 20  # symbols coded in one go, so that memory does not grow with the tensor
FIRST_BLOCK = 16  # symbols that an adaptive model codes before it has seen any

Integers = np.ndarray[Any, np.dtype[np.integer]]


class Coder(Protocol):
    """Either direction of a stream."""

    def code(self, frequencies: Integers, count: int, symbols: Integers | None) -> Integers:
        """The next symbols (count,), which are 0 ... k - 1.

        Args:
            frequencies: (k,) of every symbol, or (count, k) of each; as `frequencies` makes them.
            count: how many.
            symbols: what an encoder writes; a decoder does not look at them.
        """
        ...


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


class Encoder:
    """Writes a stream."""

    def __init__(self) -> None:
        self._coder: Any = None

    def code(self, frequencies: Integers, count: int, symbols: Integers | None) -> Integers:
        """Write symbols (count,) and return them."""
        assert symbols is not None
        assert len(symbols) == count
        if count:
            self._coder = self._coder or _stream().queue.RangeEncoder()
            chosen = np.ascontiguousarray(symbols, dtype=np.int32)
            self._coder.encode(chosen, *_model(frequencies))
        return symbols

    def finish(self) -> bytes:
        """The stream, whole words of 4 bytes."""
        return b"" if self._coder is None else self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads a stream.

    Raises:
        InputError: a stream that is no whole number of words.
    """

    def __init__(self, stream: bytes) -> None:
        if len(stream) % 4:
            raise InputError(f"the codes are {len(stream)} bytes; expected a multiple of 4")
        self._words = np.frombuffer(stream, "<u4").astype(np.uint32)
        self._coder: Any = None

    def code(self, frequencies: Integers, count: int, symbols: Integers | None = None) -> Integers:
        """Read symbols, int32 (count,).

        Raises:
            InputError: codes that no encoder wrote.
        """
        if not count:
            return np.zeros(0, np.int32)
        self._coder = self._coder or _stream().queue.RangeDecoder(self._words)
        model, *each = _model(frequencies)
        try:
            return self._coder.decode(model, *(each or [count]))
        except AssertionError:  # constriction's way to say so
            raise InputError("the codes are none that an encoder writes") from None

    def finish(self) -> None:
        """Make sure that the stream holds nothing more.

        Raises:
            InputError: it does.
        """
        done = not len(self._words) if self._coder is None else self._coder.maybe_exhausted()
        if not done:
            raise InputError("there are more codes than weights")


def code_counted(coder: Coder, counts: Integers, symbols: Integers | None) -> Integers:
    """Symbols of known counts (k,), some of which may be 0: -log2(c / n) bits each.

    Returns:
        int16 (n,), n the sum of all counts.

    Raises:
        InputError: what is decoded has other counts.
    """
    total, occurring = int(counts.sum()), np.flatnonzero(counts)
    if len(occurring) < 2:
        return np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    model = frequencies(counts[occurring])
    ranks = np.cumsum(counts > 0) - 1
    coded = np.empty(total, np.int16)
    seen = np.zeros(len(counts), np.int64)
    for start in range(0, total, CHUNK):
        given = None if symbols is None else ranks[symbols[start : start + CHUNK]]
        piece = occurring[coder.code(model, min(CHUNK, total - start), given)]
        coded[start : start + CHUNK] = piece
        seen += np.bincount(piece, minlength=len(counts))
        if (seen > counts).any():
            raise InputError("the codes do not have the counts that are announced")
    return coded


def code_adaptive(coder: Coder, size: int, count: int, symbols: Integers | None) -> Integers:
    """Symbols 0 ... size - 1 of unknown counts, learned from those before.

    A symbol that was seen c times in n has the probability (2 c + 1) / (2 n + size). The counts are
    brought up to date after blocks, the first of 16 symbols, then of an eighth of those before.

    Args:
        coder: of the stream.
        size: of the alphabet, at most 256.
        count: how many symbols.
        symbols: what an encoder writes.

    Returns:
        uint8 (count,).
    """
    coded = np.zeros(count, np.uint8)
    if size < 2:
        return coded
    counts, start = np.ones(size, np.int64), 0
    while start < count:
        length = min(max(FIRST_BLOCK, start // 8), CHUNK, count - start)
        given = None if symbols is None else symbols[start : start + length]
        piece = coder.code(frequencies(counts), length, given)
        coded[start : start + length] = piece
        counts += 2 * np.bincount(piece, minlength=size)
        start += length
    return coded


def _model(frequencies: Integers) -> tuple[Any, ...]:
    """What constriction takes: a model, or a family of models and the parameters of each."""
    # constriction gives a symbol of probability p the frequency 1 + p (2^24 - k) / sum(p), rounded
    # down; these probabilities sum to 2^24 - k, so that the frequencies are exactly ours
    probabilities = (frequencies - 1).astype(np.float64)
    categorical = _stream().model.Categorical
    if probabilities.ndim == 1:
        return (categorical(probabilities, perfect=False),)
    return categorical(perfect=False), probabilities


def _stream() -> Any:
    try:
        return import_module("constriction").stream
    except ImportError:
        raise InputError("packed files need constriction: pip install 'ellzero[export]'") from None
