"""Whether methods that share a grid of strengths pull alike: a strength is no pull by itself."""

from __future__ import annotations

from itertools import groupby

import torch

from ellzero.recipe_fields import Named
from ellzero.study.study import Cell, Study

NEAR_ZERO = 1e-9
"""The weight whose pull is told; at 0 itself the subgradient is 0."""

ALIKE = 1.5
"""Pulls within this factor are called alike."""


def unequal_pulls(study: Study) -> list[str]:
    """A sentence for each grid of strengths that several methods share and that pull unlike.

    The pull at zero is the derivative of the penalty for a small weight: strength x beta for l0,
    the strength for l1, none for l2. Methods whose pull depends on a weight's neighbours have no
    such figure; neither have gates and decoupled forms, whose step the learning rate scales.
    """
    by_grid = sorted(study.methods, key=lambda name: study.methods[name].strengths)
    said = []
    for grid, names in groupby(by_grid, key=lambda name: study.methods[name].strengths):
        if not grid:
            continue
        pulls = {name: p for name in names if (p := _pull(study, name, grid[0])) is not None}
        if len(pulls) < 2 or max(pulls.values()) <= ALIKE * min(pulls.values()):
            continue
        listed = ", ".join(f"{study.label(name)} {p:.2g}" for name, p in pulls.items())
        said.append(
            f"methods with the same strengths do not pull alike: at strength {grid[0]:g} the pull "
            f"on a weight near zero is {listed} (l0's is strength x beta); so the grids are equal "
            "in name, and each is to be placed around its own best"
        )
    return said


def _pull(study: Study, method: str, strength: float) -> float | None:
    """The pull at zero of a method with this strength; None where there is no such figure."""
    training = next(t for t in study.tuning() if t.method == method and t.strength == strength)
    penalty = study.cell_recipe(Cell(training, study.targets[0])).train.penalty
    if penalty is None or any(isinstance(term, Named) for term in penalty.terms):
        return None
    penalty = penalty.at(1.0)  # its schedules end there, where pruning comes
    if any(not term.elementwise or term.form == "decoupled" for term in penalty.terms):
        return None
    return float(penalty.gradient(torch.tensor([NEAR_ZERO], dtype=torch.float64)))
