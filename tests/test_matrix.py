"""Networks x stages: every kind of network goes all the way, from selection to C."""

from __future__ import annotations

import re
import shutil

import pytest

import ellzero as ez
from matrix_networks import MATRIX_NETWORKS
from matrix_stages import STAGES

pytestmark = [
    pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning"),  # all of them are untrained
]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("network", MATRIX_NETWORKS)
def test_cell(network, stage, tmp_path):
    if stage == "C" and shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    case = MATRIX_NETWORKS[network]
    if stage in case.refusals:
        with pytest.raises(ez.InputError, match=case.refusals[stage]):
            STAGES[stage](case, tmp_path)
    else:
        STAGES[stage](case, tmp_path)
