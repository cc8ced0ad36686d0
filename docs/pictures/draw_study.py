"""Write pictures of a study's report as files: `python docs/pictures/draw_study.py STUDY FOLDER`.

The same pictures as on the page of `ellzero report` (needs the extra `report`), each an SVG file in
the folder, named after the study.
"""

import sys
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from ellzero.report.attraction import panels
from ellzero.report.figures import reference_spread, study_measure
from ellzero.report.pareto import draw_pareto, pareto_points
from ellzero.report.pictures import first_cell, ranking, recovery, trained_folder
from ellzero.report.style import looks, marks, svg
from ellzero.study.results import Results

SHOWN = ("magnitude", "l2", "l1", "l0+l2", "l0+l2-decoupled", "hoyer-square")
"""Whose weights are drawn before pruning."""


def draw(study: Path, folder: Path) -> None:
    """Pareto, test errors by target, before and after fine-tuning, weights and attraction."""
    results = Results.read(study)
    name, last = results.study.name, results.study.targets[-1]
    drawn = {t.name: ranking(results, t, name=name) for t in results.study.targets}
    drawn["recovery"] = recovery(results, last, name=name)
    pictures = {part: picture.svg for part, picture in drawn.items() if picture is not None}
    title = "Test error against nonzero ratio"
    pictures["pareto"] = svg(f"{name} pareto", title, (7.5, 4), partial(draw_with_key, results))
    cells = {
        row.method: (row.label, first_cell(results, row), trained_folder(results, row))
        for row in results.rows()
        if row.target == last and row.method in SHOWN
    }
    pictures |= zip(cells, panels(cells, looks(results.study.methods), name=name), strict=True)
    for part, picture in pictures.items():
        (folder / f"{name}-{part}.svg").write_text(picture + "\n")


def draw_with_key(results: Results, figure: Figure) -> None:
    """The Pareto picture with its key beside it, which on the page is drawn once for all."""
    axes, measure, found = figure.subplots(), study_measure(results), looks(results.study.methods)
    draw_pareto(axes, pareto_points(results), found, reference_spread(results, measure), measure)
    for method, look in found.items():
        axes.plot([], [], label=results.study.label(method), **marks(look))
    figure.legend(loc="outside right center", frameon=False)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
