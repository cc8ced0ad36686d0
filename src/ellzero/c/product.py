"""Products of a stored matrix with floats: rows one by one, or several in lanes."""

from __future__ import annotations

from collections.abc import Callable

from ellzero.c.layer import pointers
from ellzero.c.storage import Matrix, Storage, StorageChoice
from ellzero.c.text import block, loop


def product(
    matrix: Matrix,
    storage: Storage,
    choice: StorageChoice,
    x: str,
    store: Callable[[str, str], str],
) -> str:
    """C of a sum for each row of a matrix.

    Args:
        matrix: it is multiplied.
        storage: how it lies; its arrays are defined with the function.
        choice: which storage was asked for.
        x: C expression of where the floats begin that the columns multiply.
        store: (C expression of a row's sum, of the row) -> C that stores it.
    """
    if storage.lanes > 1:
        return pointers(storage) + _lanes(matrix, storage, choice, x, store)
    walk = storage.walk(x, f"total += {storage.values.read('*w++')} * *p;")
    total = storage.values.finish("total")
    row = f"float total = 0.0f;\n{walk}\n{store(total, 'r')}"
    return pointers(storage) + loop("r", matrix.rows, row)


def _lanes(
    matrix: Matrix,
    storage: Storage,
    choice: StorageChoice,
    x: str,
    store: Callable[[str, str], str],
) -> str:
    """Rows in lanes: as many sums at once, each with its own weight."""
    lanes = storage.lanes
    sums = _in_vectors if choice == "fastest" else _written_out
    row = f"{matrix.name}_rows[place]" if storage.layout == "sliced" else "place"
    guard = "" if matrix.rows % lanes == 0 else f" && {lanes} * r + lane < {matrix.rows}"
    stores = block(
        f"for (int lane = 0; lane < {lanes}{guard}; ++lane)",
        f"const int place = {lanes} * r + lane;\nconst int row = {row};\n"
        + store(storage.values.finish("total[lane]"), "row"),
    )
    return loop("r", -(-matrix.rows // lanes), f"{sums(storage, x)}\n{stores}")


def _written_out(storage: Storage, x: str) -> str:
    """Sums of a dense block one by one: they stay in registers without a compiler's unrolling."""
    names = [f"total{lane}" for lane in range(storage.lanes)]
    sums = "\n".join(
        f"{name} += {storage.values.read(f'w[{lane}]')} * a;" for lane, name in enumerate(names)
    )
    walk = storage.walk(x, f"const float a = *p;\n{sums}\nw += {storage.lanes};")
    zeros = ", ".join(f"{name} = 0.0f" for name in names)
    return f"float {zeros};\n{walk}\nconst float total[{storage.lanes}] = {{{', '.join(names)}}};"


def _in_vectors(storage: Storage, x: str) -> str:
    """Sums of a dense or a sliced block as loops of fixed length, which compilers vectorize."""
    lanes, weight = storage.lanes, storage.values.read("w[lane]")
    if storage.layout == "sliced":
        sums = loop("lane", lanes, f"total[lane] += {weight} * {x}[at[lane]];")
        body = f"{sums}\nw += {lanes};\nat += {lanes};"
    else:
        sums = loop("lane", lanes, f"total[lane] += {weight} * a;")
        body = f"const float a = *p;\n{sums}\nw += {lanes};"
    return f"float total[{lanes}] = {{0.0f}};\n{storage.walk(x, body)}"
