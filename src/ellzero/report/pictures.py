"""The pictures of a study that compare its methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ellzero.record import EpochMetrics
from ellzero.report.facts import StudyFacts
from ellzero.report.figures import duration
from ellzero.report.style import (
    DENSE,
    FAINT,
    SOFT,
    WIDTH,
    Picture,
    label,
    looks,
    marks,
    plain_ticks,
    svg,
)
from ellzero.run_folder import TRAINED, RunFolder
from ellzero.study.results import Results, Row, cell_folder
from ellzero.study.study import Cell, Target, Training


def ranking(facts: StudyFacts, target: Target, *, name: str) -> Picture | None:
    """The methods at one target, best on validation first: median and range over the seeds."""
    quality, dense, rows = facts.quality, facts.dense, facts.ranked(target)
    method_looks = looks(facts.study.methods)
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if dense is not None:
            axes.axvspan(dense.low, dense.high, color=FAINT, zorder=0)
            axes.axvline(dense.median, color=DENSE, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        values = [dense.median] if dense is not None else []
        for place, row in enumerate(rows):
            spread = facts.spreads[row].get("result")
            if spread is None:
                continue
            look = method_looks[row.method]
            values += [spread.low, spread.high]
            reached = [facts.figures[cell.folder]["result"] for cell in row.cells]
            ticks = [result for result in reached if result is not None]
            axes.plot([spread.low, spread.high], [place] * 2, color=look.colour, linewidth=1.6,
                      alpha=0.45)  # fmt: skip
            axes.plot(ticks, [place] * len(ticks), "|", color=look.colour, markersize=6)
            axes.plot([spread.median], [place], **marks(look), zorder=look.order)
        _name_rows(axes, rows)
        axes.set_xlabel(quality.label())
        log_if_wide(axes, "x", values)
        axes.grid(axis="x")

    return Picture(
        f"{target.label}: {quality.part} {quality.noun}",
        "",
        svg(f"{name} ranking {target.name}", f"{quality.label()} of each method, {target.label}",
            (WIDTH, 1.0 + 0.24 * len(rows)), draw),
    )  # fmt: skip


def recovery(facts: StudyFacts, target: Target, *, name: str) -> Picture | None:
    """Validation error as pruning left the networks, and after fine-tuning."""
    quality = facts.quality
    rows = [r for r in facts.ranked(target) if facts.spreads[r].get("before") is not None]
    method_looks = looks(facts.study.methods)
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = []
        for place, row in enumerate(rows):
            spreads, look = facts.spreads[row], method_looks[row.method]
            before, after = spreads["before"], spreads["after"]
            assert before is not None
            assert after is not None
            values += [before.median, after.median]
            axes.plot(values[-2:], [place] * 2, color=look.colour, linewidth=1.6, alpha=0.45)
            hollow = {**marks(look), "markerfacecolor": "white", "markeredgewidth": 1.2}
            axes.plot([before.median], [place], **hollow)
            axes.plot([after.median], [place], **marks(look), zorder=look.order)
        _name_rows(axes, rows)
        axes.set_xlabel(quality.label("validation"))
        log_if_wide(axes, "x", values)
        axes.grid(axis="x")

    return Picture(
        target.label,
        "",
        svg(f"{name} recovery {target.name}",
            f"{quality.label('validation')} before and after fine-tuning, {target.label}",
            (WIDTH, 1.0 + 0.24 * len(rows)), draw),
    )  # fmt: skip


def densities(facts: StudyFacts, target: Target, *, name: str) -> Picture | None:
    """Which layers the weights that are left are in."""
    method_looks = looks(facts.study.methods)
    rows = [row for row in facts.rows_at(target) if _layer_densities(row)]
    if not rows:
        return None
    layers = list(_layer_densities(rows[0]))
    row_height = 0.09 * len(rows) + 0.16 if len(layers) <= 10 else 0.32

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, row in enumerate(rows):
            left, look = _layer_densities(row), method_looks[row.method]
            apart = 0.72 * ((index + 0.5) / len(rows) - 0.5)
            y = [place + apart for place, layer in enumerate(layers) if left.get(layer)]
            x = [left[layer] for layer in layers if left.get(layer)]
            axes.plot(x, y, **marks(look), linestyle="none", zorder=look.order)
        for place in range(1, len(layers)):
            axes.axhline(place - 0.5, color=FAINT, linewidth=0.7)
        axes.set_yticks(range(len(layers)), [label(x.removesuffix(".weight")) for x in layers])
        axes.tick_params(axis="y", length=0)
        axes.set(ylim=(len(layers) - 0.5, -0.5), xscale="log", xlabel="density, % of the layer")
        axes.grid(axis="x")
        plain_ticks(axes, "x")

    return Picture(
        target.label,
        "",
        svg(f"{name} density {target.name}", f"density per layer, {target.label}",
            (WIDTH, 0.7 + row_height * len(layers)), draw),
    )  # fmt: skip


def courses(facts: StudyFacts, target: Target, *, name: str) -> Picture | None:
    """Validation error over the epochs of training and fine-tuning, on the first seed."""
    results, quality = facts.results, facts.quality
    method_looks = looks(results.study.methods)
    lines: dict[str, Sequence[EpochMetrics]] = {}
    for method in results.study.methods:
        chosen = results.chosen(method, target)
        if chosen is not None and (rows := training_rows(results, chosen, target)):
            lines[method] = rows
    if not lines:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values: list[float] = []
        ends = set()
        for method, rows in lines.items():
            x, trained = epochs_of(rows)
            y = [float(quality.value(row.validation_score) or 0.0) for row in rows]
            look = method_looks[method]
            axes.plot(x, y, color=look.colour, linewidth=look.width * 0.8, zorder=look.order)
            axes.plot(x[-1:], y[-1:], **marks(look), zorder=look.order)
            ends.add(trained)
            values += y
        for end in ends - {0}:
            axes.axvline(end, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel=quality.label("validation"))
        log_if_wide(axes, "y", values)
        axes.grid(axis="y")

    return Picture(
        target.label,
        "",
        svg(f"{name} course {target.name}",
            f"{quality.label('validation')} over the epochs, {target.label}", (WIDTH, 3.3), draw),
    )  # fmt: skip


def effort_bars(facts: StudyFacts, *, name: str) -> Picture | None:
    """What each method cost, tuning included."""
    efforts = [effort for effort in facts.efforts if effort.cells]
    method_looks = looks(facts.study.methods)
    if not efforts:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        bars = axes.barh(
            range(len(efforts)),
            [effort.seconds for effort in efforts],
            color=[method_looks[effort.method].colour for effort in efforts],
            height=0.62,
        )
        labels = [f"{duration(e.seconds)}, {e.epochs:,} epochs" for e in efforts]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
        axes.set_xlim(0, 1.75 * max(0.01, *(effort.seconds for effort in efforts)))
        axes.set_yticks(range(len(efforts)), [label(effort.label) for effort in efforts])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlabel("seconds")

    return Picture(
        "Seconds and epochs",
        "",
        svg(f"{name} effort", "seconds and epochs per method",
            (WIDTH, 0.7 + 0.24 * len(efforts)), draw),
    )  # fmt: skip


def training_rows(results: Results, chosen: Training, target: Target) -> list[EpochMetrics]:
    """Metrics of a cell from training to fine-tuning, also where another cell did the training."""
    cell = results.cells[Cell(chosen, target).name]
    siblings = [results.cells[Cell(chosen, t).name] for t in results.study.targets]
    trainings = ([m for m in run.metrics if m.stage == "train"] for run in (cell, *siblings))
    train = next(filter(None, trainings), [])
    return train + [m for m in cell.metrics if m.stage == "finetune"]


def epochs_of(rows: Sequence[EpochMetrics]) -> tuple[list[int], int]:
    """Where each row stands in epochs since the start, and where the training ended."""
    x, begun, stage = [], 0, None
    trained = 0
    for row in rows:
        if (row.stage, row.round) != stage:
            stage = (row.stage, row.round)
            begun = x[-1] if x else 0
        x.append(begun + row.epoch)
        if row.stage == "train":
            trained = x[-1]
    return x, trained


def first_cell(results: Results, row: Row) -> RunFolder:
    """The run of a row's chosen strength on the first seed."""
    training = Training(row.method, row.strength, results.study.seeds[0])
    return results.cells[Cell(training, row.target).name]


def trained_folder(results: Results, row: Row) -> Path:
    """The folder with the trained weights of a row's first seed, which its targets share."""
    training = Training(row.method, row.strength, results.study.seeds[0])
    folders = [cell_folder(results.folder, Cell(training, t)) for t in results.study.targets]
    return next((f for f in folders if (f / TRAINED).is_file()), folders[0])


def _layer_densities(row: Row) -> dict[str, float]:
    """Percent of each layer's weights that is left, medians over the seeds."""
    by_layer: dict[str, list[float]] = {}
    for cell in row.cells:
        for layer in cell.finished.layers if cell.finished else ():
            by_layer.setdefault(layer.name, []).append(100 * layer.density)
    return {layer: float(np.median(values)) for layer, values in by_layer.items()}


def _name_rows(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [label(row.label) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    for place in range(len(rows)):
        axes.axhline(place, color=FAINT, linewidth=0.5, zorder=0)


def log_if_wide(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis where the values span a wide range."""
    if values and min(values) > 0 and max(values) / min(values) > 6:
        getattr(axes, f"set_{which}scale")("log")
        plain_ticks(axes, which)
