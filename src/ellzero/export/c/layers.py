"""The C of the layers that have a weight: one emitter each, over whatever storage it has."""

from __future__ import annotations

import numpy as np

from ellzero.export.c import storage as storages
from ellzero.export.c.function import Aim, Context, Function, indented
from ellzero.export.c.storage import Matrix, Storage


def _choose(matrix: Matrix, offsets: np.ndarray, aim: Aim, *, lanes: bool) -> Storage:
    """The best storage by the aim; `lanes` where rows may be walked over together."""
    if aim == "dense":
        return min(
            storages.dense(matrix, storages.DENSE_LANES if lanes else 1, exact=False),
            key=lambda storage: storage.size_bytes,
        )
    if aim == "speed":
        # a dense row costs its columns, a sparse one reads an index and jumps for each entry
        if lanes and 4 * matrix.nonzeros >= matrix.dense.size:
            return storages.dense(matrix, storages.LANES, exact=True)[0]
        if lanes:
            return storages.sliced(matrix, offsets)[0]
        return storages.indices(matrix, offsets)[0]
    candidates = [
        *storages.gaps(matrix, offsets),
        *storages.indices(matrix, offsets),
        *storages.bitmap(matrix, offsets),
        *storages.dense(matrix, storages.DENSE_LANES if lanes else 1, exact=False),
    ]
    return min(candidates, key=lambda storage: storage.size_bytes)


def weighted(context: Context, offsets: np.ndarray, *, lanes: bool) -> tuple[Storage, Matrix]:
    """The layer's weight in its best storage, whose arrays are defined with the function."""
    weight = context.weight(context.step.node, "weight")
    assert weight is not None
    matrix = Matrix(context.name, weight)
    storage = _choose(matrix, offsets, context.aim, lanes=lanes)
    context.function.storage, context.function.matrix = storage, matrix
    context.function.arrays += storage.all_arrays
    return storage, matrix


def bias_of(context: Context) -> str:
    """Name of the bias's array, which is defined with the function; nothing without a bias."""
    if "bias" not in context.step.node.weights:
        return ""
    return context.vector(context.step.node, "bias")


def linear(context: Context) -> Function:
    """A dense layer: rows one by one, or several in lanes."""
    columns = context.step.inputs[0][1][0]
    storage, matrix = weighted(context, np.arange(columns), lanes=True)
    bias = bias_of(context)
    body = pointers(storage)
    if storage.lanes == 1:
        total = storage.values.finish("total") + (f" + {bias}[r]" if bias else "")
        inner = (
            "float total = 0.0f;\n"
            + storage.walk("x", f"total += {storage.values.read('*w++')} * *p;")
            + "\n"
            + context.finish(total, "y[r]", "r")
        )
        return context.done(
            f"{body}for (int r = 0; r < {matrix.rows}; ++r) {{\n{indented(inner)}\n}}"
        )
    return context.done(body + _lanes(context, storage, matrix, bias))


def _lanes(context: Context, storage: Storage, matrix: Matrix, bias: str) -> str:
    """Rows in lanes: as many sums at once, each with its own weight."""
    lanes = storage.lanes
    sums = _written_out if context.aim != "speed" else _in_vectors
    row = f"{context.name}_rows[place]" if storage.layout == "sliced" else "place"
    total = storage.values.finish("total[lane]") + (f" + {bias}[row]" if bias else "")
    guard = "" if matrix.rows % lanes == 0 else f" && {lanes} * r + lane < {matrix.rows}"
    stores = (
        f"for (int lane = 0; lane < {lanes}{guard}; ++lane) {{\n"
        f"    const int place = {lanes} * r + lane;\n"
        f"    const int row = {row};\n" + indented(context.finish(total, "y[row]", "row")) + "\n}"
    )
    return (
        f"for (int r = 0; r < {-(-matrix.rows // lanes)}; ++r) {{\n"
        f"{indented(sums(storage))}\n{indented(stores)}\n}}"
    )


def _written_out(storage: Storage) -> str:
    """Sums of a dense block one by one: they stay in registers without a compiler's unrolling."""
    names = [f"total{lane}" for lane in range(storage.lanes)]
    sums = "\n".join(
        f"{name} += {storage.values.read(f'w[{lane}]')} * a;" for lane, name in enumerate(names)
    )
    walk = storage.walk("x", f"const float a = *p;\n{sums}\nw += {storage.lanes};")
    zeros = ", ".join(f"{name} = 0.0f" for name in names)
    return f"float {zeros};\n{walk}\nconst float total[{storage.lanes}] = {{{', '.join(names)}}};"


def _in_vectors(storage: Storage) -> str:
    """Sums of a dense or a sliced block as loops of fixed length, which compilers vectorize."""
    lanes, weight = storage.lanes, storage.values.read("w[lane]")
    each = f"for (int lane = 0; lane < {lanes}; ++lane)"
    if storage.layout == "sliced":
        body = f"{each} total[lane] += {weight} * x[at[lane]];\nw += {lanes};\nat += {lanes};"
    else:
        body = f"const float a = *p;\n{each} total[lane] += {weight} * a;\nw += {lanes};"
    return f"float total[{lanes}] = {{0.0f}};\n{storage.walk('x', body)}"


def pointers(storage: Storage) -> str:
    """C that defines what a walk moves along."""
    return "".join(
        f"const {c_type} *{name} = {array};\n" for c_type, name, array in storage.pointers
    )
