"""The pictures of a single run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ellzero.record import EpochMetrics, Layer
from ellzero.report.attraction import CAPTION, layer_weights, panels
from ellzero.report.figures import Quality
from ellzero.report.pictures import epochs_of, log_if_wide
from ellzero.report.style import DENSE, INK, SOFT, WIDTH, Look, Picture, label, plain_ticks, svg
from ellzero.run_folder import MODEL, RunFolder

LOOK = Look("#0b7285", "o", strong=True)
"""A run alone has one colour."""

KEPT = LinearSegmentedColormap.from_list("kept", ["#f4f6f7", "#7cc3c9", "#0b7285", "#06323b"])
LARGEST = 160
"""A mask with more rows or columns is drawn as densities of blocks."""
KERNELS = 64


def first_layer(run: RunFolder, *, name: str) -> Picture | None:
    """The mask of the first layer, drawn by what it is made of: pixels, kernels or a matrix."""
    layers = _layers(run)[:1]
    weights = layer_weights(run.folder / MODEL, layers)
    if not weights:
        return None
    image, caption, unit = mask_image((weights[0] != 0).numpy())
    caption = f"{layers[0].name}: {caption}"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = axes.imshow(image, cmap=KEPT, interpolation="nearest", vmin=0)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if not set(np.unique(image[~np.isnan(image)])) <= {0, 1}:
            ticks = MaxNLocator(6, integer=unit != "density")
            bar = figure.colorbar(shown, ax=axes, shrink=0.8, label=unit, ticks=ticks)
            bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]

    height, width = image.shape
    size = (WIDTH, float(np.clip(0.82 * WIDTH * height / width, 0.9, 4.2)))
    return Picture("The mask of the first layer", caption, svg(f"{name} mask", caption, size, draw))


def mask_image(mask: np.ndarray) -> tuple[np.ndarray, str, str]:
    """An image of a mask, what it shows, and the unit of its values."""
    side = round(mask.shape[-1] ** 0.5)
    if mask.ndim == 2 and side > 3 and side * side == mask.shape[1]:
        image = mask.sum(axis=0).reshape(side, side)
        return image, f"nonzero weights per input pixel, of {len(mask):,}", "nonzero weights"
    if mask.ndim == 4:
        kernels = mask[:KERNELS].sum(axis=1)
        some = f"the first {KERNELS} of {len(mask):,}" if len(mask) > KERNELS else f"{len(mask):,}"
        inputs = f", summed over its {mask.shape[1]:,} inputs" if mask.shape[1] > 1 else ""
        return _tiles(kernels), f"{some} kernels, nonzero weights at each place{inputs}", "nonzeros"
    matrix = mask.reshape(len(mask), -1)
    blocks = [max(1, -(-n // LARGEST)) for n in matrix.shape]
    caption = "the mask, a row per unit"
    if max(blocks) > 1:
        caption += f", in blocks of {blocks[0]} x {blocks[1]} weights"
    return _block_means(matrix.astype(float), blocks), caption, "density"


def _tiles(kernels: np.ndarray) -> np.ndarray:
    """Kernels side by side, with gaps between them."""
    count, height, width = kernels.shape
    columns = int(np.ceil(count**0.5 * 1.2))
    rows = -(-count // columns)
    image = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for index, kernel in enumerate(kernels):
        row, column = divmod(index, columns)
        top, left = row * (height + 1), column * (width + 1)
        image[top : top + height, left : left + width] = kernel
    return image


def _block_means(matrix: np.ndarray, blocks: list[int]) -> np.ndarray:
    """Means over blocks; those at the far ends may be smaller."""
    starts = [np.arange(0, n, block) for n, block in zip(matrix.shape, blocks, strict=True)]
    sums = np.add.reduceat(np.add.reduceat(matrix, starts[0], axis=0), starts[1], axis=1)
    ones = np.add.reduceat(np.add.reduceat(np.ones_like(matrix), starts[0], 0), starts[1], 1)
    return sums / ones


def layer_bars(run: RunFolder, *, name: str) -> Picture | None:
    """Density per layer."""
    layers = _layers(run)
    if not layers:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bars = axes.barh(
            range(len(layers)),
            [100 * layer.density for layer in layers],
            color=LOOK.colour,
            height=0.6,
        )
        labels = [f"{layer.nonzeros:,} of {layer.weights:,}" for layer in layers]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
        names = [label(layer.name.removesuffix(".weight")) for layer in layers]
        axes.set_yticks(range(len(layers)), names)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlabel("density, % of the layer")
        axes.set_xlim(0, 1.6 * max(0.01, *(100 * layer.density for layer in layers)))

    size = (WIDTH, 0.7 + 0.28 * len(layers))
    picture = svg(f"{name} layers", "density per layer", size, draw)
    return Picture(
        "Weights left per layer", "The share of each layer's weights that is left.", picture
    )


def course(run: RunFolder, quality: Quality, *, name: str) -> Picture | None:
    """Validation error and nonzeros over all epochs, with the stages."""
    rows = run.metrics
    if not rows:
        return None
    x, _ = epochs_of(rows)
    values = [float(quality.value(row.validation_score) or 0.0) for row in rows]
    record = run.finished
    dense = quality.value(record.reference.validation.score) if record else None

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.6, 1))
        for index, (start, end, stage) in enumerate(stages(rows)):
            part = slice(start, end)
            above.plot(x[part], values[part], color=LOOK.colour, linewidth=1.5)
            below.plot(x[part], [max(row.nonzeros, 0.5) for row in rows[part]], color=INK)
            begin = x[start] - (rows[start].epoch > 0)
            for axes in (above, below):
                if start:
                    axes.axvline(begin, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)))
            # labels of short stages would run into each other on one line
            above.annotate(
                stage,
                (begin, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, 2 + 10 * (index % 2)),
                textcoords="offset points",
                fontsize=8,
            )
        if dense is not None:
            above.axhline(dense, color=DENSE, linestyle=(0, (4, 3)), linewidth=1)
        log_if_wide(above, "y", values)
        above.set_ylabel(quality.label("validation"))
        below.set(yscale="log", ylabel="nonzeros", xlabel="epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_ticks(below, "y")
        for axes in (above, below):
            axes.grid(axis="y")

    text = f"The validation {quality.noun} and the nonzero weights over the epochs"
    dashed = "; dashed: the dense reference" if dense is not None else ""
    picture = svg(f"{name} course", f"{text}.", (WIDTH, 3.6), draw)
    return Picture("Its training", f"{text}{dashed}. Dotted: a stage begins.", picture)


def stages(rows: Sequence[EpochMetrics]) -> list[tuple[int, int, str]]:
    """First row, end and name of each stage; of many rounds only the first is named."""
    steps = [(row.stage, row.round) for row in rows]
    starts = [index for index in range(len(rows)) if not index or steps[index] != steps[index - 1]]
    parts, named = [], set()
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        stage = rows[start].stage
        label = "" if stage in named else {"finetune": "fine-tune"}.get(stage, stage)
        named.add(stage)
        parts.append((start, end, label))
    return parts


def magnitudes(run: RunFolder, *, name: str) -> Picture | None:
    """How large the weights were before pruning, and how the penalty pulls on them."""
    cells = {"run": ("", run, run.folder)}
    drawn = list(panels(cells, {"run": LOOK}, name=name, size=(WIDTH, 3.0)))
    if not drawn:
        return None
    return Picture("Before pruning", CAPTION, drawn[0])


def _layers(run: RunFolder) -> Sequence[Layer]:
    return run.finished.layers if run.finished else ()
