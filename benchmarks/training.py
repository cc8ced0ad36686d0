"""Samples a second of the package's training loop, against a plain loop of some 25 lines.

`python benchmarks/training.py`: images of MNIST's shape, bytes of which the package makes numbers
batch by batch, where the plain loop finds them made; batch 128, fused Adam, no penalty, one thread.
An epoch of the package ends with an evaluation of 500 images, as the plain one does. The loops take
turns, an epoch each; medians of the ratio within a turn.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import ellzero as ez
from ellzero.networks.lenet import lenet_5_caffe, lenet_300_100
from ellzero.preprocess import Preprocess
from ellzero.training.loop import epochs
from ellzero.training.plan import Step
from ellzero.training.state import State

BATCH, VALIDATION = 128, 500
NETWORKS = {
    # the examples of an epoch, so that it takes a few tenths of a second
    "LeNet-300-100": (lenet_300_100, 200 * BATCH),
    "LeNet-5-Caffe": (lenet_5_caffe, 20 * BATCH),
}
TURNS = 15


def plain(make: Callable[[], nn.Module], x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """The loop that anyone would write, with the data in memory; called once an epoch."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def epoch() -> None:
        model.train()
        total = 0.0
        for chosen in torch.randperm(len(y)).split(BATCH):
            # indexing by x[chosen] is several times as slow, and most loops do it
            inputs, targets = x.index_select(0, chosen), y.index_select(0, chosen)
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        model.eval()
        with torch.no_grad():
            outputs = model(x[:VALIDATION])
            nn.functional.cross_entropy(outputs, y[:VALIDATION]).item()
            (outputs.argmax(1) == y[:VALIDATION]).float().mean().item()

    return epoch


def packaged(
    make: Callable[[], nn.Module], raw: torch.Tensor, y: torch.Tensor
) -> Callable[[], None]:
    """The same by the loop that `compress` runs."""
    torch.manual_seed(0)
    model = make()
    data = ez.Data((raw, y), (raw[:VALIDATION], y[:VALIDATION]), preprocess=Preprocess(1 / 255))
    recipe = ez.Recipe.parse(
        {
            "prune": {"sparsity": 0.5},
            "reference": {"epochs": 10**6, "learning_rate": 1e-3, "batch_size": BATCH},
        }
    )
    state = State(model, ez.select(model), start={}, step=Step("reference", epochs=10**6))
    state.equip(recipe)
    running = epochs(state, recipe, data, tick=lambda: None)
    return lambda: next(running) and None


def main() -> None:
    """Print a line per network, and one of JSON."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    figures = {}
    for name, (make, count) in NETWORKS.items():
        generator = torch.Generator().manual_seed(0)
        raw = torch.randint(256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        y = torch.randint(10, (count,), generator=generator)
        loops = {"plain": plain(make, raw / 255, y), "ellzero": packaged(make, raw, y)}
        seconds: dict[str, list[float]] = {who: [] for who in loops}
        for turn in range(TURNS + 1):
            for who, epoch in loops.items():
                began = time.perf_counter()
                epoch()
                if turn:  # the first is for warming up
                    seconds[who].append(time.perf_counter() - began)
        ratios = [p / e for p, e in zip(seconds["plain"], seconds["ellzero"], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        rate = count / statistics.median(seconds["ellzero"])
        print(f"{name}: {rate:,.0f} samples/s, {ratio:.2f} ({low:.2f} to {high:.2f}) of plain")
        figures[name] = {"samples_per_second": round(rate), "of_plain": round(ratio, 3)}
    print(json.dumps({"benchmark": "training", **figures}))


if __name__ == "__main__":
    main()
