"""The run: step after step of the plan, with records, checkpoints and a display at its side."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ellzero import model_file, processes
from ellzero.data.data import Data
from ellzero.errors import BudgetError, DivergenceError, InputError, WriteError, warn
from ellzero.pruning import Masks, least
from ellzero.pruning.budget import Budget, bisect
from ellzero.recipe import Recipe
from ellzero.record import EpochMetrics, Evaluation, Outcome, Retry, TrainedWeights, magnitudes
from ellzero.run_folder import CHECKPOINT, REFERENCE, TRAINED, write_metrics
from ellzero.training.evaluation import validated
from ellzero.training.identity import origin
from ellzero.training.keeper import Keeper
from ellzero.training.loop import epochs, masks_for
from ellzero.training.parallel import copied
from ellzero.training.plan import Step, kept_at, next_step, stage_epochs
from ellzero.training.progress import Bar
from ellzero.training.state import Snapshot, State
from ellzero.training.tensorboard import Board

RETRIES = 3
"""So often the stages of a run begin again after a divergence: down to an eighth of a rate."""

GUIDE = 4.0
"""How many times the budget a pruned network may lose before fine-tuning, which wins it back."""

LEAST_PROGRESS = math.log(2)
"""The least that a guided round adds to the logarithm of the nonzero ratio."""

MOST_PROGRESS = math.log(32)
"""The most it adds: a wide budget may admit a network that gives one answer to everything."""


Callback = Callable[[EpochMetrics], Literal["next stage"] | None]
"""Called after each epoch; it may end the stage there."""


@dataclass(frozen=True)
class RunContext:
    """What stays the same while a run goes on.

    In several processes rank 0 alone has a folder, a callback's answer and a display.
    """

    recipe: Recipe
    data: Data
    folder: Path | None
    bar: Bar
    board: Board
    has_reference: bool
    about: dict[str, Any]
    """What a model file says of its origin."""
    callback: Callback | None = None
    helps: bool = False
    """Whether this process has to do its part in what rank 0 writes, of a sharded network."""


def go(run: RunContext, state: State) -> None:
    """Take the state through all steps that are left; its outcome is in `state.best` or `.base`.

    Whatever stops it, the folder has a checkpoint of the last epoch that came to its end.

    Raises:
        DivergenceError: a loss became NaN or infinite; the last checkpoint holds a good state.
        BudgetError: no round stayed within the budget.
    """
    keeper = Keeper(run.recipe, run.folder, state.seconds, helps=run.helps)
    lengths = stage_epochs(run.recipe, run.data)
    try:
        while True:
            if state.step is None:
                numel = state.weights.numel
                step = next_step(
                    run.recipe,
                    numel,
                    state.outcomes,
                    has_reference=run.has_reference,
                    epochs=lengths,
                )
                if step is None:
                    break
                run.bar.begin(step, 0)
                _begin(run, state, step)
                keeper.keep(state)
                keeper.write()
            validation = _train(run, state, keeper)
            if state.step is None:
                continue  # it diverged and begins again
            state.settle()
            # no epoch was left where a step has none, or was resumed at its very end
            _finish(run, state, validation or validated(state.model, run.data))
        state.seconds = keeper.seconds()
        _require_within_budget(run, state)
    except BaseException:
        with suppress(WriteError):  # of a disk that is full; the first error is what counts
            keeper.write()
        raise
    keeper.write()


def _train(run: RunContext, state: State, keeper: Keeper) -> Evaluation | None:
    """The epochs that are left of the step; the last one's validation, None if there was none.

    Raises:
        DivergenceError: a figure became NaN or infinite, and the step does not begin again for it.
        InputError: the callback returned something that means nothing.
    """
    step, validation = state.step, None
    assert step is not None
    run.bar.begin(step, state.epoch)
    run.board.begin(step, state.history)
    for metrics, validation in epochs(state, run.recipe, run.data, tick=run.bar.tick):
        figure = _not_finite(metrics)
        if figure is not None:
            _begin_again(run, state, metrics, figure)
            break
        state.history.append(metrics)
        _keep_best(run, state, validation)
        if run.folder is not None:
            write_metrics(run.folder, state.history)
        run.board.epoch(metrics)
        run.bar.epoch(metrics)
        # before the callback, which may raise on one rank; an epoch 0 is measured anew
        if state.epoch > 0:
            keeper.keep(state)
        if _ends_stage(run, metrics):
            state.step = replace(step, epochs=state.epoch)
            if state.epoch > 0:
                keeper.keep(state)
            break
        keeper.write_if_due()
    return validation


def _ends_stage(run: RunContext, metrics: EpochMetrics) -> bool:
    """Whether the callback ends the stage; what it raises stops the run, to be resumed from here.

    Rank 0 alone calls it, and tells the others.

    Raises:
        InputError: it returned something that means nothing.
    """
    callback = run.callback if processes.is_main() else None
    answer: object = None if callback is None else callback(metrics)
    if answer is None or (isinstance(answer, str) and answer == "next stage"):
        return processes.agreed(answer is not None)
    raise InputError(
        f"the callback returned {answer!r} after epoch {metrics.epoch} of {metrics.stage}; "
        "expected None to go on, or 'next stage' to end the stage there"
    )


def _begin(run: RunContext, state: State, step: Step) -> None:
    state.step, state.epoch = step, 0
    if step.stage == "reference":
        state.restore(state.start)
        state.best = None
    else:
        _require_measurable(run, state)
    if step.stage == "train":
        from_reference = run.recipe.train.start == "reference"
        assert state.reference is not None
        state.restore(state.reference.tensors if from_reference else state.start)
        if run.recipe.on_divergence == "stop":
            state.start = {}  # not needed any more
        state.best = None
    if step.stage == "finetune":
        assert state.base is not None
        state.restore(state.base.tensors)
        count = step.nonzeros if step.search is None else _search(run, state, step.search)
        assert count is not None
        if not run.recipe.prune.gradual:
            state.best = None  # of another count of weights; a gradual training kept it at this one
        state.masks = masks_for(state, run.recipe, count)
    state.equip(run.recipe)


def _search(run: RunContext, state: State, bounds: tuple[float, float]) -> int:
    """The guide before fine-tuning: how few weights still stay near the budget, by bisection."""
    budget, reference = run.recipe.prune.budget, state.reference
    assert budget is not None
    assert reference is not None
    numel = state.weights.numel
    unpruned = [w.detach().clone() for w in state.weights.values()]

    def near_budget(log_ratio: float) -> bool:
        masks_for(state, run.recipe, max(1, round(numel / math.exp(log_ratio))))
        validation = validated(state.model, run.data)
        with torch.no_grad():  # in place, on the device; reloading a network takes longer
            for w, before in zip(state.weights.values(), unpruned, strict=True):
                w.copy_(before)
        return budget.allows(_used(budget, reference, validation), times=GUIDE)

    fewest = max(1, sum(least(state.weights)))
    low, high = bounds[0], min(bounds[1], bounds[0] + MOST_PROGRESS, math.log(numel / fewest))
    highest = max(bisect(near_budget, low, high), min(low + LEAST_PROGRESS, high))
    return max(fewest, round(numel / math.exp(highest)))


def _used(budget: Budget, reference: Snapshot, candidate: Evaluation) -> float:
    dense = reference.evaluation
    return budget.used(
        reference=(dense.score, dense.loss), candidate=(candidate.score, candidate.loss)
    )


def _keep_best(run: RunContext, state: State, validation: Evaluation) -> None:
    """Keep the network if it is the best so far at the asked sparsity (the reference: at any)."""
    step = state.step
    assert step is not None
    if step.stage == "train":
        kept = kept_at(run.recipe, step, state.weights.numel, state.epoch - 1)
        if kept is None or kept != step.nonzeros:
            return  # there is no gradual schedule, or it is not there yet
    # what a budget promises is what the best is chosen by
    budget = run.recipe.prune.budget
    by_loss = budget is not None and budget.max_loss_increase is not None
    if state.best is None or validation.better_than(state.best.evaluation, by_loss=by_loss):
        state.best = state.snapshot(validation)


def _finish(run: RunContext, state: State, validation: Evaluation) -> None:
    step, budget = state.step, run.recipe.prune.budget
    assert step is not None
    used = within = None
    if step.stage == "reference":
        assert state.best is not None
        reached = state.reference = state.best
        state.best = None
        state.restore(reached.tensors)
        _save_network(run, state, REFERENCE)
    else:
        reached = state.snapshot(validation)
        if step.stage == "train":
            _save_network(run, state, TRAINED)  # for other prunings of it
            state.trained = TrainedWeights(magnitudes=magnitudes(state.weights))
            state.start = {}
        if step.stage == "finetune" and budget is not None:
            assert state.best is not None
            assert state.reference is not None
            reached = state.best
            used = _used(budget, state.reference, reached.evaluation)
            within = budget.allows(used)
        if within is not False:
            state.base = reached
    score, loss = reached.evaluation
    outcome = Outcome(
        step.stage, step.round, reached.nonzeros, score, loss, used, within, epochs=state.epoch
    )
    state.outcomes = (*state.outcomes, outcome)
    _end_step(state)


def _end_step(state: State) -> None:
    state.step = state.optimizer = state.regularizer = state.forward = state.masks = None
    state.average = state.teacher = None


def save_reference(run: RunContext, state: State) -> None:
    """Write the reference, for this and for other runs; the network stays as it is."""
    assert state.reference is not None
    now = copied(state.model)
    state.restore(state.reference.tensors)
    _save_network(run, state, REFERENCE)
    state.restore(now)


def _save_network(run: RunContext, state: State, name: str) -> None:
    if run.folder is not None or run.helps:
        masks = Masks.of(state.weights)
        about = {**run.about, **origin(run.recipe)}
        file = Path(name) if run.folder is None else run.folder / name
        model_file.save(state.model, file, masks=masks, metadata=about, digest=True)


def _require_measurable(run: RunContext, state: State) -> None:
    budget, reference = run.recipe.prune.budget, state.reference
    assert reference is not None
    loss = reference.evaluation.loss
    if budget is not None and budget.max_loss_increase is not None and loss <= 0:
        raise InputError(
            f"max_loss_increase is relative to the reference's loss, which is {loss:g} on "
            "validation data; it needs a loss above zero"
        )


def _not_finite(metrics: EpochMetrics) -> str | None:
    """The first figure of an epoch that is NaN or infinite."""
    watched = ("train_loss", "penalty", "validation_loss", "validation_score")
    figures = {name: getattr(metrics, name) for name in watched}
    wrong = (n for n, figure in figures.items() if figure is not None and not math.isfinite(figure))
    return next(wrong, None)


def _begin_again(run: RunContext, state: State, metrics: EpochMetrics, figure: str) -> None:
    """Put a step that diverged back to its beginning, with half its learning rate, if told so.

    That is the last state that is good for sure: a loss may grow for epochs before it overflows.
    And what comes of it is what the recipe gives with half the learning rate in that stage.

    Raises:
        DivergenceError: it is not told so; it was done `RETRIES` times; nothing was trained yet.
    """
    if (
        run.recipe.on_divergence == "stop"
        or len(state.retries) == RETRIES
        or metrics.epoch == 0  # as the pruning left it, whatever the learning rate
    ):
        raise _divergence(run, state, metrics, figure)
    retry = Retry(
        stage=metrics.stage,
        round=metrics.round,
        epoch=metrics.epoch,
        figure=figure,
        factor=state.rate_factor / 2,
    )
    warn(retry.sentence)
    state.retries = (*state.retries, retry)
    step = (metrics.stage, metrics.round)
    state.history = [m for m in state.history if (m.stage, m.round) != step]
    _end_step(state)


def _divergence(
    run: RunContext, state: State, metrics: EpochMetrics, figure: str
) -> DivergenceError:
    assert state.step is not None
    table = state.step.table(run.recipe)
    terms = () if table.penalty is None else table.penalty.terms
    gates = run.recipe.train.gates if state.step.stage == "train" else None
    named = (*terms, *(() if gates is None else (gates,)))
    strengths = ", ".join(f"{type(n).__name__} strength {n.strength:g}" for n in named)
    times = f" after {len(state.retries)} retries" if state.retries else ""
    rate = f"learning rate {table.learning_rate * state.rate_factor:g}{times}"
    kept = f"; {run.folder / CHECKPOINT} holds the last good state" if run.folder else ""
    return DivergenceError(
        f"{figure} became {getattr(metrics, figure)} in epoch {state.epoch} of {state.step.label} "
        f"({strengths or 'no penalty'}, {rate}); lower the learning rate or the strength{kept}"
    )


def _require_within_budget(run: RunContext, state: State) -> None:
    budget = run.recipe.prune.budget
    rounds = [outcome for outcome in state.outcomes if outcome.stage == "finetune"]
    if budget is None or any(outcome.within for outcome in rounds):
        return
    best = min(rounds, key=lambda outcome: math.inf if outcome.used is None else outcome.used)
    spare = ""
    if run.folder is not None and run.recipe.reference.file is None:
        spare = f"; reference.file = '{run.folder / REFERENCE}' spares training it again"
    unit = " points of accuracy" if budget.max_loss_increase is None else " (relative loss)"
    raise BudgetError(
        f"none of {len(rounds)} rounds stayed within the budget of {budget.limit:g}{unit}; the "
        f"best found lost {best.used:.3g} with {best.nonzeros} of {state.weights.numel} weights. "
        f"Allow more, prune in more rounds, or train and fine-tune longer{spare}"
    )
