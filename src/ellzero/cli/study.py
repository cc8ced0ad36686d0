"""A study on the terminal: the winner at each target, and by how much the others differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ellzero.cli.tables import say, show_rows, show_warnings

if TYPE_CHECKING:
    from ellzero.report.facts import StudyFacts
    from ellzero.study.results import Row

DIFFERS = (
    "difference: mean test error minus the best method's, points; ** the two differ, by a paired "
    "bootstrap over the test examples (adjusted p < 0.05), without ** the test data do not tell "
    "them apart"
)


def show_study(facts: StudyFacts) -> None:
    """A table per target, the best method first, a sentence on it, and what the stars mean."""
    from ellzero.report.figures import ranged, ratio, strength
    from ellzero.report.study_section import headline
    from ellzero.report.tables import EDGE, signed
    from ellzero.study.pulls import unequal_pulls

    pairs = {(pair.target.name, pair.other.method): pair for pair in facts.pairs}

    def difference(row: Row) -> str:
        pair = pairs.get((row.target.name, row.method))
        return "" if pair is None else signed(pair.difference) + (" **" if pair.differs else "")

    for target in facts.study.targets:
        dense = ranged(facts.dense, facts.quality.text)
        rows: list[tuple[str, ...]] = [("dense reference", dense, "", "1x", "1x", "")]
        for row in facts.ranked(target):
            spreads = facts.spreads[row]
            rows.append(
                (
                    row.label,
                    ranged(spreads.get("result"), facts.quality.text),
                    difference(row),
                    *(
                        ratio(None if (s := spreads.get(key)) is None else s.median)
                        for key in ("nonzero_ratio", "parameter_ratio")
                    ),
                    strength(row.strength, row.at_edge),
                )
            )
        headings = ("method", facts.quality.label(), "difference", "nonzero ratio")
        show_rows(f"Comparison: {target.label}", rows, (*headings, "parameter ratio", "strength"))
        say(headline(facts, target))
    if facts.pairs:
        say(DIFFERS)
    if any(row.at_edge for row in facts.rows):
        say(EDGE)
    show_warnings(unequal_pulls(facts.study))
