"""Lines and tables on standard output, their text in characters that can be seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ellzero.terminal import plain

if TYPE_CHECKING:
    from ellzero.record import Layer, Sizes


def show_layers(layers: Sequence[Layer], sizes: Sizes) -> None:
    """A row per layer, and below them the selected weights together and all parameters."""
    table = Table("layer", "kind", "shape", title="Layers", title_justify="left")
    for heading in ("weights", "nonzeros", "density"):
        table.add_column(heading, justify="right")

    def add_row(name: str, kind: str, shape: str, weights: int, nonzeros: int) -> None:
        density = 100 * nonzeros / weights if weights else 0.0
        figures = (f"{weights:,}", f"{nonzeros:,}", f"{density:.2f} %")
        table.add_row(*map(_shown, (name, kind, shape, *figures)))

    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        add_row(layer.name, layer.kind, shape, layer.weights, layer.nonzeros)
    table.add_section()
    add_row("selected weights", "", "", sizes.weights, sizes.nonzeros)
    add_row("all parameters", "", "", sizes.parameters, sizes.parameters_left)
    Console().print(table)


def say(text: object, file: TextIO | None = None) -> None:
    """A line, on standard output unless a file is given."""
    print(plain(text), file=file)


def show_warnings(warnings: Iterable[str]) -> None:
    """A line for each."""
    for text in warnings:
        say(f"warning: {text}")


def _shown(text: str) -> Text:
    """What a table shows as it is, whatever rich might take it for."""
    return Text(plain(text))


def show_rows(title: str, rows: Sequence[tuple[str, ...]], headings: Sequence[str]) -> None:
    """A small table, its first column names, the others figures."""
    table = Table()
    for index, heading in enumerate(headings):
        table.add_column(_shown(heading), justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(_shown, row))
    console = Console()
    # a line of its own: as the table's title a path would be broken to the table's width
    console.print(plain(title), style="italic", highlight=False, markup=False, soft_wrap=True)
    console.print(table)
