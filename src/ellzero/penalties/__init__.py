"""Penalties: scalar functions of weights, one a file; recipes use the names in `PENALTIES`."""

from ellzero.penalties.group_lasso import GroupLasso
from ellzero.penalties.hoyer import HoyerSquare
from ellzero.penalties.l0 import L0
from ellzero.penalties.l1 import L1
from ellzero.penalties.l2 import L2
from ellzero.penalties.penalty import Form, Penalty, Sum, Term

PENALTIES: dict[str, type[Term]] = {
    "l0": L0,
    "l1": L1,
    "l2": L2,
    "hoyer_square": HoyerSquare,
    "group_lasso": GroupLasso,
}

__all__ = [
    "L0",
    "L1",
    "L2",
    "PENALTIES",
    "Form",
    "GroupLasso",
    "HoyerSquare",
    "Penalty",
    "Sum",
    "Term",
]
