"""What a page says of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ellzero.recipe_stages import StageTable, name_of
from ellzero.report.attraction import CAPTION, panels
from ellzero.report.facts import StudyFacts
from ellzero.report.figures import ranged
from ellzero.report.pareto import pareto
from ellzero.report.pictures import (
    courses,
    densities,
    effort_bars,
    first_cell,
    ranking,
    recovery,
    trained_folder,
)
from ellzero.report.section import Group, Key, Section, there
from ellzero.report.style import looks, marker
from ellzero.report.tables import did_best, probability, signed, study_texts
from ellzero.study.pulls import unequal_pulls
from ellzero.study.results import Row
from ellzero.study.statistics import Pair
from ellzero.study.study import Cell, Study, Target


def study_section(facts: StudyFacts, name: str) -> Section:
    """All there is to say of a study; `name` is unique on the page."""
    results, study, rows = facts.results, facts.study, facts.rows
    complete = len(rows) == len(study.methods) * len(study.targets)
    complete &= all(len(row.cells) == row.seeds for row in rows)
    section = Section("study", study.name, "done" if complete else "not complete")
    section.summary = [headline(facts, target) for target in study.targets]
    failed = results.failures()
    if failed:
        section.warnings.append(
            f"{len(failed)} cells failed, see below; figures and choices do without them, and a "
            "method all of whose cells failed does not appear."
        )
    elif not complete:
        section.warnings.append(
            "The study is not complete: methods appear once all their strengths have been tried, "
            "and figures may still change as more seeds are done."
        )
    section.warnings += [*_unequal(study), *unequal_pulls(study)]
    section.warnings += [f"{text} ({_runs(count)})" for text, count in facts.warnings]
    edges = dict.fromkeys(row.label for row in rows if row.at_edge)
    if edges:
        section.warnings.append(
            f"For {_listed(list(edges))} a chosen strength (*) is the lowest or highest of those "
            "tried, so a better one may lie beyond them."
        )
    section.facts = _protocol(facts)
    drawn = looks(study.methods)
    section.key = [Key(study.label(m), marker(drawn[m]), drawn[m].strong) for m in study.methods]
    section.first = there(
        pareto(facts, name=name), *(ranking(facts, t, name=name) for t in study.targets)
    )
    section.tables = study_texts(facts)
    section.groups = _groups(facts, name)
    cells = {
        row.method: (row.label, first_cell(results, row), trained_folder(results, row))
        for row in facts.rows_at(study.targets[-1])
    }
    section.panels = list(panels(cells, drawn, name=name))
    section.panels_caption = (
        f"{CAPTION} The first seed, with the strengths chosen for {study.targets[-1].label}."
    )
    section.failures = [(f.folder.name, f.status, f.error or "") for f in failed]
    section.source = ("The study", study.to_toml())
    return section


def _groups(facts: StudyFacts, name: str) -> list[Group]:
    targets, quality = facts.study.targets, facts.quality
    figure = f"validation {quality.noun}"
    return [
        Group(
            "Before and after fine-tuning",
            f"The {figure} of the network as pruning left it (hollow) and after fine-tuning "
            "(filled), medians over the seeds. Where a penalty has already taken the weights to "
            "zero, pruning costs little.",
            there(*(recovery(facts, target, name=name) for target in targets)),
        ),
        Group(
            "Density per layer",
            "The share of each layer's weights that is left, medians over the seeds; a layer with "
            "none left has no marker.",
            there(*(densities(facts, target, name=name) for target in targets)),
            needs_key=True,
        ),
        Group(
            "The course of training",
            f"The {figure} of the first seed with the chosen strengths. Dotted: the end of "
            "training, where the networks are pruned and fine-tuning begins.",
            there(*(courses(facts, target, name=name) for target in targets)),
            needs_key=True,
        ),
        Group(
            "What it cost",
            "Of all cells, tuning and failed ones included. Seconds depend on what else the "
            "machine was doing.",
            there(effort_bars(facts, name=name)),
        ),
    ]


def headline(facts: StudyFacts, target: Target) -> str:
    """Which method did best at a target, and whether a paired test tells it from the next one."""
    quality = facts.quality
    rows = [row for row in facts.ranked(target) if row.cells]
    ranked = [row for row in rows if len(row.cells) == row.seeds] or rows
    if not ranked:
        return f"{target.label}: no method has come to a result."
    best = ranked[0]
    spreads = facts.spreads[best]
    result, drop, reached = spreads["result"], spreads["drop"], spreads["nonzero_ratio"]
    text = f"{target.label}: {best.label} {did_best(target)}"
    if reached is not None:
        text += f" ({reached.median:.1f} times fewer weights)"
    text += f", {quality.part} {quality.noun} {ranged(result, quality.with_unit)}"
    if drop is not None and quality.accuracy:
        way = "above" if drop.median >= 0 else "below"
        text += f", {abs(drop.median):.2f} points {way} the dense reference"
    text += "."
    if len(ranked) > 1:
        text += f" {_runner_up(ranked[1], best, facts.pairs)}"
    return text


def _runner_up(second: Row, best: Row, pairs: Sequence[Pair]) -> str:
    for pair in pairs:
        if pair.best is best and pair.other is second:
            verdict = "they differ" if pair.differs else "the test data does not tell them apart"
            way = "more" if pair.difference >= 0 else "less"
            return (
                f"The runner-up, {second.label}, has {abs(pair.difference):.2f} points {way} test "
                f"error (95 % interval {signed(pair.low)} to {signed(pair.high)}, "
                f"p {_equals(pair)}): {verdict}."
            )
    return f"The runner-up is {second.label}; there is no paired test of the two."


def _equals(pair: Pair) -> str:
    text = probability(pair)
    return text if text.startswith("<") else f"= {text}"


def _protocol(facts: StudyFacts) -> list[tuple[str, str]]:
    study, quality, dense = facts.study, facts.quality, facts.dense
    recipe = study.reference_recipe(study.seeds[0])
    cell = study.cell_recipe(next(study.cells()))
    tried = max(len(method.strengths) for method in study.methods.values())
    chosen = "by the fewest weights within the budget" if study.budgets else (
        "by the validation score"
    )  # fmt: skip
    grids = f", with {tried} strengths each where they have one" if tried else ""
    counts = Counter(run.status for run in facts.results.cells.values())
    counts.pop("missing", None)
    names = {"network": recipe.model, "data": recipe.data}
    terms = [(what, s.name) for what, s in names.items() if s is not None]
    terms += [
        ("dense reference",
         f"{quality.part} {quality.noun} {ranged(dense, quality.with_unit)}"),
        ("pruned to", _listed([target.label for target in study.targets])),
        ("methods", f"{len(study.methods)}{grids}"),
        ("seeds", _listed([str(seed) for seed in study.seeds])),
        ("epochs", f"reference {_length(recipe.reference)}, training {_length(cell.train)}, "
                   f"fine-tuning {_length(cell.finetune)}"),
        ("optimizer", f"{name_of(cell.train.optimizer)}, learning rate "
                      f"{cell.train.learning_rate:g}, batches of {cell.train.batch_size}"),
        ("strengths", f"chosen {chosen} on the first seed, for each target on its own; the test "
                      "data has no say"),
        ("intervals", "range over the seeds beside medians; 95 % bootstrap over the test examples "
                      "in the paired tests, which says nothing of other seeds"),
        ("cells", ", ".join(f"{n} {status}" for status, n in counts.items()) or "none yet"),
    ]  # fmt: skip
    return terms


def _length(stage: StageTable) -> str:
    return str(stage.epochs) if stage.steps is None else f"{stage.steps} steps"


def _unequal(study: Study) -> list[str]:
    """A warning where methods are not all trained alike, as a method's own fragment may say."""
    first: dict[tuple[str, str], Any] = {}
    unequal: dict[str, list[str]] = {}
    for method in study.methods:
        training = next(t for t in study.tuning() if t.method == method)
        recipe = study.cell_recipe(Cell(training, study.targets[0]))
        for stage in ("train", "finetune"):
            for key in ("epochs", "steps", "batch_size", "optimizer", "learning_rate"):
                value = getattr(getattr(recipe, stage), key)
                if value != first.setdefault((stage, key), value):
                    unequal.setdefault(study.label(method), []).append(f"{stage}.{key} = {value}")
    return [
        f"{label} is not trained as the first method is: {', '.join(settings)}."
        for label, settings in unequal.items()
    ]


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"


def _listed(names: Sequence[str]) -> str:
    comma = "; " if any("," in name for name in names) else ", "
    return names[0] if len(names) == 1 else f"{comma.join(names[:-1])} and {names[-1]}"
