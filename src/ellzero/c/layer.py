"""What layers share in generated C: padding, a weight in the storage that is asked for, a bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from ellzero.c import storage as storages
from ellzero.c.kernel import Context
from ellzero.c.storage import Matrix, Storage, StorageChoice
from ellzero.c.text import block, loop


def plane(values: Sequence[int], row: int = 1) -> tuple[int, int]:
    """Sizes or settings of rows and columns; those of one dimension are of a single row.

    Example:
        >>> plane((5, 7)), plane((7,)), plane((2,), 0)
        ((5, 7), (1, 7), (0, 2))
    """
    height, width = values if len(values) > 1 else (row, *values)
    return height, width


def copied(context: Context) -> str:
    """The body of a function that gives its input."""
    return loop("i", math.prod(context.shape), "y[i] = x[i];")


def padded(context: Context) -> str:
    """The body of a function that copies its input with zeros around each channel.

    A convolution of the copy need not look where it is.
    """
    (_, *size), (channels, *padded_size) = context.inputs[0], context.shape
    (height, width), (tall, wide) = plane(size), plane(padded_size)
    top, left = (tall - height) // 2, (wide - width) // 2
    around = loop("i", top * wide + left, "*y++ = 0.0f;")
    row = loop("i", width, "*y++ = *x++;")
    if left and height > 1:
        between = loop("i", 2 * left, "*y++ = 0.0f;")
        row += "\n" + block(f"if (row < {height - 1})", between)
    return loop("c", channels, f"{around}\n{loop('row', height, row)}\n{around}")


def weighted(
    context: Context,
    offsets: np.ndarray,
    *,
    lanes: bool,
    role: str = "weight",
    entries: Tensor | None = None,
) -> tuple[Matrix, Storage]:
    """A layer's weight in its best storage, whose arrays are defined with the function.

    Args:
        context: what the function is made of.
        offsets: where each column of the matrix reads, in floats from where a row's inputs begin.
        lanes: whether rows may be walked over together.
        role: the weight's.
        entries: its entries, where they are to lie in another order; zeros may stand between them.
    """
    name = context.name if role == "weight" else f"{context.name}_{role}"
    matrix = Matrix(name, context.weights[role] if entries is None else entries)
    storage = _chosen(matrix, offsets, context.choice, lanes=lanes)
    context.stored[role] = matrix, storage
    context.arrays += storage.all_arrays
    return matrix, storage


def _chosen(matrix: Matrix, offsets: np.ndarray, choice: StorageChoice, *, lanes: bool) -> Storage:
    if choice == "fastest":
        # a dense row costs its columns, a sparse one reads an index and jumps for each entry
        if lanes and 4 * matrix.nonzeros >= matrix.dense.size:
            return storages.dense(matrix, storages.LANES)[0]
        return (storages.sliced if lanes else storages.indices)(matrix, offsets)[0]
    candidates = storages.dense(matrix, storages.DENSE_LANES if lanes else 1)
    if choice == "smallest":
        sparse = (storages.gaps, storages.indices, storages.bitmap)
        candidates = [way for layout in sparse for way in layout(matrix, offsets)] + candidates
    return min(candidates, key=lambda storage: storage.size_bytes)


def plus_bias(context: Context, row: str) -> str:
    """C that adds a row's bias, whose array is defined with the function; nothing without one."""
    return f" + {context.vector('bias')}[{row}]" if "bias" in context.weights else ""


def pointers(storage: Storage) -> str:
    """C that defines what a walk moves along."""
    return "".join(
        f"const {c_type} *{name} = {array};\n" for c_type, name, array in storage.pointers
    )


def nested(counts: tuple[int, int, int], steps: tuple[int, int, int]) -> Callable[[str, str], str]:
    """A walk over every weight of an output channel in turn: input channel, row, column."""

    def walk(base: str, body: str) -> str:
        column = loop("kx", counts[2], f"const float *p = from + kx * {steps[2]};\n{body}")
        source = f"const float *from = {base} + c * {steps[0]} + ky * {steps[1]};"
        return loop("c", counts[0], loop("ky", counts[1], f"{source}\n{column}"))

    return walk
