"""Penalties: scalar functions of weights, one a file; recipes use the names in `PENALTIES`."""

from ellzero.penalties.l0 import L0
from ellzero.penalties.l1 import L1
from ellzero.penalties.l2 import L2
from ellzero.penalties.penalty import Form, Penalty, Sum, Term

PENALTIES: dict[str, type[Term]] = {"l0": L0, "l1": L1, "l2": L2}

__all__ = ["L0", "L1", "L2", "PENALTIES", "Form", "Penalty", "Sum", "Term"]
