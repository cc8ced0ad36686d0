"""What Ray costs a study: two workers of a cluster against two plain processes, the same cells.

`python benchmarks/cluster.py` starts a cluster of one node with room for two cells on this machine.

- Efficiency: two plain processes side by side, each of which runs the cells of one seed, and then a
  study of the same two seeds on the cluster. Both are timed from the command's start to its end,
  imports of torch included; the ratio is the efficiency.
- Overhead: cells that take next to no time, on one worker of the cluster and in one plain process,
  few of them and four times as many. What the difference grows by is what a cell costs; the rest is
  what the start costs, on the driver and on the node.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ellzero as ez

NETWORK = """
import torch, ellzero as ez

def network():
    return torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))

def data(examples):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 256, generator=generator)
    y = x[:, :10].argmax(1)
    return ez.Data((x, y), (x[:1000], y[:1000]), (x[:1000], y[:1000]))
"""

PLAIN = """
import sys
from pathlib import Path
import ellzero as ez
from ellzero.run_folder import REFERENCE
from ellzero.study.results import cell_folder, reference_folder
from ellzero.study.worker import run_cell

study, folder, seed = ez.Study.read("study.toml"), Path(sys.argv[1]), int(sys.argv[2])
reference = reference_folder(folder, seed)
assert run_cell(reference, study.reference_recipe(seed).to_table()) is None
for cell in study.cells():
    if cell.training.seed == seed:
        table = study.cell_recipe(cell).to_table()
        table["reference"]["file"] = str(reference / REFERENCE)
        assert run_cell(cell_folder(folder, cell), table) is None
"""

CLUSTER = """
import sys
import ellzero as ez

cluster = ez.RayCluster(sys.argv[2])
results = ez.compare(
    ez.Study.read("study.toml"),
    sys.argv[1],
    workers=int(sys.argv[3]),
    cluster=cluster,
    progress=False,
)
assert not results.failures() and not results.unfinished()
"""


def study(epochs: int, examples: int, seeds: list[int], targets: int) -> ez.Study:
    """Cells that share no training, so that all take as long."""
    return ez.Study.parse(
        {
            "seeds": seeds,
            "sparsities": [0.5 + 0.4 * i / targets for i in range(targets)],
            "recipe": {
                "model": "own:network",
                "data": {"name": "own:data", "examples": examples},
                "threads": 1,
                "reference": {"epochs": epochs},
                "train": {"epochs": epochs},
                "finetune": {"epochs": 0},
            },
            "methods": {"l1": {"strengths": [1e-5], "prune": {"gradual": {}}}},
        }
    )


@contextmanager
def node(folder: Path) -> Iterator[str]:
    """A cluster of one node with two CPUs, by its address; it listens on the loopback alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--num-cpus=2"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false"]
    command += ["--block", "--temp-dir", str(folder)]
    with (folder / "log").open("wb") as log:
        ray = subprocess.Popen(command, stdout=log, stderr=log)
    while "now block" not in (folder / "log").read_text():
        assert ray.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        ray.terminate()
        ray.wait()


def seconds(*commands: list[str]) -> float:
    """How long these take side by side."""
    began = time.perf_counter()
    running = [subprocess.Popen([sys.executable, "-W", "ignore", "-c", *c]) for c in commands]
    codes = [process.wait() for process in running]
    assert not any(codes), codes
    return time.perf_counter() - began


def cell_seconds(folder: str) -> list[float]:
    """What each cell's record says it took."""
    return [json.loads(p.read_text())["seconds"] for p in Path(folder).glob("cells/*/record.json")]


def main() -> None:
    """Efficiency first, then the overhead of a cell."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60, help="of a long cell")
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--cells", type=int, default=10, help="long ones, of each of two seeds")
    parser.add_argument("--short", type=int, default=40, help="how many short ones")
    chosen = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="cells-") as folder,
        tempfile.TemporaryDirectory(prefix="ray-") as of_ray,
        node(Path(of_ray)) as address,
    ):
        os.chdir(folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [folder, str(Path(ez.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        )
        Path("own.py").write_text(NETWORK)
        figures: dict[str, Any] = {}

        long = study(chosen.epochs, chosen.examples, [0, 1], chosen.cells)
        Path("study.toml").write_text(long.to_toml())
        plain = seconds([PLAIN, "plain", "0"], [PLAIN, "plain", "1"])
        ray = seconds([CLUSTER, "ray", address, "2"])
        figures["cell_seconds"] = sorted(cell_seconds("plain"))
        figures |= {"plain": round(plain, 1), "ray": round(ray, 1)}
        figures["efficiency"] = round(plain / ray, 3)
        print(json.dumps(figures))

        extra = {}
        for cells in (chosen.short // 4, chosen.short):
            Path("study.toml").write_text(study(1, 1000, [0], cells).to_toml())
            plain = seconds([PLAIN, f"plain-{cells}", "0"])
            ray = seconds([CLUSTER, f"ray-{cells}", address, "1"])
            extra[cells] = ray - plain
            print(json.dumps({"cells": cells + 1, "plain": round(plain, 1), "ray": round(ray, 1)}))
        (few, low), (many, high) = extra.items()
        per_cell = (high - low) / (many - few)
        start = low - (few + 1) * per_cell
        print(json.dumps({"start": round(start, 1), "overhead_per_cell": round(per_cell, 2)}))


if __name__ == "__main__":
    main()
