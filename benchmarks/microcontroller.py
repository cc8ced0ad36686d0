"""What a network takes on a Cortex-M4F, dense and sparse: flash, RAM, instructions an inference.

`python benchmarks/microcontroller.py RUN...`: exports the reference of each run folder densely, and
its compressed network sparsely, as float32, as 4-bit codebooks and as int8; compiles them, runs
them in QEMU on a few test images, and prints a table and one line of JSON. The network's own test
runs there too, so figures are only had for outputs that are PyTorch's. docs/microcontroller.md
explains the figures. Needs Debian's gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ellzero as ez
from ellzero.graph import Network
from ellzero.measure.macs import layer_costs

BOARD = Path(__file__).parent.parent / "examples" / "microcontroller"
EXAMPLES = 8


@dataclass(frozen=True)
class Row:
    """One network on the board.

    Args:
        run: the run folder's name.
        variant: dense or sparse, and what the weights are.
        nonzeros: weights that are not zero.
        flash_bytes: code and constants of the network's object file.
        ram_bytes: its static memory, beside input, output and a small stack.
        instructions: of one inference, the most of all examples.
        macs: multiply-adds of the dense network.
        right: examples whose class is the label, of `EXAMPLES`.
    """

    run: str
    variant: str
    nonzeros: int
    flash_bytes: int
    ram_bytes: int
    instructions: int
    macs: int
    right: int


def make(target: str, folder: Path) -> str:
    """What a target of the example's Makefile prints for the network in the folder."""
    command = ["make", "-s", "-C", str(BOARD), target, f"NETWORK={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise SystemExit(f"make {target} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def measured(network: Network, x: Tensor, labels: Tensor, storage: Any, **names: str) -> Row:
    """Export, build, and run."""
    costs = layer_costs(network)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ez.export_c(network, folder, example=x, storage=storage)
        text, data, bss = map(int, make("size", folder).splitlines()[1].split()[:3])
        result = json.loads(make("run", folder).splitlines()[-1])
    return Row(
        **names,
        nonzeros=sum(cost.nonzeros for cost in costs),
        flash_bytes=text + data,
        ram_bytes=data + bss,
        instructions=max(result["instructions"]),
        macs=sum(cost.macs for cost in costs),
        right=sum(a == b for a, b in zip(result["classes"], labels.tolist(), strict=True)),
    )


def rows(run: Path) -> Iterator[Row]:
    """The dense reference of a run, and its compressed network in three kinds of weights."""
    opened = ez.open_run(run)
    test = opened.data().test
    if test is None:
        raise SystemExit(f"{run}: its data have no test part")
    x, labels = next(iter(test.batches(EXAMPLES, torch.device("cpu"))))
    dense = ez.open_run(run / "reference.safetensors").trace()
    yield measured(dense, x, labels, "dense", run=run.name, variant="dense, float32")
    sparse = opened.trace()
    yield measured(sparse, x, labels, "smallest", run=run.name, variant="sparse, float32")
    kinds: dict[str, dict[str, Any]] = {"4-bit codebooks": {"bits": 4}, "int8": {"method": "int8"}}
    for variant, options in kinds.items():
        quantized = ez.trace(sparse)
        ez.quantize(quantized, **options)
        yield measured(quantized, x, labels, "smallest", run=run.name, variant=f"sparse, {variant}")


def main() -> None:
    """Print the table, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders that `ellzero run` wrote")
    torch.set_num_threads(1)
    found = []
    print("| run | network | nonzeros | flash, bytes | RAM, bytes | instructions | per dense MAC |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for run in parser.parse_args().runs:
        several = list(rows(run))
        dense = several[0]
        for row in several:
            smaller, fewer = (
                f" ({getattr(dense, what) / getattr(row, what):.3g}x)" if row is not dense else ""
                for what in ("flash_bytes", "instructions")
            )
            print(
                f"| {row.run} | {row.variant} | {row.nonzeros:,} | {row.flash_bytes:,}{smaller} | "
                f"{row.ram_bytes:,} | {row.instructions:,}{fewer} | "
                f"{row.instructions / row.macs:.2f} |"
            )
        found += several
    print(json.dumps([asdict(row) for row in found]))


if __name__ == "__main__":
    main()
