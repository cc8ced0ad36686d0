"""Random recurrent networks: stacks in both directions, units that are dead, unread or constant."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from c_programs import Builder
from ellzero import operations as ops
from ellzero.graph import Network
from ellzero.operations.cells import CELLS


def random_recurrent(seed: int, *, streams: bool = False) -> Network:
    """Up to three layers, and often a linear one on the last step.

    Args:
        seed: of all that is drawn.
        streams: whether all layers begin at the first step.
    """
    b = Builder((1, 1), seed)
    steps, features = int(b.random.integers(1, 7)), int(b.random.integers(2, 6))
    b = Builder((steps, features), seed)
    for _ in range(b.random.integers(1, 4)):
        before, units = b.last, int(b.random.integers(2, 7))
        recurrent(b, units, reverse=not streams and b.pick(True, False, False))
        if b.pick(True, False, False):
            first, b.last = b.last, before
            recurrent(b, units, reverse=not streams)
            b.add(ops.Concat(axis=1), first)
        if b.pick(True, False):
            b.activation(b.pick("relu", "sigmoid"))
    if b.pick(True, True, False):
        b.add(ops.Slice(axis=0, start=steps - 1, stop=steps))
        b.linear(3, density=0.5)
    return b.network()


def recurrent(b: Builder, units: int, *, reverse: bool = False) -> str:
    """A layer of a random cell; its name."""
    cell = b.pick(*CELLS)
    gates, features = CELLS[cell].gates, b.shape[1]
    density = b.pick(0.1, 0.3, 0.7, 1.0)
    weights: dict[str, Tensor] = {
        "weight_ih": b.weight(gates, units, features, density=density),
        "weight_hh": b.weight(gates, units, units, density=density),
        "bias_ih": b.normal(gates, units),
        "bias_hh": b.normal(gates, units),
    }
    for unit in range(units):
        _spoil(b, weights, unit)
    given = [role for role in weights if "weight" in role or b.pick(True, True, False)]
    op: Any = {"cell": cell, "reverse": reverse}
    return b.add(ops.Recurrent(**op), **{role: weights[role].flatten(0, 1) for role in given})


def _spoil(b: Builder, weights: dict[str, Tensor], unit: int) -> None:
    """Make a unit dead, constant in what it is given, or unread by the layer; or leave it."""
    rows = [w[:, unit] for w in weights.values()]
    match b.pick("dead", "dead gate", "constant", "unread", "", ""):
        case "dead":
            for row in rows:
                row.zero_()
        case "dead gate":  # the one that says what is new: without it the state stays 0
            for row in rows:
                row[{4: 2, 3: 2}.get(len(row), 0)] = 0
        case "constant":
            for row in rows[:2]:
                row.zero_()
        case "unread":
            weights["weight_hh"][:, :, unit] = 0
