"""Seconds and memory of pruning a hundred million weights, globally and by layer.

    python benchmarks/pruning.py [--weights 1e8] [--threads 2]

Added memory is the peak of a fresh process over what it held before, divided by the bytes of the
weights; the masks are part of it. Rival: torch.nn.utils.prune, whose masks stay beside a copy of
the weights. Prints a table and a line of JSON.
"""

import argparse
import json
import subprocess
import sys
import time

import torch
from process import peak_bytes
from torch import nn
from torch.nn.utils import prune as torch_prune

import ellzero as ez

LAYERS, SPARSITY = 4, 0.98


def network(weights: int) -> nn.Sequential:
    """Four layers of equal size, with random weights."""
    torch.manual_seed(0)
    outputs, inputs = 2500, round(weights / LAYERS / 2500)
    return nn.Sequential(*[nn.Linear(inputs, outputs, bias=False) for _ in range(LAYERS)])


def pruned(way: str, model: nn.Sequential) -> int:
    """Prune in one of the ways, and count what is left."""
    layers = [(layer, "weight") for layer in model]
    if way == "global":
        return ez.prune(model, sparsity=SPARSITY).nonzeros
    if way == "layer":
        return ez.prune(model, sparsity=SPARSITY, scope="layer").nonzeros
    method = torch_prune.L1Unstructured
    torch_prune.global_unstructured(layers, pruning_method=method, amount=SPARSITY)
    return sum(int(layer.weight.count_nonzero()) for layer in model)


def once(way: str, weights: int) -> None:
    """Prune once in this process, and print what it took."""
    model = network(weights)
    numel = sum(w.numel() for w in model.parameters())
    before, began = peak_bytes(reset=True), time.perf_counter()
    nonzeros = pruned(way, model)
    seconds = time.perf_counter() - began
    added = (peak_bytes() - before) / (4 * numel)
    exact = nonzeros == numel - round(SPARSITY * numel)
    print(json.dumps({"seconds": round(seconds, 3), "added": round(added, 3), "exact": exact}))


def main() -> None:
    """Each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=float, default=1e8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.way:
        once(options.way, int(options.weights))
        return
    figures = {}
    print(f"{options.weights:.0e} weights, {options.threads} threads; median of three")
    for way in ("global", "layer", "torch.nn.utils.prune"):
        command = [sys.executable, *sys.argv, "--way", way]
        runs = [subprocess.run(command, check=True, stdout=subprocess.PIPE) for _ in range(3)]
        found = sorted((json.loads(run.stdout) for run in runs), key=lambda run: run["seconds"])
        figures[way] = found[1]
        exact = "exact" if found[1]["exact"] else "not exact"
        print(f"{way:22}{found[1]['seconds']:7.2f} s{found[1]['added']:8.2f} x memory   {exact}")
    print(json.dumps({"benchmark": "pruning", "weights": options.weights, **figures}))


if __name__ == "__main__":
    main()
