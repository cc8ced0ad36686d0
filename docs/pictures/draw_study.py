"""Write pictures of a study's report as files: `python docs/pictures/draw_study.py STUDY FOLDER`.

The same pictures as on the page of `ellzero report` (needs the extra `report`), each an SVG file in
the folder, named after the study.
"""

import sys
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from paper import write

from ellzero.report.attraction import panels
from ellzero.report.facts import StudyFacts
from ellzero.report.pareto import draw_pareto, pareto_points
from ellzero.report.pictures import first_cell, ranking, recovery, trained_folder
from ellzero.report.style import looks, marks, svg
from ellzero.study.results import Results

SHOWN = ("magnitude", "l2", "l1", "l0+l2", "l0+l2-decoupled", "hoyer-square")
"""Whose weights are drawn before pruning."""


def draw(study: Path, folder: Path) -> None:
    """Pareto, test errors by target, before and after fine-tuning, weights and attraction."""
    results = Results.read(study)
    facts = StudyFacts(results)
    name, last = results.study.name, results.study.targets[-1]
    drawn = {t.name: ranking(facts, t, name=name) for t in results.study.targets}
    drawn["recovery"] = recovery(facts, last, name=name)
    pictures = {part: picture.svg for part, picture in drawn.items() if picture is not None}
    title = "Test error against nonzero ratio"
    pictures["pareto"] = svg(f"{name} pareto", title, (7.5, 4), partial(draw_with_key, facts))
    cells = {
        row.method: (row.label, first_cell(results, row), trained_folder(results, row))
        for row in facts.rows_at(last)
        if row.method in SHOWN
    }
    pictures |= zip(cells, panels(cells, looks(results.study.methods), name=name), strict=True)
    for part, picture in pictures.items():
        write(folder / f"{name}-{part}.svg", picture)


def draw_with_key(facts: StudyFacts, figure: Figure) -> None:
    """The Pareto picture with its key beside it, which on the page is drawn once for all."""
    axes, method_looks = figure.subplots(), looks(facts.study.methods)
    draw_pareto(axes, pareto_points(facts), method_looks, facts.dense, facts.quality)
    for method, look in method_looks.items():
        axes.plot([], [], label=facts.study.label(method), **marks(look))
    figure.legend(loc="outside right center", frameon=False)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
