"""Methods that share a grid of strengths: whether they pull alike on a weight near zero."""

import pytest

from ellzero.study.pulls import unequal_pulls
from ellzero.study.study import Study

GRID = {"strengths": [1e-5, 1e-4]}


@pytest.mark.parametrize(
    ("methods", "pulls"),
    [
        # l0 at zero: strength x beta, 5 by default; l1: the strength
        ({"l1": GRID, "l0": GRID}, ["l1 1e-05", "l0 5e-05"]),
        ({"l1": GRID, "l0": {**GRID, "train": {"penalty": {"l0": {"beta": 20}}}}}, ["l0 0.0002"]),
        ({"l1": GRID, "l0": {"strengths": [2e-6, 2e-5]}}, []),
        ({"l0": GRID, "l0+l2": GRID}, []),
        ({"l0": GRID, "l0+l2-decoupled": GRID, "group-lasso": GRID, "pmmp": GRID}, []),
        ({"magnitude": {}, "gradual": {}}, []),
    ],
)
def test_a_shared_grid_whose_pulls_differ_is_told(methods, pulls):
    study = Study.parse({"sparsities": [0.9], "methods": methods})
    said = unequal_pulls(study)
    assert len(said) == bool(pulls)
    for text in pulls:
        assert text in said[0]
        assert "at strength 1e-05" in said[0]
