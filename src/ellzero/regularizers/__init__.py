"""Regularizers: penalties and gates bound to a network; recipes use the names in `GATES`."""

from ellzero.regularizers.gates import BoundGates, Gates
from ellzero.regularizers.hard_concrete import HardConcrete
from ellzero.regularizers.layer_scale import LayerScale, layer_scales
from ellzero.regularizers.pmmp import PMMP
from ellzero.regularizers.regularizer import Regularizer

GATES: dict[str, type[Gates]] = {"hard_concrete": HardConcrete, "pmmp": PMMP}

__all__ = [
    "GATES",
    "PMMP",
    "BoundGates",
    "Gates",
    "HardConcrete",
    "LayerScale",
    "Regularizer",
    "layer_scales",
]
