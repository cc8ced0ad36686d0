"""What generated C is made of, as data: its steps, and where the values between them lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ellzero.graph import Node, ops
from ellzero.graph.ops import Shape


class Pad(ops.Op):
    """Zeros around each channel, so that a convolution need not look where it is."""

    kind: str = "pad"
    padding: tuple[int, int]


@dataclass
class Step:
    """One function of the generated C.

    Args:
        node: the operation and its name.
        shape: one example's result.
        inputs: (node whose value is read, its shape).
        after: elementwise operations done on each value before it is stored.
        result: the node whose value is stored: the last of those.
        in_place: whether it may store where it reads.
    """

    node: Node
    shape: Shape
    inputs: list[tuple[str, Shape]]
    after: list[Node] = field(default_factory=list)
    result: str = ""
    in_place: bool = False


@dataclass(frozen=True)
class Plan:
    """Steps in order, where each value lies, and the floats of scratch memory that takes."""

    steps: list[Step]
    places: dict[str, str]
    scratch: int
    weights: Mapping[str, Tensor]
