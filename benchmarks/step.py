"""What penalty and masks add to a training step, as ratios to the plain step.

`python benchmarks/step.py`: LeNet-300-100, batch 128, fused Adam, one thread. The variants take
turns within each repetition, so that a drift of the machine's speed hits all alike; medians of the
ratios.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import ellzero as ez
from ellzero.networks.lenet import lenet_300_100

STEPS, REPETITIONS = 20, 30


def stepper(penalty: ez.L0 | None = None, *, hold: bool = False) -> Callable[[], float]:
    """A function that takes some training steps and returns their seconds."""
    torch.manual_seed(0)
    model = lenet_300_100()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    regularizer = None if penalty is None else ez.Regularizer(model, penalty)
    if hold:  # for good: the optimizer keeps it
        ez.prune(model, sparsity=0.98).hold(optimizer)
    inputs, targets = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))

    def run() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            if regularizer is not None and penalty is not None and penalty.form == "loss":
                loss = loss + regularizer.loss()
            loss.backward()
            if regularizer is not None:
                regularizer.add_gradient()
            optimizer.step()
            if regularizer is not None:
                regularizer.step(optimizer)
        return time.perf_counter() - began

    return run


def main() -> None:
    """Print a line per variant."""
    torch.set_num_threads(1)
    plain = stepper()
    variants = {
        "l0, gradient": stepper(ez.L0(1e-5)),
        "l0, loss": stepper(ez.L0(1e-5, form="loss")),
        "l0, decoupled": stepper(ez.L0(1e-2, form="decoupled")),
        "masks held": stepper(hold=True),
    }
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    base = 0.0
    for repetition in range(REPETITIONS + 1):
        base = plain()
        for name, run in variants.items():
            seconds = run()
            if repetition:  # the first is for warming up
                ratios[name].append(seconds / base)
    print(f"plain step {1e6 * base / STEPS:.0f} microseconds; ratios to it, median (quartiles)")
    for name, found in ratios.items():
        low, median, high = statistics.quantiles(found, n=4)
        print(f"{name:14s} {median:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
