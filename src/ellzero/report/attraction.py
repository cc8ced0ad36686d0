"""How a penalty pulls on weights of each size, beside how large the trained weights became."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ellzero.errors import EllzeroError, InputError
from ellzero.files import read_tensors
from ellzero.penalties import Penalty
from ellzero.recipe_fields import Named
from ellzero.record import Layer, Magnitudes
from ellzero.report.style import FAINT, INK, SOFT, Look, svg
from ellzero.run_folder import TRAINED, RunFolder
from ellzero.terminal import plain
from ellzero.trust import shown_recipe
from ellzero.user_code import may_import

SIZE = (2.0, 2.2)
"""Inches: two panels side by side fill a phone."""

FLOOR = 0.005
"""Per cent of the weights where the histograms' logarithmic axis begins; room for text above."""

VISIBLE = 5e-4
"""Bins with a smaller share of the weights than this do not widen the axis."""

CAPTION = (
    "Above: how large the trained weights are before pruning, the share of them in each tenth of "
    "a decade of |w|, on a logarithmic axis, the first one with all that is smaller still; dashed: "
    "where pruning cuts. Below: how strongly the penalty pulls a weight "
    "of that size to zero, relative to its largest pull in the range; below the line it pushes "
    "away from zero. It is the penalty's own gradient, before an optimizer rescales it and without "
    "layer scales, at the end of the training; where it depends on a weight's neighbours, the "
    "median over the trained weights."
)


@dataclass(frozen=True)
class MagnitudeShares:
    """How large the weights were before pruning: the share of zeros and of each bin."""

    zeros: float
    edges: np.ndarray
    """Bounds of the bins, log10 |w|; one more than there are shares."""
    shares: np.ndarray

    @classmethod
    def of(cls, counted: Magnitudes) -> MagnitudeShares:
        """From the histogram in a run's record."""
        counts = np.array(counted.counts, dtype=float)
        total = max(counts.sum() + counted.zeros, 1.0)
        edges = counted.smallest + np.arange(len(counts) + 1) / counted.per_decade
        return cls(counted.zeros / total, edges, counts / total)

    def cut(self, density: float) -> float:
        """The log10 |w| above which this fraction of the weights lies."""
        above = np.cumsum(self.shares[::-1])[::-1]
        return float(np.interp(-density, -above, self.edges[:-1]))


@dataclass(frozen=True)
class Pull:
    """The zero attraction of a penalty for weights of each magnitude.

    Its derivative along |w|: positive pulls a weight to zero, negative pushes it away.
    """

    magnitudes: np.ndarray
    attraction: np.ndarray


def bounds(histograms: Sequence[MagnitudeShares]) -> tuple[float, float]:
    """What log10 |w| must span so that all of these can be compared."""
    used = [h.edges[:-1][h.shares > VISIBLE] for h in histograms]
    used = [edges for edges in used if len(edges)]
    if not used:
        return -3.0, 0.0
    return min(e.min() for e in used) - 0.1, max(e.max() for e in used) + 0.3


def pull(run: RunFolder, trained: Path, low: float, high: float) -> Pull | str:
    """The attraction of a run's penalty between these log10 |w|, or why there is no such curve.

    `trained` is the folder that has the trained weights, which some penalties need.
    """
    try:
        train = shown_recipe(run.folder, trust=may_import()).train
    except EllzeroError:
        return "recipe cannot be read"
    if train.gates is not None:
        return "learned gates"
    if train.penalty is None or all(term.strength == 0 for term in train.penalty.terms):
        return "no penalty"
    if any(isinstance(term, Named) for term in train.penalty.terms):
        return "not imported (--trust)"
    penalty = train.penalty.at(1.0)  # its schedules end there, where pruning comes
    if all(term.elementwise for term in penalty.terms):
        magnitudes = np.logspace(low, high, 200)
        attraction = penalty.gradient(torch.from_numpy(magnitudes)).numpy()
        finite = np.isfinite(attraction).all()
        return Pull(magnitudes, attraction) if finite else "beyond all bounds"
    weights = layer_weights(trained / TRAINED, run.finished.layers if run.finished else ())
    return _measured_pull(weights, penalty, low, high) if weights else "depends on the layer"


def layer_weights(file: Path, layers: Sequence[Layer]) -> list[Tensor]:
    """The weights of these layers in a run's file; none where it does not have them all."""
    try:
        tensors, _ = read_tensors(file)
    except InputError:
        return []
    weights = [tensors.get(layer.name) for layer in layers]
    kept = [
        w
        for w, layer in zip(weights, layers, strict=True)
        if w is not None
        and tuple(w.shape) == layer.shape
        and w.ndim
        and w.numel()
        and w.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    ]
    return kept if len(kept) == len(layers) else []


def _measured_pull(weights: Sequence[Tensor], penalty: Penalty, low: float, high: float) -> Pull:
    """Where the attraction depends on a weight's neighbours: its median over trained weights."""
    edges = np.arange(low, high, 0.1)
    sizes, values = [], []
    for w in weights:
        sizes.append(w.abs().flatten().double().numpy())
        values.append((penalty.gradient(w) * w.sign()).flatten().double().numpy())
    size, value = np.concatenate(sizes), np.concatenate(values)
    kept = (size > 0) & np.isfinite(size) & np.isfinite(value)
    size, value = size[kept], value[kept]
    bins = np.digitize(np.log10(size), edges)
    # a median of a handful would be noise
    full = [b for b in range(1, len(edges)) if (bins == b).sum() >= 5]
    centres = np.array([10 ** (edges[b - 1] + 0.05) for b in full])
    medians = np.array([np.median(value[bins == b]) for b in full])
    return Pull(centres, medians)


def panels(
    cells: Mapping[str, tuple[str, RunFolder, Path]],
    method_looks: Mapping[str, Look],
    *,
    name: str,
    size: tuple[float, float] = SIZE,
) -> Iterator[str]:
    """A panel per method: histogram of the trained magnitudes, and the attraction below it.

    Args:
        cells: of each method its label, its run, and the folder with the trained weights.
        method_looks: how each method is drawn.
        name: unique on the page.
        size: of a panel, in inches.
    """
    histograms = {
        method: MagnitudeShares.of(run.finished.trained.magnitudes)
        for method, (_, run, _) in cells.items()
        if run.finished and run.finished.trained
    }
    if not histograms:
        return
    low, high = bounds(list(histograms.values()))
    for method, histogram in histograms.items():
        label, run, trained = cells[method]
        record = run.finished
        density = record.nonzeros / record.weights if record and record.nonzeros else None
        attraction = pull(run, trained, low, high)
        drawn = (label, method_looks[method], histogram, attraction, density, (low, high))
        yield svg(
            f"{name} magnitudes {method}",
            f"{label} magnitudes of the trained weights and the attraction to zero",
            size,
            lambda figure, drawn=drawn: _draw(figure, *drawn),
        )


def _draw(
    figure: Figure,
    label: str,
    look: Look,
    histogram: MagnitudeShares,
    attraction: Pull | str,
    density: float | None,
    axis: tuple[float, float],
) -> None:
    low, high = axis
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.7, 1))
    label = plain(label)
    short = label if len(label) < 22 else label[:20] + "…"
    above.set_title(short, fontsize=8.5, loc="left")
    percent = np.maximum(100 * histogram.shares, FLOOR)
    above.stairs(percent, histogram.edges, baseline=FLOOR, fill=True, color=look.colour, alpha=0.85)
    if histogram.zeros > 0:
        above.text(0.03, 0.95, f"{100 * histogram.zeros:.3g} % are 0", transform=above.transAxes,
                   va="top", fontsize=8)  # fmt: skip
    above.set(xlim=(low, high), yscale="log", ylim=(FLOOR, 1500), ylabel="% of weights")
    above.set_yticks([0.01, 1, 100], ["0.01", "1", "100"])
    above.minorticks_off()
    above.grid(axis="y")
    above.tick_params(axis="x", length=0)
    for axes in (above, below):
        if density is not None:
            axes.axvline(histogram.cut(density), color=INK, linewidth=1, linestyle=(0, (3, 2)))
    below.axhline(0, color=SOFT, linewidth=0.7)
    if isinstance(attraction, str):
        below.text(0.5, 0.5, attraction, transform=below.transAxes, ha="center", va="center",
                   fontsize=8, color=INK)  # fmt: skip
        below.set_ylim(-0.15, 1.15)
    else:
        largest = attraction.attraction.max(initial=0.0) or 1.0
        scaled = attraction.attraction / largest
        x = np.log10(attraction.magnitudes)
        below.plot(x, scaled, color=look.colour, linewidth=1.8)
        below.fill_between(x, 0, scaled, color=look.colour, alpha=0.18, linewidth=0)
        below.set_ylim(max(-1.0, min(-0.15, 1.15 * scaled.min(initial=0.0))), 1.15)
    below.set_yticks([0, 1], ["0", "max"])
    below.set_ylabel("pull to 0")
    decades = range(int(np.ceil(low)), int(np.floor(high)) + 1)
    step = 1 if len(decades) <= 4 else 2
    shown = [d for d in decades if d % step == 0]
    below.set_xticks(shown, [_power(d) for d in shown])
    below.set_xlabel("|w|")
    below.grid(axis="x", color=FAINT)


def _power(exponent: int) -> str:
    if -3 <= exponent <= 2:
        return f"{10.0**exponent:g}"
    return f"1e{exponent}"
