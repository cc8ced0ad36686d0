"""`torchrun -m ellzero run`: several processes of the command line, and what becomes of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small import metrics_of

pytestmark = pytest.mark.slow

RECIPE = """
model = "distributed_own:network"
data = "distributed_own:data"
device = "cpu"
threads = 1
checkpoint_seconds = 0
train = {{ epochs = {epochs}, batch_size = 16, optimizer = "sgd", learning_rate = 0.05 }}
reference.epochs = 2
finetune.epochs = 2
prune.sparsity = 0.75
"""

OWN = '''
import os, signal, time
import torch
from torch import nn
import ellzero as ez
from small import blobs, mlp


class Examples(torch.utils.data.Dataset):
    """Slow ones, of which the last rank fails in the way it is told to."""

    def __init__(self, examples):
        self.examples, self.fails, self.taken = examples, os.environ.get("OWN_FAILS"), 0

    def __len__(self):
        return len(self.examples[1])

    def __getitem__(self, index):
        self.taken += 1
        if self.taken == 150 and self.fails and os.environ.get("RANK") == "1":
            open("failed", "w").close()
            if self.fails == "raises":
                raise KeyError("of rank 1")
            if self.fails == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        if self.fails == "slow":
            time.sleep(0.002)
        return self.examples[0][index], self.examples[1][index]


def network():
    return mlp()


def data():
    return ez.Data(Examples(blobs(120, 1)), blobs(45, 2), blobs(30, 3))
'''


def _environment(folder: Path, fails: str = "") -> dict[str, str]:
    (folder / "distributed_own.py").write_text(OWN)
    places = [str(folder), str(Path(__file__).parents[1])]
    paths = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OWN_FAILS": fails}
    return {**os.environ, **own, "GLOO_SOCKET_IFNAME": "lo"}


def _start(folder: Path, arguments: Sequence[str], fails: str = "") -> subprocess.Popen[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "-m", "ellzero", "run", *arguments],
        env=_environment(folder, fails),
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _recipe(folder: Path, epochs: int = 3) -> list[str]:
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(epochs=epochs))
    return [str(file), "--output", str(folder / "run")]


def test_two_processes_write_one_folder_and_print_once(tmp_path):
    arguments = _recipe(tmp_path)
    process = _start(tmp_path, [*arguments, "--json"])
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    record = json.loads(out)
    assert record["processes"] == 2
    for warning in ("validation data has 45 examples", "test data has 30 examples"):
        assert error.count(warning) == 1
    (tmp_path / "run").rename(tmp_path / "two")
    subprocess.run(
        [sys.executable, "-m", "ellzero", "run", *arguments],
        env=_environment(tmp_path),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    names = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("run", "two")]
    assert names[0] == names[1]
    two, one = (load_file(tmp_path / folder / "model.safetensors") for folder in ("two", "run"))
    assert two.keys() == one.keys()
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, one[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("raises", "ellzero: rank 1: KeyError: 'of rank 1'\n"),
        ("killed", "Signal 9 (SIGKILL)"),
    ],
)
def test_a_process_that_ends_takes_the_others_along_and_the_run_goes_on_later(
    tmp_path, fails, told
):
    process = _start(tmp_path, _recipe(tmp_path), fails)
    _, error = process.communicate(timeout=240)
    assert time.time() - (tmp_path / "failed").stat().st_mtime < 60
    assert process.returncode != 0
    assert told in error
    # torchrun tells it to end, if it has not noticed by itself that its connection is closed
    ended = (
        r"ellzero: rank 0: (another process has ended, which tells why|interrupted); .* is saved"
    )
    assert re.search(ended, error)
    before = metrics_of(tmp_path / "run")
    assert [m["epoch"] for m in before] == [1, 2]
    again = _start(tmp_path, ["--resume", str(tmp_path / "run"), "--trust"])
    _, error = again.communicate(timeout=240)
    assert again.returncode == 0, error
    after = metrics_of(tmp_path / "run", "seconds")
    assert after[:2] == [{k: v for k, v in m.items() if k != "seconds"} for m in before]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_in_one_process(tmp_path, number):
    process = _start(tmp_path, _recipe(tmp_path, epochs=500), "slow")
    lines = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (lines.exists() and len(metrics_of(lines.parent)) > 4):
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - began < 40
    assert process.returncode != 0
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file(), error
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "interrupted"
