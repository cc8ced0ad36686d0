"""The C of the layers that have a weight: one emitter each, over whatever storage it has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ellzero.export.c import storage as storages
from ellzero.export.c.function import Aim, Context, Function, indented, scope
from ellzero.export.c.storage import Matrix, Storage
from ellzero.graph import ops

BLOCK = 8
"""Outputs of a row of a convolution that are summed together: one read of a weight serves all."""


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


def _weighted(context: Context, offsets: np.ndarray, *, lanes: bool) -> tuple[Storage, Matrix]:
    weight = context.weight(context.step.node, "weight")
    assert weight is not None
    matrix = Matrix(context.name, weight)
    storage = _choose(matrix, offsets, context.aim, lanes=lanes)
    context.function.storage, context.function.matrix = storage, matrix
    context.function.arrays += storage.all_arrays
    return storage, matrix


def _bias(context: Context) -> str:
    if "bias" not in context.step.node.weights:
        return ""
    return context.vector(context.step.node, "bias")


def linear(context: Context) -> Function:
    """A dense layer: rows one by one, or several in lanes."""
    columns = context.step.inputs[0][1][0]
    storage, matrix = _weighted(context, np.arange(columns), lanes=True)
    bias = _bias(context)
    body = _pointers(storage)
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


def conv(context: Context) -> Function:
    """A convolution: per output channel and block of outputs, a walk over the channel's weights."""
    op, step = context.step.node.op, context.step
    assert isinstance(op, ops.Conv)
    (_, height, width), (out, rows, columns) = step.inputs[0][1], step.shape
    weight = context.weight(step.node, "weight")
    assert weight is not None
    per_group, kernel_h, kernel_w = weight.shape[1:]
    place = np.indices((per_group, kernel_h, kernel_w)).reshape(3, -1)
    offsets = (
        place[0] * height * width + place[1] * op.dilation[0] * width + place[2] * op.dilation[1]
    )
    storage, _ = _weighted(context, offsets, lanes=False)
    bias = _bias(context)
    walk = storage.walk
    if storage.layout == "dense":
        walk = _nested(per_group, kernel_h, kernel_w, op.dilation, height, width)
    base = f"x + oy * {op.stride[0] * width}"
    if op.groups > 1:
        base += f" + r / {out // op.groups} * {per_group * height * width}"
    block = _block(columns)
    blocks = [(0, columns // block, block)]
    if columns % block:
        blocks.append((columns - columns % block, 1, columns % block))
    inner = "".join(
        _conv_block(context, storage, walk, base, bias, begin, count, size, op.stride[1])
        for begin, count, size in blocks
    )
    # every block walks over the row's weights again; the next row's begin where the last walk ended
    names = [(c_type, name) for c_type, name, _ in storage.pointers]
    keep = "".join(f"const {c_type} *const {name}0 = {name};\n" for c_type, name in names)
    body = _pointers(storage) + (
        f"for (int r = 0; r < {out}; ++r) {{\n"
        + indented(
            keep
            + f"for (int oy = 0; oy < {rows}; ++oy) {{\n{indented(inner)}\n    y += {columns};\n}}"
        )
        + "\n}"
    )
    return context.done(body)


def _conv_block(
    context: Context,
    storage: Storage,
    walk: Callable[[str, str], str],
    base: str,
    bias: str,
    begin: int,
    count: int,
    size: int,
    stride: int,
) -> str:
    """`count` blocks of `size` outputs of a row, from column `begin` on."""
    at = f"ox + {begin}" if begin else "ox"
    restart = "".join(f"{name} = {name}0;\n" for _, name, _ in storage.pointers)
    sums = "\n".join(f"total{i} += a * p[{i * stride}];" for i in range(size))
    read = storage.values.read("*w++")
    shift = f" + {bias}[r]" if bias else ""
    stores = "\n".join(
        scope(context.finish(storage.values.finish(f"total{i}") + shift, f"y[{at} + {i}]", "r"))
        for i in range(size)
    )
    inner = (
        restart
        + "float "
        + ", ".join(f"total{i} = 0.0f" for i in range(size))
        + ";\n"
        + walk(
            f"{base} + {at if stride == 1 else f'({at}) * {stride}'}",
            f"const float a = {read};\n{sums}",
        )
        + f"\n{stores}"
    )
    return f"for (int ox = 0; ox < {count * size}; ox += {size}) {{\n{indented(inner)}\n}}\n"


def _nested(
    channels: int, kernel_h: int, kernel_w: int, dilation: tuple[int, int], height: int, width: int
) -> Callable[[str, str], str]:
    """A walk over every weight of an output channel in turn."""

    def walk(base: str, body: str) -> str:
        column = f"for (int kx = 0; kx < {kernel_w}; ++kx) {{\n" + indented(
            f"const float *p = from + kx * {dilation[1]};\n{body}"
        )
        row = f"for (int ky = 0; ky < {kernel_h}; ++ky) {{\n" + indented(
            f"const float *from = {base} + c * {height * width} + ky * {dilation[0] * width};\n"
            f"{column}\n}}"
        )
        return f"for (int c = 0; c < {channels}; ++c) {{\n{indented(row)}\n    }}\n}}"

    return walk


def _block(columns: int) -> int:
    """How many outputs of a row are summed together: the largest divisor up to eight, or eight."""
    best = max(size for size in range(1, BLOCK + 1) if columns % size == 0)
    return best if best >= 4 or columns < BLOCK else BLOCK


def _pointers(storage: Storage) -> str:
    return "".join(
        f"const {c_type} *{name} = {array};\n" for c_type, name, array in storage.pointers
    )
