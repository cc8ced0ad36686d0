"""What a network takes on a Cortex-M4F, dense and sparse: flash, RAM, instructions an inference.

`python benchmarks/microcontroller.py RUN...`: exports the reference of each run folder densely, and
its compressed network sparsely, as float32, as 4-bit codebooks, as int8 and in integers alone;
compiles them, runs them in QEMU on a few test images, and prints a table and one line of JSON.
`--random` measures five networks with random masks instead, 90 % of each layer zeros, in float32
and in integers; layers of less than 2,000 weights and depthwise ones stay dense. The network's own
test runs there too, so figures are only had for outputs that are PyTorch's.
docs/microcontroller.md explains the figures. Needs Debian's gcc-arm-none-eabi,
libnewlib-arm-none-eabi, qemu-system-arm.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ellzero as ez
from ellzero.factories import build_model
from ellzero.graph import Network
from ellzero.measure.macs import layer_costs
from ellzero.recipe import Factory

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


def measured(
    network: Network,
    x: Tensor,
    labels: Tensor,
    storage: Any,
    of: Network | None = None,
    **names: str,
) -> Row:
    """Export, build, and run; of integers the network they were made of counts the weights."""
    costs = layer_costs(network if of is None else of)
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
    try:
        integers = ez.quantize(sparse, activations=8, data=opened.data()).model
    except ez.InputError as error:  # a layer without an integer form
        print(f"{run.name}: {error}", file=sys.stderr)
        return
    for storage in ("smallest", "fastest"):
        variant = f"integers, {storage}"
        yield measured(integers, x, labels, storage, sparse, run=run.name, variant=variant)


RANDOM = {
    "lenet-300-100": (1, 28, 28),
    "lenet-5-caffe": (1, 28, 28),
    "ds-cnn": (1, 49, 10),
    "resnet-8": (3, 32, 32),
    "autoencoder": (640,),
}


def random_rows(name: str, sparsity: float = 0.9) -> Iterator[Row]:
    """A network of random weights and masks, on random inputs, in float32 and in integers."""
    torch.manual_seed(0)
    model = build_model(Factory(name=name), 0).eval()
    with torch.no_grad():
        for w in model.parameters():
            if w.ndim > 1 and w.numel() >= 2000 and w[0, 0].numel() != w[0].numel():
                w.mul_((torch.rand_like(w) > sparsity) / (1 - sparsity) ** 0.5)
    x = torch.rand(64, *RANDOM[name])
    network = ez.trace(model, x)
    labels = network(x[:EXAMPLES]).argmax(1)
    yield measured(network, x[:EXAMPLES], labels, "smallest", run=name, variant="sparse, float32")
    integers = ez.quantize(network, activations=8, data=x, ranges="minmax").model
    for storage in ("smallest", "fastest"):
        variant = f"integers, {storage}"
        yield measured(integers, x[:EXAMPLES], labels, storage, network, run=name, variant=variant)


def main() -> None:
    """Print the table, then the figures as JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders that `ellzero run` wrote")
    parser.add_argument("--random", action="store_true", help="networks with random masks")
    torch.set_num_threads(1)
    found = []
    print("| run | network | nonzeros | flash, bytes | RAM, bytes | instructions | per dense MAC |")
    print("|---|---|---:|---:|---:|---:|---:|")
    options = parser.parse_args()
    tables = map(random_rows, RANDOM) if options.random else map(rows, options.runs)
    for several in map(list, tables):
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
