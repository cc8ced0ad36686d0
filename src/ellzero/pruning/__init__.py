"""Pruning: masks, and the choice of the weights that go."""

from ellzero.pruning.hold import Hold
from ellzero.pruning.magnitude import (
    Scope,
    kept_count,
    least,
    minimums,
    prune,
    ranked,
    require_sparsity,
)
from ellzero.pruning.masks import Masks
from ellzero.pruning.ranking import largest

__all__ = [
    "Hold",
    "Masks",
    "Scope",
    "kept_count",
    "largest",
    "least",
    "minimums",
    "prune",
    "ranked",
    "require_sparsity",
]
