"""How the int8 weights of a layer lie in C: all of them, or the nonzeros with their distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ellzero.c.storage import StorageChoice

Layout = Literal["gaps", "dense"]

LINEAR_COST = {"gaps": 4.25, "dense": 3.25}
"""Instructions for a stored weight of a dense layer, on a Cortex-M4."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The stored weights of a matrix.

    Args:
        layout: gaps, or dense.
        weights: int8, row after row.
        distances: of each weight's input from that of the one before it in its row, or of a dense
            row's, which all share.
        counts: how many weights are stored of each row.
        nonzeros: how many weights are not zero.
    """

    layout: Layout
    weights: np.ndarray
    distances: np.ndarray
    counts: np.ndarray
    nonzeros: int


def dense(matrix: np.ndarray, offsets: np.ndarray) -> Rows:
    """Every weight.

    Args:
        matrix: int8 (rows, columns).
        offsets: where each column's input is, ascending.
    """
    counts = np.full(len(matrix), matrix.shape[1])
    distances = np.diff(offsets, prepend=0)
    return Rows("dense", matrix.reshape(-1), distances, counts, int(np.count_nonzero(matrix)))


def gaps(matrix: np.ndarray, offsets: np.ndarray, limit: int) -> Rows:
    """The nonzero weights; where one is farther than the limit, zeros lie in between.

    Example:
        >>> rows = gaps(np.array([[0, 5, 0], [7, 0, 9]], np.int8), np.array([0, 3, 6]), 4)
        >>> rows.weights.tolist(), rows.distances.tolist(), rows.counts.tolist()
        ([5, 7, 0, 9], [3, 0, 4, 2], [1, 3])
    """
    weights: list[int] = []
    distances: list[int] = []
    counts = []
    for row in matrix:
        before, begin = 0, len(weights)
        for column in np.flatnonzero(row):
            distance = int(offsets[column]) - before
            while distance > limit:
                weights.append(0)
                distances.append(limit)
                distance -= limit
            weights.append(int(row[column]))
            distances.append(distance)
            before = int(offsets[column])
        counts.append(len(weights) - begin)
    return Rows(
        "gaps",
        np.array(weights, np.int8),
        np.array(distances, np.int64),
        np.array(counts, np.int64),
        int(np.count_nonzero(matrix)),
    )


def linear_rows(matrix: np.ndarray, choice: StorageChoice) -> Rows:
    """A dense layer's weights as they are smallest, or as they take the fewest instructions."""
    offsets = np.arange(matrix.shape[1])
    every, few = dense(matrix, offsets), gaps(matrix, offsets, 255)
    if choice == "dense" or few.counts.max(initial=0) > 65535:
        return every
    if choice == "fastest":
        return min(every, few, key=lambda rows: len(rows.weights) * LINEAR_COST[rows.layout])
    return every if every.weights.size <= 2 * (few.weights.size + len(matrix)) else few


def conv_rows(matrix: np.ndarray, offsets: Sequence[int], choice: StorageChoice) -> Rows:
    """A convolution's weights as they are smallest, or as they take the fewest instructions.

    A stored weight costs the same in both layouts: the fewer, the faster.
    """
    at = np.asarray(offsets)
    every, few = dense(matrix, at), gaps(matrix, at, 65535)
    if every.distances.max(initial=0) > 65535:
        return few
    if choice == "dense":
        return every
    if choice == "fastest":
        return few if few.weights.size < every.weights.size else every
    small = 3 * few.weights.size + 2 * (len(matrix) + 1)
    return every if every.weights.size + 2 * len(at) <= small else few
