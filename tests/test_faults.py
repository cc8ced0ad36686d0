"""The scripts that do harm to runs and studies, in small; and that they see what does not hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults"


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=FAULTS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=1800,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "kinds"),
    [
        ("kills", 5, {"random kill", "kill before a change", "kill in a chain", "chain"}),
        ("full_disk", 5, {"disk stays full", "disk is full once"}),
        ("flips", 300, {"flip checkpoint", "flip reference", "flip trained", "cut trained"}),
        ("studies", 3, {"study"}),
    ],
)
def test_a_small_trial_holds(name, count, kinds, tmp_path):
    done = script(f"{name}.py", "--count", str(count), "--folder", str(tmp_path / "trial"))
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads(done.stdout.splitlines()[-1])
    assert kinds <= table.keys()
    for kind in kinds:
        assert table[kind]["times"] > 0
        assert table[kind]["broken"] == 0


FORGETFUL = """
import sys
import trials, ellzero.training.loop
import kills

ellzero.training.loop.seed_epoch = lambda *_: None  # what is drawn after a resume is other
sys.argv = ["kills.py", "--count", "8", "--folder", sys.argv[1], "writes"]
kills.main()
"""


@pytest.mark.slow
def test_a_package_whose_resume_draws_other_numbers_is_found_out(tmp_path):
    done = script("-c", FORGETFUL, str(tmp_path / "trial"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "DID NOT HOLD: kill" in done.stdout
    assert "differs from an undisturbed run: ['model.safetensors'" in done.stdout
