"""What penalties and masks add to a training step, as ratios to the plain step, and to its memory.

    python benchmarks/step.py lenet-300-100|resnet-18|dense-25m ... [--threads 1]

Fused Adam; batch 128, of ResNet-18 32. Within each round the variants take turns, so that a drift
of the machine's speed hits all alike; medians (quartiles) of the ratios of the rounds. "inside" is
what the package's own calls took, by a stopwatch around them within the step, against the rest of
it: where a step takes a second, the ratio's noise is larger than what is measured. Memory is the
peak of a fresh process over that of the plain one. Rivals: the penalty as a term of the loss for
autograd, as the paper's code has it; the masks of torch.nn.utils.prune; the layers of l0-python,
where that is installed (`pip install l0-python`). Prints a table and a line of JSON a network.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from process import peak_bytes
from torch import nn
from torch.nn.utils import prune as torch_prune

import ellzero as ez
import networks
from ellzero.networks.lenet import lenet_300_100

try:
    from l0.layers import L0Linear
except ImportError:
    L0Linear = None

BETA, STRENGTH, L2, SPARSITY = 5.0, 1e-5, 1e-5, 0.98


class Case(NamedTuple):
    """A network, the shape of a batch, and how often a round takes its step."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    steps: int
    rounds: int


CASES = {
    "lenet-300-100": Case(lenet_300_100, (128, 1, 28, 28), steps=20, rounds=40),
    "resnet-18": Case(networks.resnet_18, (32, 3, 32, 32), steps=1, rounds=9),
    "dense-25m": Case(
        lambda: networks.dense(784, 4096, 4096, 1216, 10), (128, 1, 28, 28), steps=1, rounds=9
    ),
}


class Step:
    """A training step with something added; `inside` sums up the seconds of the package's part."""

    def __init__(self, case: Case, variant: str) -> None:
        torch.manual_seed(0)
        self.model = case.make()
        self.variant = variant
        self.regularizer: ez.Regularizer | None = None
        self.inside = 0.0
        if variant == "prune of torch":
            for layer in (m for m in self.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)):
                torch_prune.l1_unstructured(layer, "weight", amount=SPARSITY)
        if variant == "l0-python":
            self.model = with_gates(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        gradient = ez.L0(STRENGTH, beta=BETA) + ez.L2(L2)
        decoupled = ez.L0(1e-2, beta=BETA, form="decoupled")
        if variant.startswith("l0 + l2"):
            compiled = variant.endswith("compiled")
            self.regularizer = ez.Regularizer(self.model, gradient, compile=compiled)
        if variant.endswith("decoupled"):
            self.regularizer = ez.Regularizer(self.model, decoupled)
        if variant.startswith("masks"):
            ez.prune(self.model, sparsity=SPARSITY).hold(self.optimizer)
        self.weights = [w for w in self.model.parameters() if w.dim() > 1]
        self.batch = torch.randn(case.shape), torch.randint(10, case.shape[:1])

    def __call__(self) -> None:
        """Take it."""
        inputs, targets = self.batch
        regularizer = self.regularizer
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(inputs), targets)
        if self.variant == "autograd":
            for w in self.weights:
                loss = loss + STRENGTH * (1 - torch.exp(-BETA * w.abs())).sum()
                loss = loss + L2 * w.square().sum()
        if self.variant == "l0-python":
            for layer in self.model.modules():
                if isinstance(layer, L0Linear):  # pyright: ignore[reportArgumentType]
                    loss = loss + STRENGTH * layer.get_l0_penalty() + L2 * layer.get_l2_penalty()
        loss.backward()
        if regularizer is not None:
            self.watch(regularizer.add_gradient)
        self.optimizer.step()
        if regularizer is not None:
            self.watch(lambda: regularizer.step(self.optimizer))

    def watch(self, call: Callable[[], None]) -> None:
        """Call, and add the time to `inside`."""
        began = time.perf_counter()
        call()
        self.inside += time.perf_counter() - began


VARIANTS = (
    "plain",
    "l0 + l2",
    "l0 + l2, compiled",
    "autograd",
    "l0 decoupled",
    "masks",
    "masks, l0 decoupled",
    "prune of torch",
    "l0-python",
)


def with_gates(model: nn.Module) -> nn.Module:
    """The network with each linear layer exchanged for one of l0-python."""
    assert L0Linear is not None
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.Linear):
            exchanged = L0Linear(layer.in_features, layer.out_features, use_l2=True)
            setattr(model, name, exchanged)
    return model


def peak_of_process(network: str, variant: str, threads: int) -> int:
    """The most memory that a fresh process took for three steps."""
    command = [sys.executable, __file__, network, "--threads", str(threads), "--peak", variant]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def copy_bandwidth(numel: int) -> float:
    """Bytes a second, read and written, of copying so many weights that no cache holds."""
    source, target, other = torch.ones(numel), torch.ones(numel), torch.ones(1 << 23)
    seconds = []
    for _ in range(20):
        other.mul_(1.0)
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    return 8 * numel / statistics.median(seconds)


def measure(network: str, threads: int) -> dict[str, dict[str, float]]:
    """Ratios, and memory, by variant."""
    case = CASES[network]
    wanted = [v for v in VARIANTS if v != "l0-python" or (L0Linear and network != "resnet-18")]
    steps = {variant: Step(case, variant) for variant in wanted}
    ratios: dict[str, list[float]] = {variant: [] for variant in wanted}
    inside: dict[str, list[float]] = {variant: [] for variant in wanted}
    plain: list[float] = []
    for number in range(case.rounds + 1):
        for variant, step in steps.items():
            step()  # after another variant, the caches hold nothing of this one
            step.inside, began = 0.0, time.perf_counter()
            for _ in range(case.steps):
                step()
            seconds = time.perf_counter() - began
            if variant == "plain":
                plain.append(seconds)
            if number:  # the first round is for warming up
                ratios[variant].append(seconds / plain[-1])
                inside[variant].append(step.inside / (seconds - step.inside))
    plain_ms = 1e3 * statistics.median(plain) / case.steps
    print(f"{network}: plain step {plain_ms:.2f} ms, {threads} thread(s)")
    print(f"{'':22}{'ratio':>6} {'(quartiles)':>15}{'inside':>9}{'peak memory':>14}")
    least = peak_of_process(network, "plain", threads)
    figures: dict[str, dict[str, float]] = {"plain": {"ms": round(plain_ms, 3)}}
    for variant in wanted[1:]:
        low, median, high = statistics.quantiles(ratios[variant], n=4)
        share = statistics.median(inside[variant])
        added = (peak_of_process(network, variant, threads) - least) / 2**20
        shown = f"{100 * share:7.1f} %" if share else " " * 9
        spread = f"({low:.2f} to {high:.2f})"
        print(f"{variant:22}{median:6.2f} {spread:>15}{shown}{added:+10.0f} MiB")
        figures[variant] = {"ratio": round(median, 4), "added_mib": round(added, 1)}
        if share:
            figures[variant]["inside"] = round(share, 4)
    numel = sum(w.numel() for w in steps["plain"].weights)
    limit = 12 * numel / copy_bandwidth(numel)
    share = 1e3 * limit / plain_ms
    print(f"12 bytes a weight at the speed of a copy from cold: {1e6 * limit:.0f} us, {share:.1%}")
    figures["12 bytes a weight"] = {"inside": round(share, 4)}
    if L0Linear is None:
        print("l0-python is not installed, and was left out")
    print(json.dumps({"benchmark": "step", "network": network, "threads": threads, **figures}))
    return figures


def main() -> None:
    """Measure the networks named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", choices=CASES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # as the package's own trainings do
    if options.peak:
        step = Step(CASES[options.networks[0]], options.peak)
        step()  # a compiler at work is not what is asked for
        peak_bytes(reset=True)
        for _ in range(3):
            step()
        print(peak_bytes())
        return
    for network in options.networks:
        measure(network, options.threads)


if __name__ == "__main__":
    main()
