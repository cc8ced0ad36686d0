"""Draw a run's file sizes and latency as bars (needs the extra `report`).

    python docs/pictures/draw_shipping.py BENCH.json PACKED RUN OUT.svg

BENCH.json is what `ellzero bench RUN --json` printed, PACKED a packed file of the same run.
"""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper import write

from ellzero.report.style import INK, SOFT, svg

WAYS = (
    "torch dense",
    "torch CSR",
    "scipy CSR",
    "onnxruntime",
    "onnxruntime, compacted",
    "compiled C",
)


def bars(axes: Axes, title: str, rows: list[tuple[str, float, str]], unit: str) -> None:
    """Bars from the largest down, the last one, ours, in ink."""
    places = range(len(rows))
    colours = [*["#b9c2ca"] * (len(rows) - 1), INK]
    axes.barh(places, [value for _, value, _ in rows], color=colours, height=0.62)
    axes.set_yticks(places, [name for name, _, _ in rows])
    axes.set_ylim(len(WAYS) - 0.5, -0.5)  # bars as thick in every panel
    axes.set_title(f"{title}, {unit}")
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(left=False)
    for place, (_, value, text) in zip(places, rows, strict=True):
        axes.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.35 * max(value for _, value, _ in rows))


def draw(bench: Path, packed: Path, run: Path, out: Path) -> None:
    """Two panels: bytes of the network as files, microseconds of one image."""
    found = json.loads(bench.read_text())
    dense = found["size"]["float32_bytes"]
    sizes = {
        "float32": dense,
        "pruned, gzip": (run / "model.safetensors.gz").stat().st_size,
        "packed": packed.stat().st_size,
    }
    by_way = {t["way"]: t["latency"] for t in found["timings"] if t["batch"] == 1}
    times = {way: 1e6 * by_way[way]["median_s"] for way in WAYS if by_way[way] is not None}

    def panels(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(4, 5))
        bars(
            left,
            "The file",
            [(n, b / 1000, f"{b / 1000:,.1f}  ({dense / b:.0f}x)") for n, b in sizes.items()],
            "kB",
        )
        ratio = f"  ({times['onnxruntime'] / times[WAYS[-1]]:.0f}x as fast as onnxruntime)"
        bars(
            right,
            "One image",
            [
                (
                    way,
                    t,
                    f"{t:.1f}" + (ratio if way == WAYS[-1] else ""),
                )
                for way, t in times.items()
            ],
            "microseconds",
        )
        figure.text(
            0.99,
            0.01,
            f"{found['threads']} thread, {found['device']}",
            ha="right",
            fontsize=7,
            color=SOFT,
        )

    write(out, svg("shipping", "File sizes and latency", (7.5, 2.6), panels))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: draw_shipping.py BENCH.json PACKED RUN OUT.svg")
    draw(*map(Path, sys.argv[1:]))
