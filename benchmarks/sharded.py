"""Memory of a process with a sharded network: 200 million weights on two processes, by FSDP2.

`python benchmarks/sharded.py` starts two processes on this machine's CPU (gloo), 2.3 GB each.
The network is made on the meta device, each of its layers is sharded, and only then gets memory, so
that no process ever holds all of it. Steps of Adam follow, with a penalty in two of its forms; then
the network is pruned, and steps with its masks held. The peak of each phase is that of the resident
memory above what the process takes before the network is made.

What is expected, in bytes a weight that is here: 4 of the weight, 4 of its gradient, 8 of Adam;
once it is pruned 1 of its mask, and in steps with the masks held 4 of the mask as integers. Beside
these FSDP2 gathers layers: in a backward pass two are here as a whole (the next one is gathered
while one is used), with the gradient of one, and what of it is sent to the other processes.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import ellzero as ez

MB = 1 << 20

LAYERS_AT_ONCE = 4
"""Whole layers in memory at the peak of a backward pass: two weights, a gradient, a message."""


def main() -> None:
    """Start the processes, and print what they have measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--width", type=int, default=4096, help="of a layer: width^2 weights")
    parser.add_argument("--layers", type=int, default=12, help="12 of 4096 are 201 million weights")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    # or glibc would keep what is freed, in pieces that the next tensor does not fit in
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder, numbers = Path(name), range(options.processes)
        ranks = [context.Process(target=work, args=(rank, options, folder)) for rank in numbers]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            raise SystemExit(f"a process ended with {[process.exitcode for process in ranks]}")
        answers = [json.loads((folder / str(rank)).read_text()) for rank in numbers]
    peaks = {phase: max(answer[phase] for answer in answers) for phase in answers[0]}
    numel = options.layers * options.width**2
    here, gathered = numel / options.processes, LAYERS_AT_ONCE * 4 * options.width**2
    bytes_a_weight = {"made": 4, "steps": 16, "pruned": 17, "steps, masks held": 21}
    print(f"{numel:,} weights on {options.processes} processes; peak of a process, MB")
    print(f"{'':20} {'measured':>9} {'expected':>9}   bytes a weight here")
    rows = []
    for phase, per_weight in bytes_a_weight.items():
        layers = gathered if "steps" in phase else 0
        expected = (per_weight * here + layers) / MB
        print(f"{phase:20} {peaks[phase] / MB:9.0f} {expected:9.0f}   {peaks[phase] / here:.1f}")
        rows.append({"phase": phase, "measured_mb": peaks[phase] / MB, "expected_mb": expected})
    print(json.dumps({"weights": numel, "processes": options.processes, "phases": rows}))


def work(rank: int, options: argparse.Namespace, folder: Path) -> None:
    """One process: what it measures goes into a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=options.processes
    )
    measured(8, 2, options.steps)  # so that all is imported that is imported on use
    peaks = measured(options.width, options.layers, options.steps)
    (folder / str(rank)).write_text(json.dumps(peaks))
    dist.destroy_process_group()


def measured(width: int, layers: int, steps: int) -> dict[str, int]:
    """Bytes at the peak of each phase, above what this process takes before."""
    before = resident()
    peaks: dict[str, int] = {}

    def phase(name: str, action: Callable[[], Any]) -> Any:
        forget_peak()
        made = action()
        peaks[name] = resident("VmHWM") - before
        return made

    model = phase("made", lambda: network(width, layers))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    penalty = ez.L0(1e-6) + ez.L1(1e-4, form="decoupled")
    regularizer = ez.Regularizer(model, penalty)
    x = torch.randn(4, width)

    def train() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            regularizer.add_gradient()
            optimizer.step()
            regularizer.step(optimizer)

    phase("steps", train)
    masks = phase("pruned", lambda: ez.prune(model, sparsity=0.9))
    with masks.hold(optimizer):
        phase("steps, masks held", train)
    return peaks


def network(width: int, layers: int) -> nn.Module:
    """Linear layers, sharded before they have memory."""
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    model.to_empty(device="cpu")
    for w in model.parameters():
        part: Tensor = w.to_local()  # pyright: ignore[reportAttributeAccessIssue]
        nn.init.uniform_(part.detach(), -(width**-0.5), width**-0.5)
    return model


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process in memory, or at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def forget_peak() -> None:
    """Let `VmHWM` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
