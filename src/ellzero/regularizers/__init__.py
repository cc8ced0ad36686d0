"""Regularizers: penalties and gates bound to a network; recipes use the names in `GATES`."""

from ellzero.regularizers.gates import BoundGates as BoundGates
from ellzero.regularizers.gates import Gates as Gates
from ellzero.regularizers.hard_concrete import HardConcrete as HardConcrete
from ellzero.regularizers.layer_scale import LayerScale as LayerScale
from ellzero.regularizers.layer_scale import layer_scales as layer_scales
from ellzero.regularizers.pmmp import PMMP as PMMP
from ellzero.regularizers.regularizer import Regularizer as Regularizer

GATES: dict[str, type[Gates]] = {"hard_concrete": HardConcrete, "pmmp": PMMP}
