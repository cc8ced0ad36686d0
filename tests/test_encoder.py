"""The benchmark of a BERT-shaped encoder, at a small size, where transformers is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "encoder.py"


@pytest.mark.slow
def test_a_small_encoder_goes_from_training_to_a_file_that_is_read_elsewhere():
    pytest.importorskip("transformers")
    if not (Path(os.environ.get("ELLZERO_DATA", "")) / "shakespeare").is_dir():
        pytest.skip("no shakespeare in ELLZERO_DATA")
    options = "--minutes 0.1 --layers 1 --width 32 --vocabulary 300 --batch 4 --texts 32"
    done = subprocess.run(
        [sys.executable, SCRIPT, *options.split()], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout.splitlines()[-1])["stages"]
    sizes = [size for stage, size, *_ in stages if stage.endswith("packed")]
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < stages[0][1] / 5
    for stage, _, cosine, _ in stages:
        assert cosine > 0.9, stage
