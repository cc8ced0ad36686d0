"""What a page says of several runs side by side: which is to be taken, and what each came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ellzero.answers import more_wrong, wrong_answers
from ellzero.flags import STANDARD_ERRORS
from ellzero.report.figures import NONE, Quality, RunFigures, duration, figures, number, ratio
from ellzero.report.pareto import Point, runs_pareto
from ellzero.report.section import Key, Section
from ellzero.report.style import looks, marker
from ellzero.report.tables import Text, signed
from ellzero.run_folder import RunFolder
from ellzero.study.results import Spread
from ellzero.verdict import WORDS, Level, Verdict, verdict

ORDER: tuple[Level, ...] = ("ship", "weigh", "no")

RANKED = (
    "Ranked by verdict (ship, weigh, no), then by size, the smallest first. On the front: no other "
    "run is smaller and no worse, or as small and better."
)


@dataclass(frozen=True)
class Entry:
    """A run, with what it came to; the last two are None where it is not done."""

    run: RunFolder
    label: str
    figures: RunFigures
    verdict: Verdict | None
    loss: float | None
    """Its error, or its score times -1: less is better."""

    @property
    def rank(self) -> tuple[float, float, float]:
        """Its place among the runs, the lowest first."""
        if self.verdict is None:
            return len(ORDER), 0.0, 0.0
        smaller = self.figures["nonzero_ratio"] or 0.0
        return ORDER.index(self.verdict.level), -smaller, self.loss or 0.0


def runs_section(runs: Sequence[RunFolder], name: str) -> Section:
    """Several runs side by side: a ranking, and what each lost against how small it became."""
    quality = Quality.of(runs)
    entries = [_entry(run, quality) for run in runs]
    done = [entry for entry in entries if entry.verdict is not None]
    section = Section("comparison", f"{len(runs)} runs", f"{len(done)} done")
    section.summary = _summary(done, quality)
    drawn = looks(entry.label for entry in entries)
    section.key = [Key(entry.label, marker(drawn[entry.label]), False) for entry in entries]
    points = [
        Point(entry.label, size, result)
        for entry in done
        if (size := Spread.of([entry.figures["nonzero_ratio"]])) and (result := _with_noise(entry))
    ]
    dense = Spread.of(entry.figures["reference"] for entry in done)
    if dense is not None and quality.text(dense.low) != quality.text(dense.high):
        section.warnings.append(
            f"The dense references differ, from {quality.with_unit(dense.low)} to "
            f"{quality.with_unit(dense.high)}: each verdict is against the run's own."
        )
    section.warnings.extend(_other_data(done))
    if points:
        section.first = [runs_pareto(points, drawn, dense, quality, name=name)]
    section.tables = [_table(sorted(entries, key=lambda entry: entry.rank), done, quality)]
    return section


def _entry(run: RunFolder, quality: Quality) -> Entry:
    reached = figures(run, quality)
    found = None if run.finished is None else verdict(run.finished, run.folder)
    result = reached["result"]
    loss = result if quality.accuracy or result is None else -result
    return Entry(run, str(run.folder), reached, found, loss)


def _other_data(done: Sequence[Entry]) -> Iterator[str]:
    """That the runs were not made with the same data, as far as their recipes tell."""
    named = [entry.run.finished.recipe.get("data") for entry in done if entry.run.finished]
    tables = [data if isinstance(data, Mapping) else {"name": data} for data in named]
    options = [{k: v for k, v in data.items() if k != "data_root"} for data in tables]
    if any(one != options[0] for one in options):
        names = ", ".join(dict.fromkeys(str(data.get("name")) for data in options))
        yield f"The runs were made with different data ({names}): their errors do not compare."


def _with_noise(entry: Entry) -> Spread | None:
    """A run's result, with two standard errors of its difference to the dense network around it."""
    result = entry.figures["result"]
    if result is None:
        return None
    noise = (entry.verdict and entry.verdict.loss.noise) or 0.0
    return Spread(result, result - noise, result + noise)


def _on_front(entry: Entry, others: Sequence[Entry]) -> bool:
    def place(one: Entry) -> tuple[float, float]:
        return -(one.figures["nonzero_ratio"] or 0.0), one.loss or 0.0

    size, loss = place(entry)
    beaten = ((s <= size and x <= loss, s < size or x < loss) for s, x in map(place, others))
    return not any(no_worse and better for no_worse, better in beaten)


def _summary(done: Sequence[Entry], quality: Quality) -> list[str]:
    if not done:
        return []
    shipped = [entry for entry in done if entry.verdict and entry.verdict.level == "ship"]
    if not shipped:
        front = ", ".join(entry.label for entry in done if _on_front(entry, done))
        return [f"No run is to be shipped without weighing it. On the Pareto front: {front}."]
    best = min(shipped, key=lambda entry: entry.rank)
    text = (
        f"{best.label} is the smallest of {len(shipped)} runs to ship: "
        f"{number(best.figures['nonzero_ratio'])} times fewer weights, {quality.part} "
        f"{quality.noun} {quality.with_unit(best.figures['result'])}."
    )
    most = min(done, key=lambda entry: (entry.loss or 0.0, entry.rank))
    if most is best:
        return [text, f"It also has the best {quality.part} {quality.noun} of all runs."]
    better = (
        f"The best {quality.part} {quality.noun}, {quality.with_unit(most.figures['result'])}, has "
        f"{most.label} ({number(most.figures['nonzero_ratio'])} times fewer weights)"
    )
    return [text, f"{better}{_difference(best, most, quality)}."]


def _difference(best: Entry, most: Entry, quality: Quality) -> str:
    """Whether two runs' errors differ by more than noise, as far as their answers tell."""
    wrong = [wrong_answers(entry.run.folder, "compressed") for entry in (best, most)]
    if not quality.accuracy or quality.part != "test" or wrong[0] is None or wrong[1] is None:
        return ""
    if len(wrong[0]) != len(wrong[1]):
        return "; the two were not tested on the same data"
    lost, error = more_wrong(wrong[0], wrong[1])
    noise = STANDARD_ERRORS * error
    way = "within" if abs(lost) <= noise else "more than"
    return (
        f": {abs(lost):.2f} points less, {way} the noise of {len(wrong[0]):,} answers "
        f"(two standard errors: {noise:.2f})"
    )


def _table(entries: Sequence[Entry], done: Sequence[Entry], quality: Quality) -> Text:
    columns = {"result": quality.text, "reference": quality.text, "drop": signed}
    columns |= {"nonzeros": number, "living_nonzeros": number, "nonzero_ratio": ratio}
    columns |= {"parameter_ratio": ratio, "file_ratio": ratio}
    columns |= {"epochs": number, "seconds": duration}
    headings = ("run", "verdict", "on the front", quality.label(), "dense reference", "drop")
    headings += ("nonzeros", "living", "nonzero ratio", "parameter ratio", "file ratio", "epochs")
    headings += ("time",)
    rows = tuple(
        (
            entry.label,
            entry.run.status if entry.verdict is None else WORDS[entry.verdict.level],
            NONE if entry.verdict is None else "yes" if _on_front(entry, done) else "no",
            *(
                NONE if (figure := entry.figures[key]) is None else text(figure)
                for key, text in columns.items()
            ),
        )
        for entry in entries
    )
    return Text("Ranking", headings, rows, (RANKED,))
