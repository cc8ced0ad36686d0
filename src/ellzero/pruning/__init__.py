"""Pruning: masks, and the choice of the weights that go."""

from ellzero.pruning.magnitude import Scope, kept_count, largest, prune
from ellzero.pruning.masks import Hold, Masks

__all__ = ["Hold", "Masks", "Scope", "kept_count", "largest", "prune"]
