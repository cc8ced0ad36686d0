"""How a layer's weight lies in generated C: which entries, in which order, as which values.

A weight is a matrix of rows (outputs) and columns (what an output reads). Every storage can say how
many bytes it takes and how C walks over a row's entries; the exporter compares the former and
writes the latter, so that a storage is one function here and nothing anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import indent
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ellzero.c.arrays import Array, c_float, floats, unsigned
from ellzero.codebook import Codebook, find_codebook

StorageChoice = Literal["smallest", "fastest", "dense"]
"""Which storage weights get: the one of fewest bytes; one that compilers make vector instructions
of; or every weight, zero or not."""

LANES = 16
"""Rows that are worked on together for speed: two registers of eight floats, or one of sixteen."""

DENSE_LANES = 4
"""Rows together in a dense layer otherwise: one load of an input serves four weights."""


@dataclass(frozen=True, eq=False)
class Values:
    """What the entries of a storage hold: float32, codes into a table, or int8 times a scale."""

    kind: str
    entries: Array
    table: Array | None = None
    scale: float | None = None

    @property
    def arrays(self) -> list[Array]:
        """The arrays, entries first."""
        return [self.entries] if self.table is None else [self.entries, self.table]

    def read(self, entry: str) -> str:
        """C expression of an entry as float, before `finish`."""
        if self.table is not None:
            return f"{self.table.name}[{entry}]"
        return entry if self.scale is None else f"(float){entry}"

    def finish(self, total: str) -> str:
        """C expression of a row's sum of products."""
        return total if self.scale is None else f"{total} * {c_float(self.scale)}"


class Matrix:
    """A layer's weight as rows and columns, float32 and, if it is quantized, as codes."""

    def __init__(self, name: str, weight: Tensor) -> None:
        self.name = name
        rows = weight.detach().reshape(len(weight), -1).cpu()
        self.dense = rows.to(torch.float32).numpy()
        self.rows, self.columns = self.dense.shape
        self.nonzero = self.dense != 0
        self.counts = self.nonzero.sum(1)
        self.nonzeros = int(self.counts.sum())
        self._codebook: Codebook | None = find_codebook(rows)
        self._codes = None if self._codebook is None else self._codebook.codes.numpy()

    def values(self, places: np.ndarray, *, exact: bool = False) -> list[Values]:
        """The ways to hold the entries at some places of the flattened matrix; -1 is a zero.

        Args:
            places: int64, indices into the flattened matrix.
            exact: float32 alone.
        """
        zero = places < 0
        plain = np.where(zero, np.float32(0), self.dense.ravel()[places])
        entries = f"{self.name}_values"
        ways = [Values("float32", floats(entries, plain))]
        if exact or self._codebook is None or self._codes is None or not self.nonzeros:
            return ways
        codes = np.where(zero, 0, self._codes.ravel()[places]).astype(np.int64)
        table = np.concatenate([[0], self._codebook.values.numpy()]).astype(np.float32)
        if not (codes == 0).any():  # no zero among the entries, so none in the table
            codes, table = codes - 1, table[1:]
        if len(table) <= 256:
            ways.append(
                Values("codebook", unsigned(entries, codes), floats(f"{self.name}_table", table))
            )
        integers = self._codebook.integers
        if integers is not None:
            steps = np.concatenate([[0], integers.numpy()]).astype(np.int8)
            whole = np.where(zero, 0, steps[np.where(zero, 0, self._codes.ravel()[places])])
            ways.append(
                Values("int8", Array(entries, whole.astype(np.int8)), scale=self._codebook.scale)
            )
        return ways


@dataclass(frozen=True, eq=False)
class Storage:
    """A weight in one of its possible layouts.

    Args:
        layout: what a reader of the C calls it: gaps, indices, bitmap, dense, sliced.
        values: what the entries hold.
        arrays: the arrays beside the values.
        pointers: C type, name and array of what a walk moves along; they stay between rows.
        walk: (where the row's inputs begin, what to do with weight `a` at input `p`) -> C.
        lanes: rows that are walked over together.
    """

    layout: str
    values: Values
    arrays: Sequence[Array]
    pointers: Sequence[tuple[str, str, str]]
    walk: Callable[[str, str], str]
    lanes: int = 1

    @property
    def all_arrays(self) -> list[Array]:
        """Every array, values included."""
        return [*self.values.arrays, *self.arrays]

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.size_bytes for array in self.all_arrays)


def gaps(matrix: Matrix, offsets: np.ndarray) -> list[Storage]:
    """A row's count, then the distance of each entry's input from the one before, in 8 bits.

    Where a distance is greater, entries of weight zero stand in between.
    """
    places, steps, counts = [], [], []
    for row in range(matrix.rows):
        columns = np.flatnonzero(matrix.nonzero[row])
        begin, here = len(steps), 0
        for column, offset in zip(columns.tolist(), offsets[columns].tolist(), strict=True):
            while offset - here > 255:
                steps.append(255)
                places.append(-1)
                here += 255
            steps.append(offset - here)
            places.append(row * matrix.columns + column)
            here = offset
        counts.append(len(steps) - begin)
    name = matrix.name
    arrays = [unsigned(f"{name}_counts", counts), unsigned(f"{name}_gaps", steps)]

    def walk(base: str, body: str) -> str:
        return (
            f"const float *p = {base};\n"
            f"for (unsigned n = {name}_counts[r]; n > 0; --n) {{\n"
            "    p += *at++;\n" + indent(body, "    ") + "\n}"
        )

    return _ways("gaps", matrix, np.array(places, np.int64), arrays, arrays[1], walk)


def indices(matrix: Matrix, offsets: np.ndarray) -> list[Storage]:
    """A row's count, then the input of each entry: compressed sparse rows."""
    places = np.flatnonzero(matrix.nonzero)
    name = matrix.name
    arrays = [
        unsigned(f"{name}_counts", matrix.counts),
        unsigned(f"{name}_indices", offsets[places % matrix.columns]),
    ]

    def walk(base: str, body: str) -> str:
        return (
            f"for (unsigned n = {name}_counts[r]; n > 0; --n) {{\n"
            f"    const float *p = {base} + *at++;\n" + indent(body, "    ") + "\n}"
        )

    return _ways("indices", matrix, places, arrays, arrays[1], walk)


def bitmap(matrix: Matrix, offsets: np.ndarray) -> list[Storage]:
    """A bit for each column, rows padded to whole bytes, the lowest bit first."""
    places = np.flatnonzero(matrix.nonzero)
    name = matrix.name
    bits = np.packbits(matrix.nonzero, axis=1, bitorder="little")
    arrays = [Array(f"{name}_bits", bits)]
    column = "c"
    if not np.array_equal(offsets, np.arange(matrix.columns)):
        arrays.append(unsigned(f"{name}_offsets", offsets))
        column = f"{name}_offsets[c]"

    def walk(base: str, body: str) -> str:
        return (
            f"for (int b = 0; b < {bits.shape[1]}; ++b) {{\n"
            "    int c = 8 * b;\n"
            "    for (unsigned byte = *at++; byte != 0; byte >>= 1, ++c) {\n"
            "        if (byte & 1u) {\n"
            f"            const float *p = {base} + {column};\n"
            + indent(body, " " * 12)
            + "\n        }\n    }\n}"
        )

    return _ways("bitmap", matrix, places, arrays, arrays[0], walk)


def dense(matrix: Matrix, lanes: int, *, exact: bool) -> list[Storage]:
    """Every weight: blocks of rows, within a block column by column; missing rows are zero."""
    blocks = -(-matrix.rows // lanes)
    every = np.full((blocks * lanes, matrix.columns), -1, np.int64)
    every[: matrix.rows] = np.arange(matrix.rows * matrix.columns).reshape(matrix.dense.shape)
    places = every.reshape(blocks, lanes, matrix.columns).transpose(0, 2, 1).ravel()

    def walk(base: str, body: str) -> str:
        return (
            f"const float *p = {base};\n"
            f"for (unsigned n = {matrix.columns}; n > 0; --n, ++p) {{\n"
            + indent(body, "    ")
            + "\n}"
        )

    return _ways("dense", matrix, places, [], None, walk, lanes=lanes, exact=exact)


def sliced(matrix: Matrix, offsets: np.ndarray) -> list[Storage]:
    """Rows of like length side by side, so that sixteen sums go on at once (SELL-C-sigma).

    Kreutzer et al., A unified sparse matrix data format for efficient general sparse matrix-vector
    multiplication on modern processors with wide SIMD units, SIAM J. Sci. Comput. 36(5), 2014.
    """
    order = np.argsort(-matrix.counts, kind="stable")
    places, index, lengths = [], [], []
    for begin in range(0, matrix.rows, LANES):
        rows = order[begin : begin + LANES]
        length = int(matrix.counts[rows].max())
        lengths.append(length)
        where = np.full((length, LANES), -1, np.int64)
        reads = np.zeros((length, LANES), np.int64)
        for lane, row in enumerate(rows):
            columns = np.flatnonzero(matrix.nonzero[row])
            where[: len(columns), lane] = row * matrix.columns + columns
            reads[: len(columns), lane] = offsets[columns]
            if len(columns):  # padding reads what the row reads anyway: no stray inf or NaN
                reads[len(columns) :, lane] = offsets[columns[-1]]
        places.append(where.ravel())
        index.append(reads.ravel())
    name = matrix.name
    arrays = [
        unsigned(f"{name}_counts", lengths),
        # as wide as the floats: processors gather by such indices alone
        Array(f"{name}_indices", np.concatenate(index).astype(np.int32)),
        unsigned(f"{name}_rows", order),
    ]

    def walk(base: str, body: str) -> str:
        return (
            f"for (unsigned n = {name}_counts[r]; n > 0; --n) {{\n" + indent(body, "    ") + "\n}"
        )

    return _ways(
        "sliced", matrix, np.concatenate(places), arrays, arrays[1], walk, lanes=LANES, exact=True
    )


def _ways(
    layout: str,
    matrix: Matrix,
    places: np.ndarray,
    arrays: list[Array],
    along: Array | None,
    walk: Callable[[str, str], str],
    *,
    lanes: int = 1,
    exact: bool = False,
) -> list[Storage]:
    """A layout with each way to hold its values; a walk moves along one of its arrays, or none."""
    storages = []
    for values in matrix.values(places, exact=exact):
        pointers = [(values.entries.c_type, "w", values.entries.name)]
        if along is not None:
            pointers.append((along.c_type, "at", along.name))
        storages.append(Storage(layout, values, arrays, pointers, walk, lanes))
    return storages
