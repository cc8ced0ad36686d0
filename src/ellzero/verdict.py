"""The verdict on a run: whether its network is worth shipping, from its record and its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ellzero import flags
from ellzero.answers import more_wrong, wrong_answers
from ellzero.data.flags import are_few
from ellzero.errors import InputError
from ellzero.flags import STANDARD_ERRORS
from ellzero.pruning.budget import Budget
from ellzero.record import Evaluation, FinishedRecord

MARGIN = 0.5
"""Where chance may hide more than this part of the reference's error, there are too few answers."""

Level = Literal["ship", "weigh", "no"]

WORDS: Mapping[Level, str] = {"ship": "Ship it", "weigh": "Weigh it", "no": "No"}


@dataclass(frozen=True)
class Loss:
    """By how much the compressed network is worse than the dense reference, on one part.

    Args:
        part: of the data: `test` where it was measured on it, else `validation`.
        worse: percentage points of error where the score is an accuracy, else the score's fall;
            below 0 where the compressed network is better.
        error: standard error of `worse`; None where the answers of both are not known.
        answers: how many answers they gave.
    """

    part: Literal["test", "validation"]
    worse: float
    error: float | None = None
    answers: int | None = None

    @property
    def noise(self) -> float | None:
        """What chance alone may make of a difference."""
        return None if self.error is None else STANDARD_ERRORS * self.error


@dataclass(frozen=True)
class Round:
    """A round of a search under a budget: what was left, what that lost, and what came of it."""

    number: int
    nonzeros: int
    ratio: float | None
    lost: str
    result: str


@dataclass(frozen=True)
class Verdict:
    """What a run comes to.

    Args:
        level: `ship`; `weigh` where nobody has said what may be lost, or chance may decide; `no`.
        sentence: the verdict in words, with its reason.
        loss: what the compressed network loses.
        budget: what was allowed, used and left, by name; nothing without a budget.
        rounds: of the search under a budget.
    """

    level: Level
    sentence: str
    loss: Loss
    budget: tuple[tuple[str, str], ...] = ()
    rounds: tuple[Round, ...] = ()


def verdict(record: FinishedRecord, folder: Path | None = None) -> Verdict:
    """The verdict on a run that is done.

    Without a budget a network is to be shipped whose loss is within the noise, two standard errors
    of the paired difference over the test examples, where these are enough to rule out half as many
    errors again. With one, validation data decided, and test data are not to go beyond it. No
    network is to be shipped unweighed whose part of the data has fewer than 100 examples. A
    standard error is at least one answer, 1 / n, also where the two networks agree on all of n.

    Args:
        record: the run's.
        folder: where its answers lie, without which the noise is not known.

    Example:
        >>> import torch, ellzero as ez
        >>> x, y = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> recipe = ez.Recipe.parse({"train": {"epochs": 1}, "prune": {"sparsity": 0.5}})
        >>> result = ez.compress(torch.nn.Linear(4, 4), ez.Data((x, y), (x, y)), recipe)
        >>> verdict(result.record).loss.part
        'validation'
    """
    loss, allowed = _loss(record, folder), _budget(record)
    level, reason = _judged(record, loss, allowed)
    if level == "ship" and are_few(record.warnings, loss.part):
        level, reason = "weigh", f"{reason}; but so few {loss.part} examples may say so by chance"
    sentence = f"{WORDS[level]}: {reason}."
    if allowed is None:
        return Verdict(level, sentence, loss)
    rounds = tuple(_rounds(record, allowed))
    return Verdict(level, sentence, loss, tuple(_used(record, allowed)), rounds)


def _loss(record: FinishedRecord, folder: Path | None) -> Loss:
    part, dense, small = _compared(record)
    fall = dense.score - small.score
    if not record.scores_accuracy:
        return Loss(part, fall)
    worse = 100 * fall
    if part == "test" and folder is not None:
        reference = wrong_answers(folder, "reference")
        compressed = wrong_answers(folder, "compressed")
        if reference is not None and compressed is not None and len(reference) == len(compressed):
            mean, error = more_wrong(compressed, reference)
            # examples that weigh differently are no plain mean, and have another noise
            if abs(mean - worse) < 1e-3:
                return Loss(part, worse, error, len(compressed))
    return Loss(part, worse)


def _compared(
    record: FinishedRecord,
) -> tuple[Literal["test", "validation"], Evaluation, Evaluation]:
    dense, small = record.reference, record.compressed
    if dense.test is not None and small.test is not None:
        return "test", dense.test, small.test
    return "validation", dense.validation, small.validation


def _budget(record: FinishedRecord) -> Budget | None:
    """The budget in the recipe, as far as it is one; a record may come from anybody."""
    prune = record.recipe.get("prune")
    table = prune.get("budget") if isinstance(prune, Mapping) else None
    if not isinstance(table, Mapping):
        return None
    try:
        return Budget(**table)
    except (InputError, TypeError):
        return None


def _judged(record: FinishedRecord, loss: Loss, budget: Budget | None) -> tuple[Level, str]:
    doubt = flags.undermining(record.warnings)
    if doubt is not None:
        return "no", doubt
    if record.nonzero_ratio is None:
        return "no", "no weight is left"
    if record.nonzero_ratio <= 1:
        return "no", "no weight has gone"
    smaller = f"{_number(record.nonzero_ratio)} times fewer weights"
    found = _found(record, loss)
    if budget is None:
        if loss.worse > (loss.noise or 0):
            advice = "fewer zeros, longer fine-tuning or a budget (prune.budget) lose less"
            return "weigh", f"{smaller}, {found}; {advice}"
        if loss.noise is not None and loss.worse + loss.noise > MARGIN * _dense_error(record):
            return (
                "weigh",
                f"{smaller}, {found}; too few answers to rule out 1.5 times as many errors",
            )
        return "ship", f"{smaller}, {found}"
    used = _validation_used(record, budget)
    lost = _unit(budget, used) if used > 0 else "none"
    reason = f"{smaller} for {lost} of the {_unit(budget, budget.limit)} that may be lost on "
    reason += "validation data"
    if loss.part == "validation":
        return "ship", reason
    beyond = _test_used(record, budget) - budget.limit
    if beyond <= 1e-9:
        return "ship", f"{reason}; {found}"
    known = budget.max_accuracy_drop is not None and loss.noise is not None
    if known and beyond > (loss.noise or 0):
        return "no", f"{reason}, but {found}: beyond the budget, by more than noise"
    return "weigh", f"{reason}, but {found}: beyond the budget" + (
        ", by less than noise" if known else "; whether by chance is not known"
    )


def _dense_error(record: FinishedRecord) -> float:
    _, dense, _ = _compared(record)
    return dense.error_percent


def _found(record: FinishedRecord, loss: Loss) -> str:
    """What the compressed network reached beside the dense one, and whether that is noise."""
    part, dense, small = _compared(record)
    if not record.scores_accuracy:
        increase = f", {_change(small.loss, dense.loss)}" if dense.loss > 0 else ""
        losses = f"{small.loss:.4g} against {dense.loss:.4g}{increase}"
        if small.score == -small.loss and dense.score == -dense.loss:
            return f"{part} loss {losses}"
        return (
            f"{part} score {small.score:.4g}, the dense network {dense.score:.4g} (higher is "
            f"better); loss {losses}"
        )
    if abs(loss.worse) < 1e-9:
        return f"on {part} data as many errors as the dense network"
    way = "worse" if loss.worse > 0 else "better"
    text = f"on {part} data {abs(loss.worse):.2f} points {way} than the dense network"
    if loss.noise is None:
        return f"{text}; how much of that is noise is not known"
    than = "less" if abs(loss.worse) <= loss.noise else "more"
    return (
        f"{text}, {than} than the noise of {loss.answers:,} answers (two standard errors: "
        f"{loss.noise:.2f})"
    )


def _used(record: FinishedRecord, budget: Budget) -> Iterator[tuple[str, str]]:
    accuracy = budget.max_accuracy_drop is not None
    what = "of accuracy" if accuracy else "more loss than the reference's"
    used = _validation_used(record, budget)
    yield "allowed", f"{_unit(budget, budget.limit)} {what}"
    yield "used", _unit(budget, used) + (": better than the reference" if used < 0 else "")
    yield "left", _unit(budget, budget.limit - used)
    rounds = [outcome for outcome in record.outcomes if outcome.within is not None]
    refused = sum(not outcome.within for outcome in rounds)
    if rounds:
        text = f"{len(rounds)} tried, {len(rounds) - refused} within the budget, {refused} refused"
        more = "; none was refused, so more of them (prune.rounds) may leave fewer weights"
        yield "rounds", text + ("" if refused else more)


def _rounds(record: FinishedRecord, budget: Budget) -> Iterator[Round]:
    for outcome in record.outcomes:
        if outcome.within is None or outcome.used is None:
            continue
        result = "within the budget"
        if not outcome.within:
            result = f"refused: {_unit(budget, outcome.used - budget.limit)} too much"
        ratio = record.weights / outcome.nonzeros if outcome.nonzeros else None
        lost = _unit(budget, outcome.used)
        yield Round(outcome.round, outcome.nonzeros, ratio, lost, result)


def _validation_used(record: FinishedRecord, budget: Budget) -> float:
    dense, small = record.reference.validation, record.compressed.validation
    return budget.used(reference=dense, candidate=small)


def _test_used(record: FinishedRecord, budget: Budget) -> float:
    _, dense, small = _compared(record)
    return budget.used(reference=dense, candidate=small)


def _unit(budget: Budget, used: float) -> str:
    """What was used in the budget's unit: points of accuracy, or the loss's increase in percent."""
    if budget.max_accuracy_drop is not None:
        return f"{used:.2f} points"
    return f"{100 * used:.1f} %"


def _change(value: float, before: float) -> str:
    percent = 100 * (value / before - 1)
    return f"{abs(percent):.1f} % {'more' if percent >= 0 else 'less'}"


def _number(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
