"""Tokens in generated C: which of an input's values are looked up in tables, of how many rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby

import torch
from torch import Tensor

from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.graph import Network
from ellzero.operations import (
    Cast,
    Constant,
    Embedding,
    Flatten,
    Input,
    Permute,
    Reshape,
    Select,
    Slice,
)

MOVES = (Cast, Flatten, Permute, Reshape, Select, Slice)
"""Operations whose result has the input's values, perhaps in other places."""


def has_tokens(network: Network) -> bool:
    """Whether some input is looked up in a table."""
    return any(isinstance(node.op, Embedding) for node in network.graph.nodes)


def checks(network: Network, places: Mapping[str, str]) -> str:
    """C that returns -1 where a value is none that its table has, before anything is read there.

    Args:
        network: tables and all.
        places: C expressions of where the inputs lie, by their names.

    Raises:
        InputError: a table that is read with numbers which are computed, so that nothing is known
            of them beforehand.
    """
    return "\n".join(
        loop(
            "i",
            count,
            f"const float token = ({places[name]})[{f'{begin} + ' if begin else ''}i];\n"
            + block(f"if (!(token >= 0.0f && token < {rows}.0f))", "return -1;"),
        )
        for name, limits in _limits(network).items()
        for begin, count, rows in _runs(limits)
    )


def _limits(network: Network) -> dict[str, list[int]]:
    """Of each value of each input, how many rows the smallest table has in which it is looked up.

    0 where it is looked up in none.
    """
    sizes = {name: math.prod(op.size) for name, op in network.graph.inputs.items()}
    limits = {name: [0] * size for name, size in sizes.items()}
    constants = {n.name for n in network.graph.nodes if isinstance(n.op, Constant)}
    sources: dict[str, tuple[str, Tensor]] = {}  # node -> an input, and which of its values
    for node in network.graph.nodes:
        if isinstance(node.op, Input):
            places = torch.arange(sizes[node.name]).reshape(1, *node.op.size)
            sources[node.name] = (node.name, places)
        elif isinstance(node.op, MOVES) and node.inputs[0] in sources:
            name, places = sources[node.inputs[0]]
            weights = {role: network.weight(weight) for role, weight in node.weights.items()}
            sources[node.name] = (name, node.op.run([places], weights))
        elif isinstance(node.op, Embedding):
            if node.inputs[0] in sources:
                name, places = sources[node.inputs[0]]
                rows = len(network.weight(node.weights["weight"]))
                for place in places.flatten().tolist():
                    limits[name][place] = min(rows, limits[name][place] or rows)
            elif node.inputs[0] not in constants:
                raise InputError(
                    f"there is no C for {node.named} of tokens that are computed; give them as an "
                    "input, or export ONNX"
                )
    return limits


def _runs(limits: list[int]) -> Iterator[tuple[int, int, int]]:
    """Begin, length and limit of values that follow each other with the same limit."""
    begin = 0
    for rows, group in groupby(limits):
        count = len(list(group))
        if rows:
            yield begin, count, rows
        begin += count
