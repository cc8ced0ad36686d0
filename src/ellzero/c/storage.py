"""How a layer's weight lies in generated C: which entries, in which order, as which values.

A weight is a matrix of rows (outputs) and columns (what an output reads). Every storage can say how
many bytes it takes and how C walks over a row's entries; the exporter compares the former and
writes the latter, so that a storage is one function here and nothing anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from ellzero.c.arrays import Array, c_float, floats, unsigned
from ellzero.c.text import block, loop
from ellzero.codebook import find_codebook

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
        """The entries, and the table where there is one."""
        return [self.entries, *([] if self.table is None else [self.table])]

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
        self.dense = rows.float().numpy()
        self.rows, self.columns = self.dense.shape
        self.nonzero = self.dense != 0
        self.counts = self.nonzero.sum(1)
        self.nonzeros = int(self.counts.sum())
        self._codebook = find_codebook(rows)

    def values(self, places: np.ndarray) -> list[Values]:
        """The ways to hold the entries at some places of the flattened matrix, float32 first.

        Args:
            places: int64, indices into the flattened matrix; -1 is a zero.
        """
        zero = places < 0
        plain = np.where(zero, np.float32(0), self.dense.ravel()[places])
        entries = f"{self.name}_values"
        ways = [Values("float32", floats(entries, plain))]
        codebook = self._codebook
        if codebook is None or not self.nonzeros:
            return ways
        codes = np.where(zero, 0, codebook.codes.numpy().ravel()[places])
        table = np.concatenate([[0], codebook.values.numpy()])
        first = int((codes != 0).all())  # no zero among the entries, so none in the table
        if len(table) - first <= 256:
            names = floats(f"{self.name}_table", table[first:])
            ways.append(Values("codebook", unsigned(entries, codes - first), names))
        if codebook.integers is not None:
            steps = np.concatenate([[0], codebook.integers.numpy()]).astype(np.int8)
            ways.append(Values("int8", Array(entries, steps[codes]), scale=codebook.scale))
        return ways


@dataclass(frozen=True, eq=False)
class Storage:
    """A weight in one of its possible layouts.

    Args:
        layout: what a reader of the C calls it: gaps, indices, bitmap, dense, sliced.
        values: what the entries hold.
        arrays: the arrays beside the values.
        along: the one of them that a walk moves along, as along the values.
        walk: (where the row's inputs begin, what to do with weight `a` at input `p`) -> C.
        lanes: rows that are walked over together.
    """

    layout: str
    values: Values
    arrays: Sequence[Array]
    along: Array | None
    walk: Callable[[str, str], str]
    lanes: int = 1

    @property
    def all_arrays(self) -> list[Array]:
        """Every array, the values first."""
        return [*self.values.arrays, *self.arrays]

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.size_bytes for array in self.all_arrays)

    @property
    def pointers(self) -> list[tuple[str, str, str]]:
        """C type, name and array of what a walk moves along; they stay between rows."""
        moved = {"w": self.values.entries, "at": self.along}
        return [(array.c_type, name, array.name) for name, array in moved.items() if array]


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
        return f"const float *p = {base};\n" + _each(name, f"p += *at++;\n{body}")

    ways = matrix.values(np.array(places, np.int64))
    return [Storage("gaps", values, arrays, arrays[1], walk) for values in ways]


def indices(matrix: Matrix, offsets: np.ndarray) -> list[Storage]:
    """A row's count, then the input of each entry: compressed sparse rows."""
    places = np.flatnonzero(matrix.nonzero)
    name = matrix.name
    arrays = [
        unsigned(f"{name}_counts", matrix.counts),
        unsigned(f"{name}_indices", offsets[places % matrix.columns]),
    ]

    def walk(base: str, body: str) -> str:
        return _each(name, f"const float *p = {base} + *at++;\n{body}")

    ways = matrix.values(places)
    return [Storage("indices", values, arrays, arrays[1], walk) for values in ways]


def bitmap(matrix: Matrix, offsets: np.ndarray) -> list[Storage]:
    """A bit for each column, rows padded to whole bytes, the lowest bit first."""
    name = matrix.name
    bits = np.packbits(matrix.nonzero, axis=1, bitorder="little")
    arrays = [Array(f"{name}_bits", bits)]
    column = "c"
    if not np.array_equal(offsets, np.arange(matrix.columns)):
        arrays.append(unsigned(f"{name}_offsets", offsets))
        column = f"{name}_offsets[c]"

    def walk(base: str, body: str) -> str:
        entry = block("if (byte & 1u)", f"const float *p = {base} + {column};\n{body}")
        bit = block("for (unsigned byte = *at++; byte != 0; byte >>= 1, ++c)", entry)
        return loop("b", bits.shape[1], f"int c = 8 * b;\n{bit}")

    ways = matrix.values(np.flatnonzero(matrix.nonzero))
    return [Storage("bitmap", values, arrays, arrays[0], walk) for values in ways]


def dense(matrix: Matrix, lanes: int) -> list[Storage]:
    """Every weight: blocks of rows, within a block column by column; missing rows are zero."""
    blocks = -(-matrix.rows // lanes)
    every = np.full((blocks * lanes, matrix.columns), -1, np.int64)
    every[: matrix.rows] = np.arange(matrix.rows * matrix.columns).reshape(matrix.dense.shape)
    places = every.reshape(blocks, lanes, matrix.columns).transpose(0, 2, 1).ravel()

    def walk(base: str, body: str) -> str:
        head = f"for (unsigned n = {matrix.columns}; n > 0; --n, ++p)"
        return f"const float *p = {base};\n" + block(head, body)

    ways = matrix.values(places)
    return [Storage("dense", values, [], None, walk, lanes) for values in ways]


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
        return _each(name, body)

    values = matrix.values(np.concatenate(places))[0]  # float32: a table would cost the speed
    return [Storage("sliced", values, arrays, arrays[1], walk, LANES)]


def _each(name: str, body: str) -> str:
    """C that does something with each entry of a row."""
    return block(f"for (unsigned n = {name}_counts[r]; n > 0; --n)", body)
