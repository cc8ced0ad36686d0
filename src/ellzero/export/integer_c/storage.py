"""How the int8 weights of a layer lie in C: all of them, or the nonzeros with their distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ellzero.c.storage import StorageChoice
from ellzero.export.integer_c.convolution import WIDEST, Tile, taps_of

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
        offsets: where each column's input is, ascending; or of what lies side by side the first.
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


def conv_rows(
    matrix: np.ndarray, offsets: np.ndarray, columns: int, stride: int, choice: StorageChoice
) -> tuple[Rows, Tile]:
    """A convolution's weights as they are smallest or as they take the fewest instructions.

    Args:
        matrix: int8 (outputs, weights of each).
        offsets: where each weight's input is, ascending: (channels and rows of the kernel, columns
            of the kernel).
        columns: outputs of a row.
        stride: from one to the next.
        choice: what is asked for.
    """
    row = offsets.shape[1]
    # what lies side by side in the kernel but not in the input goes by itself
    taps = 1 if row > 1 and offsets[0, 1] - offsets[0, 0] > 1 else taps_of(row)
    every = dense(matrix, offsets.reshape(-1, taps)[:, 0])
    few = gaps(matrix, offsets.reshape(-1), 65535)
    of_every = _fastest(columns, stride, taps, matrix.shape[1])
    of_few = _fastest(columns, stride, 0, few.weights.size / len(matrix))
    if every.distances.max(initial=0) > 65535:
        return few, of_few
    if choice == "dense":
        return every, of_every
    if choice == "fastest":
        is_few = of_few.cost(columns, few.weights.size / len(matrix)) < of_every.cost(
            columns, matrix.shape[1]
        )
    else:
        small = 3 * few.weights.size + 2 * (len(matrix) + 1)
        is_few = small < every.weights.size + 2 * every.distances.size
    return (few, of_few) if is_few else (every, of_every)


def _fastest(columns: int, stride: int, taps: int, weights: float) -> Tile:
    """The tile that takes the fewest instructions for a row of so many outputs."""
    widths = range(min(columns, WIDEST[taps == 0]), 0, -1)
    return min(
        (Tile(width, stride, taps) for width in widths), key=lambda t: t.cost(columns, weights)
    )
