"""Files of runs and studies that were damaged: only ellzero's errors, and the rest goes on."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "faults" / "mutations.py"
KINDS = ("records", "metrics", "recipes", "models", "trained", "answers", "cells", "studies")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def mutations() -> dict:
    """The names of the script that changes such files; its run and its study are made once."""
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    ("kind", "count"),
    [("records", 150), ("metrics", 150), ("recipes", 150), ("models", 150), ("cells", 15)],
)
def test_mutants_are_read_or_refused(kind, count, mutations):
    # the first is drawn, too, which takes as long as reading a hundred
    outcomes = [outcome for outcome, _ in mutations["mutate"](kind, count, 0, drawn=count)]
    assert len(outcomes) == count + 1
    assert set(outcomes) <= {"used", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_mutants_are_read_or_refused(kind, mutations):
    assert set(KINDS) == set(mutations["KINDS"])
    assert len(list(mutations["mutate"](kind, 1000, 1, drawn=50))) == 1020


@pytest.mark.slow
def test_three_thousand_packed_files_are_refused_or_run_within_their_limits(tmp_path):
    script = runpy.run_path(str(SCRIPT.with_name("packed.py")))
    outcomes, broken = script["tried"](3000, 1, tmp_path)
    assert broken == []
    assert outcomes["refused"] > 1000
    assert outcomes["run"] > 500
