"""What of a network cannot be compacted, packed or written as C, told before it is trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from ellzero.compaction.compact import compacted_of
from ellzero.compaction.folding import folded
from ellzero.conclusion import traced
from ellzero.data.data import Data
from ellzero.errors import InputError
from ellzero.export.c.plan import without_c
from ellzero.quantization.integer import require_integer_form


@dataclass(frozen=True)
class Obstacles:
    """What is in the way, in sentences or by the layers' names, each with its line of source.

    Args:
        untraced: why the network cannot be seen as layers, so that none of the rest is known.
        compaction: what stays whole, and why.
        packing: what a packed file holds the name of alone, so that it is read with the class.
        c: what there is no C for.
        integers: why there is no form in integers.
    """

    untraced: str | None = None
    compaction: tuple[str, ...] = ()
    packing: tuple[str, ...] = ()
    c: tuple[str, ...] = ()
    integers: str | None = None


def obstacles(model: nn.Module, data: Data) -> Obstacles:
    """What is in the way of shipping a network; it is traced for that, which takes some seconds."""
    try:
        network = traced(copy.deepcopy(model).cpu().eval(), data)
    except Exception as error:  # of whatever kind: the run goes on without its tracing, too
        return Obstacles(untraced=str(error))
    compaction = compacted_of(folded(network)).kept
    packing = tuple(node.named for node in network.graph.opaque)
    integers = None
    try:
        require_integer_form(network)
    except InputError as error:
        integers = str(error)
    return Obstacles(None, compaction, packing, tuple(without_c(network)), integers)
