"""C of ResNet-50 with its weights in arrays and in a file beside it: bytes, and seconds to compile.

    python benchmarks/large_c.py [--folder FOLDER] [--sparsity 0.9]

Figures are of one run side by side; what else the machine does changes the seconds.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import torch

import ellzero as ez
from ellzero.networks.resnet import resnet_50


def row(network: ez.Network, folder: Path, weights: str) -> str:
    """A line of the table: what was written, and how long gcc took for it."""
    source = ez.export_c(network, folder, weights=weights)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    began = time.perf_counter()
    command = ["gcc", "-std=c99", "-O2", "net.c", "net_test.c", "-o", "check", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    seconds = time.perf_counter() - began
    done = subprocess.run(["./check"], cwd=folder, capture_output=True, text=True, check=True)
    blob = sizes.get("net_weights.bin", 0)
    cells = (weights, sizes["net.c"], blob, source.constant_bytes, f"{seconds:.1f}")
    return f"| {' | '.join(map(str, cells))} | {done.stdout.strip()}"


def main() -> None:
    """Both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.mkdtemp()))
    parser.add_argument("--sparsity", type=float, default=0.9, help="of each layer")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = resnet_50().eval()
    ez.prune(model, sparsity=options.sparsity, scope="layer")
    network = ez.trace(model, torch.zeros(1, 3, 32, 32))
    print("| weights | bytes of net.c | bytes of the file | bytes of constants | seconds of gcc |")
    for weights in ("arrays", "blob"):
        folder = options.folder / weights
        folder.mkdir(parents=True, exist_ok=True)
        print(row(network, folder, weights), flush=True)


if __name__ == "__main__":
    main()
