"""Penalties: scalar functions of weights, one a file; recipes use the names in `PENALTIES`."""

from ellzero.penalties.group_lasso import GroupLasso as GroupLasso
from ellzero.penalties.hoyer import HoyerSquare as HoyerSquare
from ellzero.penalties.l0 import L0 as L0
from ellzero.penalties.l1 import L1 as L1
from ellzero.penalties.l2 import L2 as L2
from ellzero.penalties.penalty import Form as Form
from ellzero.penalties.penalty import Penalty as Penalty
from ellzero.penalties.penalty import Sum as Sum
from ellzero.penalties.penalty import Term as Term

PENALTIES: dict[str, type[Term]] = {
    "l0": L0,
    "l1": L1,
    "l2": L2,
    "hoyer_square": HoyerSquare,
    "group_lasso": GroupLasso,
}
