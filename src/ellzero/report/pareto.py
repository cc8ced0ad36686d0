"""The Pareto picture: how well networks still do against how small they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ellzero.report.facts import StudyFacts
from ellzero.report.figures import Quality
from ellzero.report.style import DENSE, FAINT, WIDTH, Look, Picture, looks, marks, plain_ticks, svg
from ellzero.study.results import Spread

LEAST_SPAN = 0.2
"""The axis of results spans at least this part of them."""


@dataclass(frozen=True)
class Point:
    """A method at a target: how small, and how well it still does."""

    method: str
    ratio: Spread
    result: Spread


def pareto_points(facts: StudyFacts) -> list[Point]:
    """What the Pareto picture shows, in the study's order."""
    points = []
    for row in facts.rows:
        spreads = facts.spreads[row]
        ratio, result = spreads.get("nonzero_ratio"), spreads.get("result")
        if ratio is not None and result is not None:
            points.append(Point(row.method, ratio, result))
    return points


def pareto(facts: StudyFacts, *, name: str) -> Picture | None:
    """Result against nonzero ratio, a line per method."""
    points, quality = pareto_points(facts), facts.quality
    if not points:
        return None
    method_looks = looks(facts.study.methods)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        draw_pareto(axes, points, method_looks, facts.dense, quality)
        if not facts.study.budgets:
            ticks: list[float] = []
            for point in sorted(points, key=lambda point: point.ratio.median):
                if not ticks or point.ratio.median > 1.3 * ticks[-1]:  # closer ones would overlap
                    ticks.append(round(point.ratio.median, 1))
            plain_ticks(axes, "x", ticks)

    return Picture(
        "Size against quality",
        f"The {quality.part} {quality.noun} against the nonzero ratio (weights / nonzero "
        "weights), a line per method with its chosen strengths: median and range over the seeds. "
        "Methods are drawn a little apart. Dashed: the dense reference with its range. "
        f"{quality.better.capitalize()} and further right is better.",
        svg(f"{name} pareto", f"Pareto picture: {quality.label()} against nonzero ratio",
            (WIDTH, 3.9), draw),
    )  # fmt: skip


def runs_pareto(
    points: Sequence[Point],
    method_looks: dict[str, Look],
    dense: Spread | None,
    quality: Quality,
    *,
    name: str,
) -> Picture:
    """Result against nonzero ratio, a marker per run."""

    def draw(figure: Figure) -> None:
        draw_pareto(figure.subplots(), points, method_looks, dense, quality)

    title = f"The {quality.part} {quality.noun} of each run against its nonzero ratio."
    caption = f"{title} Dashed: the dense references, with their range. "
    if any(point.result.low < point.result.high for point in points):
        caption += "Lines: two standard errors of the difference to the dense reference. "
    caption += f"{quality.better.capitalize()} and further right is better."
    picture = svg(f"{name} pareto", title, (WIDTH, 3.4), draw)
    return Picture("Size against quality", caption, picture)


def draw_pareto(
    axes: Axes,
    points: Sequence[Point],
    method_looks: dict[str, Look],
    dense: Spread | None,
    quality: Quality,
) -> None:
    """Draw a line per method through its points."""
    if dense is not None:
        axes.axhspan(dense.low, dense.high, color=FAINT, zorder=0)
        axes.axhline(dense.median, color=DENSE, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    methods = [method for method in method_looks if any(p.method == method for p in points)]
    for index, method in enumerate(methods):
        look = method_looks[method]
        line = sorted((p for p in points if p.method == method), key=lambda p: p.ratio.median)
        apart = 1.012 ** (index - (len(methods) - 1) / 2)
        x = np.array([p.ratio.median for p in line]) * apart
        y = np.array([p.result.median for p in line])
        for at, point in zip(x, line, strict=True):
            axes.plot(
                [at, at],
                [point.result.low, point.result.high],
                color=look.colour,
                linewidth=look.width + 0.6,
                alpha=0.45,
                zorder=look.order,
            )
            if point.ratio.low < point.ratio.high:
                axes.plot(
                    [point.ratio.low * apart, point.ratio.high * apart],
                    [point.result.median] * 2,
                    color=look.colour,
                    alpha=0.45,
                )
        axes.plot(x, y, color=look.colour, linewidth=look.width * 0.7, alpha=0.8)
        axes.plot(x, y, **marks(look), linestyle="none", zorder=look.order)
    axes.set(xscale="log", xlabel="nonzero ratio", ylabel=quality.label())
    ratios = [p.ratio.median for p in points]
    axes.set_xlim(min(ratios) / 1.25, max(ratios) * 1.25)
    values = [v for p in points for v in (p.result.low, p.result.high)]
    values += [] if dense is None else [dense.low, dense.high]
    if min(values) > 0 and max(values) / min(values) > 6:
        axes.set_yscale("log")
        plain_ticks(axes, "y")
    else:
        # a narrower axis would make mountains of noise
        middle = (min(values) + max(values)) / 2
        half = max((max(values) - min(values)) / 2 * 1.1, LEAST_SPAN * abs(middle) / 2)
        if half > 0:
            axes.set_ylim(middle - half, middle + half)
    axes.grid(axis="y")
    plain_ticks(axes, "x")
