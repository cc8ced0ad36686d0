"""Tables on standard output, as rich draws them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def show_layers(layers: Sequence[dict[str, Any]], sizes: Mapping[str, Any]) -> None:
    """A row per layer, and below them the selected weights together and all parameters."""
    table = Table("layer", "kind", "shape", title="Layers", title_justify="left")
    for heading in ("weights", "nonzeros", "density"):
        table.add_column(heading, justify="right")
    for layer in layers:
        table.add_row(
            layer["name"],
            layer["kind"],
            " x ".join(map(str, layer["shape"])),
            f"{layer['weights']:,}",
            f"{layer['nonzeros']:,}",
            f"{100 * layer['density']:.2f} %",
        )
    table.add_section()
    rows = (("selected weights", "weights", "nonzeros"),)
    rows += (("all parameters", "parameters", "parameters_left"),)
    for name, *keys in rows:
        count, left = (sizes[key] for key in keys)
        density = 100 * left / count if count else 0.0
        table.add_row(name, "", "", f"{count:,}", f"{left:,}", f"{density:.2f} %")
    Console().print(table)


def show_warnings(warnings: Iterable[str]) -> None:
    """A line for each."""
    for text in warnings:
        print(f"warning: {text}")


def show_rows(title: str, rows: Sequence[tuple[str, ...]], headings: Sequence[str]) -> None:
    """A small table, its first column names, the others figures."""
    table = Table(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    # a line of its own: as the table's title a path would be broken to the table's width
    console.print(title, style="italic", highlight=False, markup=False, soft_wrap=True)
    console.print(table)
