"""Networks x stages: every kind of network goes all the way, and docs/matrix.md says so."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest

from matrix_networks import MATRIX_NETWORKS
from matrix_stages import STAGES, outcome

# all of them are untrained
pytestmark = pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "matrix.md").read_text()
ROWS = {
    network: dict(zip(("weights", *STAGES), cells.split(" | "), strict=True))
    for network, cells in re.findall(r"^\| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
}

QUICK = {(network, stage) for network in ("MLP", "two inputs") for stage in STAGES}
QUICK -= {("MLP", "ONNX"), ("two inputs", "ONNX")}
QUICK |= {(network, "select") for network in MATRIX_NETWORKS}


def cells() -> list[object]:
    """Every cell; the slow ones are marked."""
    return [
        pytest.param(network, stage, marks=() if (network, stage) in QUICK else pytest.mark.slow)
        for network in MATRIX_NETWORKS
        for stage in STAGES
    ]


@pytest.mark.parametrize(("network", "stage"), cells())
def test_cell(network, stage, tmp_path):
    if stage == "C" and shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    case = MATRIX_NETWORKS[network]
    said = outcome(case, stage, tmp_path)
    if stage in case.refused:
        assert case.refused[stage] in said
        assert ROWS[network][stage] == "refused"
        assert f"- {network}, {stage}: {said}.\n" in PAGE
    else:
        assert said == "yes"
        assert ROWS[network][stage] == "yes"


def test_the_page_is_what_its_script_writes():
    make = runpy.run_path(str(DOCS / "make_matrix.py"))
    reasons = dict(re.findall(r"^- (.*?, \w+): (there .*)\.$", PAGE, re.MULTILINE))
    outcomes = {
        (network, stage): "yes" if ROWS[network][stage] == "yes" else reasons[f"{network}, {stage}"]
        for network in MATRIX_NETWORKS
        for stage in STAGES
    }
    assert make["with_tables"](PAGE, outcomes) == PAGE, "run python docs/make_matrix.py"
