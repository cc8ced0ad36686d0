"""Draw what penalties do to weights: `python docs/pictures/draw_how_it_works.py FOLDER`.

Trains LeNet-300-100 on the 5,000 digits with l2, l1 and l0, two minutes on one thread, and writes
SVG files into the folder (needs the extras `data`, `export` and `report`):

- {l2,l1,l0}-at-work.svg: a penalty, its pull, and the weights after 0, 5, 20 and 60 epochs;
- prune-to-pack.svg: one layer of the l0 network as it is trained, pruned, compacted and packed.
"""

import copy
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from paper import write
from torch import Tensor, nn

import ellzero as ez
from ellzero.data.mnist_5k import mnist_5k
from ellzero.networks.lenet import lenet_300_100
from ellzero.report.style import INK, KNOWN, SOFT, svg

PENALTIES = {"l2": ez.L2(1e-3), "l1": ez.L1(1e-4), "l0": ez.L0(3e-5, beta=5)}
WORDS = {
    "l2": "pulls hardest on large weights",
    "l1": "pulls on all weights alike",
    "l0": "pulls on small weights, lets go of large ones",
}
EPOCHS = (0, 5, 20, 60)
TOTAL, KEPT = 266_200, 2_662
"""Weights, and those that pruning leaves."""

FINETUNING = 20
"""Epochs."""

Trained = tuple[nn.Module, list[np.ndarray]]
"""A network, and the magnitudes of its weights after each of `EPOCHS`."""

PAPER = LinearSegmentedColormap.from_list("paper", ["white", KNOWN["l0"].colour])

BINS = np.linspace(-5, 0.25, 43)
"""Of log10 |w|; what is smaller still is in the first one."""


def train(model: nn.Module, data: ez.Data, epochs: int, penalty: ez.Penalty | None = None) -> None:
    """An ordinary loop; masks are those of the network's zeros."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    regularizer = None if penalty is None else ez.Regularizer(model, penalty)
    with ez.Masks.of(ez.select(model)).hold(optimizer):
        for _ in range(epochs):
            for inputs, targets in data.train.batches(64, torch.device("cpu"), shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                if regularizer is not None:
                    regularizer.add_gradient()
                optimizer.step()


def weights_of(model: nn.Module) -> np.ndarray:
    """Magnitudes of all selected weights."""
    return torch.cat([w.detach().flatten() for w in ez.select(model).values()]).abs().numpy()


def error(model: nn.Module, data: ez.Data) -> float:
    """Of the validation digits, in percent."""
    return 100 * (1 - ez.evaluate(model, data, "validation").score)


def pruned(model: nn.Module) -> nn.Module:
    """A copy with the largest weights alone."""
    small = copy.deepcopy(model)
    ez.prune(small, nonzeros=KEPT)
    return small


def snapshots(penalty: ez.Penalty, data: ez.Data) -> Trained:
    """The trained network, and its weights after each of `EPOCHS`."""
    torch.manual_seed(0)
    model, weights = lenet_300_100(), []
    for before, until in zip((0, *EPOCHS), EPOCHS, strict=False):
        train(model, data, until - before, penalty)
        weights.append(weights_of(model))
    return model, weights


def draw_penalty(axes: Axes, penalty: ez.Penalty, colour: str) -> None:
    """The penalty of a weight and its pull to zero, each relative to its largest value."""
    w = torch.linspace(-1, 1, 201)
    value = np.array([penalty.value(x).item() for x in w])
    pull = penalty.gradient(w).abs().numpy()
    pull[w == 0] = np.nan  # there is none
    axes.plot(w, value / value.max(), color=SOFT, linewidth=1.3, label="penalty")
    axes.plot(w, pull / np.nanmax(pull), color=colour, linewidth=2.2, label="pull to zero")
    axes.set(xticks=[-1, 0, 1], yticks=[], ylim=(-0.05, 1.6), xlabel="a weight")
    axes.legend(loc="upper center", fontsize=7.5, handlelength=1.2, labelspacing=0.2, borderpad=0)


def draw_weights(axes: Axes, weights: np.ndarray, colour: str) -> None:
    """The share of weights of each magnitude, and dashed where pruning to `KEPT` would cut."""
    logarithms = np.log10(np.maximum(weights, 10.0 ** BINS[0]))
    percent, _ = np.histogram(logarithms, BINS, weights=np.full(len(weights), 100 / len(weights)))
    cut = np.log10(np.sort(weights)[-KEPT])
    axes.stairs(percent, BINS, color=colour, fill=True, alpha=0.75, linewidth=0)
    axes.axvline(cut, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.set(xlim=(BINS[0], BINS[-1]), xticks=[-4, -2, 0], yscale="log", ylim=(0.003, 60))
    axes.set_xticklabels(["0.0001", "0.01", "1"])
    axes.set_yticks([0.01, 1], ["0.01 %", "1 %"])
    axes.minorticks_off()


def draw_errors(axes: Axes, before: float, after: float, colour: str) -> None:
    """What the validation digits say before and after pruning, without fine-tuning."""
    bars = axes.barh(["trained", f"1 in {TOTAL // KEPT} left"], [before, after], 0.5, color=colour)
    axes.bar_label(bars, [f"{before:.1f} %", f"{after:.1f} %"], padding=3)
    axes.set(xlim=(0, 75), ylim=(1.5, -0.5), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("error", fontweight="normal")


def draw_at_work(name: str, trained: Trained, data: ez.Data, figure: Figure) -> None:
    """A penalty's curve, the weights as the training goes on, and what pruning then costs."""
    (model, weights), colour = trained, KNOWN[name].colour
    figure.suptitle(
        f"{name} {WORDS[name]}", x=0.01, horizontalalignment="left", fontsize=10, fontweight="bold"
    )
    curve, *panels, errors = figure.subplots(2, 3).flat
    draw_penalty(curve, PENALTIES[name], colour)
    for axes, epochs, magnitudes in zip(panels, EPOCHS, weights, strict=True):
        draw_weights(axes, magnitudes, colour)
        axes.set_title(
            f"weights, {epochs} epochs" if epochs else "weights, untrained", fontweight="normal"
        )
    draw_errors(errors, error(model, data), error(pruned(model), data), colour)


def draw_layer(axes: Axes, weight: Tensor, title: str, below: str) -> None:
    """A weight as a picture, darker where it is larger and white where it is zero."""
    rows, columns = weight.shape
    darkness = (weight.abs().log10() / 3.5 + 1.15).clamp(0.12, 1) * (weight != 0)
    axes.imshow(darkness, cmap=PAPER, vmin=0, vmax=1, interpolation="nearest")
    axes.add_patch(Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor=SOFT))
    axes.set(xlim=(-3, 303), ylim=(103, -3), xticks=[], yticks=[])  # one scale for all
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    axes.set_xlabel(below, horizontalalignment="left", x=0)


def draw_shrinking(model: nn.Module, data: ez.Data, figure: Figure) -> None:
    """The second layer as it is trained, pruned, fine-tuned, compacted; below, the network."""
    cut = pruned(model)
    small = copy.deepcopy(cut)
    torch.manual_seed(0)
    train(small, data, FINETUNING)
    compacted = ez.compact(ez.trace(small, torch.zeros(1, 1, 28, 28))).model
    quantized = copy.deepcopy(compacted)
    ez.quantize(quantized, bits=5)
    with tempfile.TemporaryDirectory() as folder:
        packed = ez.pack(quantized, Path(folder) / "net.ellz").size_bytes
    steps = {
        "1. trained": (model, f"error {error(model, data):.1f} %, {bytes_of(model):,} bytes"),
        "2. pruned": (cut, f"error {error(cut, data):.1f} %, {bytes_of(cut):,} bytes"),
        "3. fine-tuned": (small, f"error {error(small, data):.1f} %, {bytes_of(small):,} bytes"),
        "4. compacted": (
            compacted,
            f"error {error(compacted, data):.1f} %, {bytes_of(compacted):,} bytes\n"
            f"packed, 5 bits a weight:\nerror {error(quantized, data):.1f} %, {packed:,} bytes",
        ),
    }
    for axes, (title, (network, below)) in zip(
        figure.subplots(2, 2).flat, steps.items(), strict=True
    ):
        draw_layer(axes, network.get_parameter("fc2.weight").detach(), title, below)


def bytes_of(model: nn.Module) -> int:
    """Of all parameters as they are, zeros and all."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def draw(folder: Path) -> None:
    """Train once, draw both."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # l2 makes some weights tiny, and arithmetic with them is slow
    data = mnist_5k()
    trained = {name: snapshots(penalty, data) for name, penalty in PENALTIES.items()}
    pictures = {
        f"{name}-at-work": ((6.4, 3.4), partial(draw_at_work, name, result, data))
        for name, result in trained.items()
    }
    pictures["prune-to-pack"] = ((6.4, 3.6), partial(draw_shrinking, trained["l0"][0], data))
    for name, (size, drawn) in pictures.items():
        write(folder / f"{name}.svg", svg(name, name.replace("-", " "), size, drawn))


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
