"""Which elements of a tensor are zero, negative or positive: coded line by line, with contexts.

A matrix is seen as lines of units: each line holds one weight of every unit. Where the lines are
the places of an image or of a kernel, weights of neighbouring places are alike: where a unit has
weights, and of what sign. Every choice is made from what came in the lines before, so that a whole
line is coded at once; whole numbers only, so that every machine finds the same probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ellzero.packed.entropy import PRECISION, Coder, Integers

NEAR = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Neighbours whose signs count: how far up and how far left of a place they are."""

NEIGHBOURS = (*NEAR, (0, 2), (2, 0), (1, 2), (1, -2), (2, 1), (2, -1))
CLOSENESS = np.array([4, 4, 2, 2, 1, 1, 1, 1, 1, 1], np.int64)
CLOSENESS8 = CLOSENESS.astype(np.int8)
PATTERNS = int(CLOSENESS.sum()) + 1

ONE = 1 << 16
UNIT_PRIOR = 8  # lines that the common density counts as in the density of a unit
# no number in these two tables is within 0.001 of a whole one, but for those that are exact: every
# machine's floats give the same ones
LOG = np.floor(256 * np.log2(1 + np.arange(256) / 256)).astype(np.int64)
EXP = np.floor(2.0**16 * 2.0 ** (np.arange(256) / 256)).astype(np.int64)
FINEST = 4095  # 16 bits: no zero is surer than 1 : 2^16
WEIGHT_BITS = 6  # weights are in 64ths
MAX_UNITS = 1 << 20
"""Of a line, which is coded at once: that takes some 100 bytes of memory for each of its units."""


@dataclass(frozen=True)
class Geometry:
    """How a tensor is cut into lines, and where their neighbours are.

    Args:
        rows: whether a line is a row (an index of dimension 0) instead of a column.
        height, width: of the images that places make up, one after the other; 1 and 1: none.
    """

    rows: bool
    height: int = 1
    width: int = 1

    def lines(self, matrix: np.ndarray) -> np.ndarray:
        """The lines of a matrix whose rows are indices of dimension 0."""
        return matrix if self.rows else matrix.T

    def neighbours(self, places: Integers) -> Integers:
        """For lines at these places the lines of their neighbours (L, 10), L where none is."""
        count = len(places)
        columns, rows = places % self.width, places // self.width % self.height
        lines = np.full((count, len(NEIGHBOURS)), count)
        for index, (up, left) in enumerate(NEIGHBOURS):
            inside = (rows >= up) & (columns >= left) & (columns - left < self.width)
            place = places - up * self.width - left
            nearest = np.minimum(np.searchsorted(places, place), count - 1)
            there = inside & (places[nearest] == place)
            lines[there, index] = nearest[there]
        return lines


def logarithm(numbers: Integers) -> Integers:
    """`floor(256 log2 n)`, but for what eight bits after the leading one do not tell.

    Args:
        numbers: int64 >= 1, below 2^53.
    """
    mantissas, exponents = np.frexp(numbers.astype(np.float64))  # exact
    return (exponents.astype(np.int64) - 1) * 256 + LOG[(mantissas * 512).astype(np.int64) - 256]


@cache
def binary() -> np.ndarray:
    """Frequencies of 0 and 1 for each log odds of 1, from -FINEST to FINEST 256ths: (n, 2)."""
    log_odds = np.arange(-FINEST, FINEST + 1)
    size = np.abs(log_odds)
    rarer = (1 << 40) // (ONE + (EXP[size & 255] << (size >> 8)))
    ones = np.where(log_odds < 0, rarer, (1 << PRECISION) - rarer)
    return np.stack([(1 << PRECISION) - ones, ones], 1)


class Evidence:
    """What the lines so far say about the next: where it may have weights, and of what sign.

    Args:
        shape: how many lines there are, and how many units.
        nonzeros: elements that are not zero.
        neighbours: of each line, as `Geometry.neighbours` gives them.
    """

    def __init__(self, shape: tuple[int, int], nonzeros: int, neighbours: Integers) -> None:
        lines, self._units = shape
        density = min(max((nonzeros << 16) // (lines * self._units), 1), ONE - 1)
        self._shares = np.array([[ONE - density], [density]], np.int64)
        zero, one = logarithm(self._shares[:, 0])
        self._common = int(one - zero)
        self._neighbours = neighbours
        self._kinds = np.zeros((lines + 1, self._units), np.int8)
        self._counts = np.zeros(lines + 1, np.int64)
        # zeros and ones, in 2^16ths: of every unit, beside every pattern, in the lines nearby
        of_units, of_patterns = UNIT_PRIOR * self._shares, 2 * self._shares
        self._seen = np.concatenate(
            [of_units.repeat(self._units, 1), of_patterns.repeat(PATTERNS, 1), self._shares], 1
        )
        self._signs = np.ones((2 * len(NEAR) + 1, 2), np.int64)
        self.line = 0
        self._look()

    def _look(self) -> None:
        """Look at the neighbours of the next line."""
        near = self._neighbours[self.line]
        self._near = self._kinds[near]
        self._pattern = CLOSENESS8 @ (self._near != 0)
        lines = int(CLOSENESS[near < len(self._counts) - 1].sum())
        nearby = int(CLOSENESS @ self._counts[near])
        prior = self._units * self._shares[:, 0] >> 2
        self._seen[:, -1] = prior + 1
        self._seen[:, -1] += np.array([lines * self._units - nearby, nearby]) << 16

    def log_odds(self) -> tuple[Integers, int, Integers, int]:
        """Log odds of a weight at each unit of the next line by four measures, in 256ths.

        By the density of the unit (E,); of the lines nearby; by which weights of the unit are
        nearby (E,); by the density of the whole tensor.
        """
        logs = logarithm(self._seen)
        odds = logs[1] - logs[0]
        patterns = odds[self._units : -1][self._pattern]
        return odds[: self._units], int(odds[-1]), patterns, self._common

    def weight_model(self, weights: Sequence[int]) -> Integers:
        """Frequencies (E, 2) of zeros and weights in the next line, the measures weighted."""
        unit, nearby, pattern, common = self.log_odds()
        mixed = (
            weights[0] * unit + weights[2] * pattern + (weights[1] * nearby + weights[3] * common)
        )
        return binary()[np.clip(mixed >> WEIGHT_BITS, -FINEST, FINEST) + FINEST]

    def sign_model(self, units: Integers) -> Integers:
        """Frequencies (n, 2) of negative and positive for weights of some units of the line."""
        counts = self._signs[self._near[: len(NEAR), units].sum(0) + len(NEAR)]
        positive = counts[:, 1] * ((1 << PRECISION) - 2) // counts.sum(1) + 1
        return np.stack([(1 << PRECISION) - positive, positive], 1)

    def learn(self, kinds: Integers) -> None:
        """Take the next line up: -1, 0 and 1 for what is negative, zero and positive (E,)."""
        weights = kinds != 0
        there = np.flatnonzero(weights)
        self._kinds[self.line] = kinds
        self._counts[self.line] = len(there)
        self._seen[1, there] += ONE
        self._seen[0, : self._units] += ONE
        self._seen[0, there] -= ONE
        beside = np.bincount(self._pattern * 2 + weights, minlength=2 * PATTERNS)
        self._seen[:, self._units : -1] += beside.reshape(-1, 2).T << 16
        contexts = self._near[: len(NEAR), there].sum(0) + len(NEAR)
        signs = np.bincount(contexts * 2 + (kinds[there] > 0), minlength=2 * len(self._signs))
        self._signs += 2 * signs.reshape(-1, 2)
        self.line += 1
        if self.line < len(self._neighbours):
            self._look()


def code_lines(
    coder: Coder,
    evidence: Evidence,
    weights: Sequence[int] | None,
    signs: tuple[bool, bool],
    kinds: Integers | None,
    shape: tuple[int, int],
) -> Integers:
    """Lines (L, E) of kinds: -1, 0 and 1.

    Args:
        coder: of the stream.
        evidence: nothing learned yet.
        weights: of the four measures, in 64ths; None where no element is zero.
        signs: whether weights may be negative, and positive; where only one is so, it is not coded.
        kinds: what an encoder writes (L, E).
        shape: L and E.
    """
    coded = np.zeros(shape, np.int8)
    for line in range(shape[0]):
        given = None if kinds is None else kinds[line]
        if weights is None:
            there = np.arange(shape[1])
        else:
            ones = None if given is None else given != 0
            there = np.flatnonzero(coder.code(evidence.weight_model(weights), shape[1], ones))
        coded[line, there] = -1 if signs[0] else 1
        if all(signs):
            positive = None if given is None else given[there] > 0
            model = evidence.sign_model(there)
            coded[line, there] = 2 * coder.code(model, len(there), positive).astype(np.int8) - 1
        evidence.learn(coded[line])
    return coded
