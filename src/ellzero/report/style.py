"""How all pictures look: one colour and marker per method, and figures as inline SVG."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ellzero.terminal import plain

INK, SOFT, FAINT = "#1f2933", "#8a939c", "#e3e7ea"
DENSE = "#1f2933"
"""The dense reference, in every picture."""

WIDTH = 4.2
"""Inches: on a phone the text is then about as large as it is here."""

LONGEST_LABEL = 40
"""Characters of a name in a picture."""

SETTINGS = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",  # text stays text: it can be found and read aloud
    "text.parse_math": False,  # a $ in a method's name is a $
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Picture:
    """An SVG element with what is said beside it."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Look:
    """How a method is drawn, the same in every picture of a page."""

    colour: str
    marker: str
    strong: bool = False
    """Whether it stands out from the others."""

    @property
    def width(self) -> float:
        """Of its lines."""
        return 2.0 if self.strong else 1.1

    @property
    def size(self) -> float:
        """Of its markers."""
        return 6.0 if self.strong else 4.8

    @property
    def order(self) -> float:
        """Above or below the others."""
        return 4 if self.strong else 3


# colours that people who confuse red and green can tell apart, by lightness where not by hue
KNOWN = {
    "magnitude": Look("#6b7280", "D"),
    "gradual": Look("#111827", "d"),
    "l2": Look("#56b4e9", "v"),
    "l1": Look("#0072b2", "s"),
    "l1+l2": Look("#08306b", "p"),
    "l0": Look("#e69f00", ">", strong=True),
    "l0+l2": Look("#d55e00", "o", strong=True),
    "l0+l2-decoupled": Look("#a3123a", "*", strong=True),
    "hoyer-square": Look("#009e73", "^"),
    "group-lasso": Look("#a08a00", "h"),
    "hard-concrete": Look("#cc79a7", "X"),
    "pmmp": Look("#6d3fa9", "P"),
}
OTHERS = ("#0f766e", "#b45309", "#4338ca", "#be185d", "#4d7c0f", "#0369a1", "#7c2d12", "#57534e")
MARKERS = "os^DvPX*phd<>"


def label(text: str) -> str:
    """A name from a file in a picture: in characters that a font has, and not endless."""
    text = plain(text)
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"


def looks(names: Iterable[str]) -> dict[str, Look]:
    """How to draw these methods, or runs."""
    method_looks = {}
    for index, name in enumerate(names):
        colour, marker = OTHERS[index % len(OTHERS)], MARKERS[index % len(MARKERS)]
        method_looks[name] = KNOWN.get(name) or Look(colour, marker)
    return method_looks


def svg(name: str, title: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Draw a figure as an SVG element that scales to the width it is given.

    Args:
        name: unique on the page; it goes into all ids of the element.
        title: what the picture shows, for those who do not see it.
        size: width and height in inches; widths are chosen so that text is readable on a phone.
        draw: draws into the empty figure.
    """
    prefix = "p" + hashlib.sha256(name.encode()).hexdigest()[:8]
    with style.context(["default", SETTINGS | {"svg.hashsalt": prefix}]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        # what `savefig` does, but for its trial, in which all is laid out and drawn once before
        for part in (figure, *figure.axes):
            part.patch.set_facecolor("none")
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # matplotlib numbers its ids anew in every figure, and a page holds many
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-")
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # would hold for the whole page
    tag, rest = text.split(">", 1)
    tag = re.sub(r' (?:width|height)="[^"]*"', "", tag)
    label = html.escape(" ".join(title.split()))
    return f'{tag} role="img" aria-label="{label}">{rest}'


def marker(look: Look) -> str:
    """A method's line and marker for the key beside the pictures, as an SVG element without ids."""
    style = MarkerStyle(look.marker)
    shape = style.get_path().transformed(style.get_transform())
    size = 2.3 * look.size
    polygons = ""
    for points in map(np.asarray, shape.to_polygons()):
        corners = " ".join(f"{18 + size * x:.1f},{9 - size * y:.1f}" for x, y in points)
        polygons += f'<polygon points="{corners}" fill="{look.colour}"/>'
    line = f'<path d="M2 9H34" stroke="{look.colour}" stroke-width="{look.width}"/>'
    return f'<svg viewBox="0 0 36 18" aria-hidden="true">{line}{polygons}</svg>'


def plain_ticks(axis: Axes, which: str, ticks: Iterable[float] = ()) -> None:
    """Numbers as people write them on a logarithmic axis, at these ticks or where they fit."""
    ticked = axis.xaxis if which == "x" else axis.yaxis
    ticked.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1000 else f"{v:.4g}"))
    ticked.set_minor_formatter(NullFormatter())
    if ticks:
        getattr(axis, f"set_{which}ticks")(list(ticks))
        ticked.set_minor_locator(NullLocator())
    else:
        low, high = axis.get_xlim() if which == "x" else axis.get_ylim()
        wide = high / low > 300
        ticked.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=8))


def marks(look: Look) -> dict[str, Any]:
    """How a method's markers are drawn, as keyword arguments of `plot`."""
    return {
        "color": look.colour,
        "marker": look.marker,
        "markersize": look.size,
        "markeredgecolor": look.colour,
        "markeredgewidth": 0.4,
    }
