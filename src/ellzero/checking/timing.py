"""How long the stages of a run take: some real steps of each, extrapolated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch

from ellzero.data.data import Data
from ellzero.errors import DivergenceError
from ellzero.modules import device_of
from ellzero.recipe import Recipe
from ellzero.record import Stage
from ellzero.training.evaluation import validated
from ellzero.training.loop import epochs, masks_for
from ellzero.training.plan import Step, stage_batches, stage_epochs, steps_per_epoch
from ellzero.training.state import State

WARM_UP = 3
"""Steps that are not counted: caches, compilers and clocks settle."""

MOST_STEPS = 30
MOST_SECONDS = 3.0

SEARCHES = 12
"""Evaluations by which a round under a budget finds how far to prune."""


@dataclass(frozen=True)
class StageTime:
    """A stage, and what it is estimated to take.

    Args:
        stage: which.
        rounds: how many times it is gone through, at most.
        epochs: of each time.
        steps: of the optimizer, each time.
        seconds: of all its rounds, evaluations included.
    """

    stage: Stage
    rounds: int
    epochs: int
    steps: int
    seconds: float


def stage_times(state: State, recipe: Recipe, data: Data) -> Iterator[StageTime]:
    """An estimate for each stage that the run trains; the state is changed, and of no more use.

    Raises:
        DivergenceError: a weight became NaN within these few steps.
    """
    began = time.perf_counter()
    evaluation = validated(state.model, data)
    evaluating = time.perf_counter() - began
    state.start = state.start if state.reference is None else state.reference.tensors
    state.reference = state.reference or state.snapshot(evaluation)
    rounds: dict[Stage, int] = {
        "reference": int(recipe.reference.file is None),
        "train": int(recipe.train.file is None),
        "finetune": recipe.prune.rounds,
    }
    lengths = stage_epochs(recipe, data)
    for stage, times in rounds.items():
        table = getattr(recipe, stage)
        if not times:
            continue
        batches, evaluations = stage_batches(table, data), lengths[stage]
        if stage == "finetune":  # the network as it was pruned is evaluated, too
            evaluations += 1 + (SEARCHES if recipe.prune.budget else 0)
        seconds = evaluations * evaluating
        if batches:
            seconds += batches * _of_a_batch(state, recipe, data, stage)
        steps = table.steps or lengths[stage] * steps_per_epoch(table, data)
        yield StageTime(stage, times, lengths[stage], steps, times * seconds)


class _Enough(Exception):
    """The clock has seen enough."""


class _Clock:
    """When each step of the optimizer was done, of as many as are needed."""

    def __init__(self, device: torch.device, group: int) -> None:
        self._device, self._group, self._batches = device, group, 0
        self._stamps = [self._now()]

    def tick(self) -> None:
        """A batch is done.

        Raises:
            _Enough: no more are needed.
        """
        self._batches += 1
        if self._batches % self._group:
            return
        self._stamps.append(self._now())
        steps = len(self._stamps) - 1
        is_long = self._stamps[-1] - self._stamps[0] > MOST_SECONDS
        if steps >= MOST_STEPS or (is_long and steps > WARM_UP):
            raise _Enough

    def seconds_per_batch(self) -> float:
        """The mean, without the first steps, if there are others."""
        counted = self._stamps[WARM_UP:] if len(self._stamps) > WARM_UP + 1 else self._stamps
        return (counted[-1] - counted[0]) / (max(len(counted) - 1, 1) * self._group)

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


def _of_a_batch(state: State, recipe: Recipe, data: Data, stage: Stage) -> float:
    """Seconds of a batch in a stage, by training for a moment as the run would."""
    state.restore(state.start)
    numel = state.weights.numel
    state.step = Step(stage, round=1, epochs=max(stage_epochs(recipe, data)[stage], 1))
    state.epoch, state.masks = 0, None
    if stage == "finetune":
        state.masks = masks_for(state, recipe, recipe.prune.target(numel) or max(numel // 10, 1))
    state.equip(recipe)
    device, group = device_of(state.model), getattr(recipe, stage).gradient_accumulation_steps
    clock = _Clock(device, group)
    training = epochs(state, recipe, data, tick=lambda: clock.tick())
    if stage == "finetune":
        next(training)  # the network as it was pruned, evaluated
        clock = _Clock(device, group)
    with suppress(_Enough):
        next(training)
    seconds = clock.seconds_per_batch()
    if not all(bool(p.isfinite().all()) for p in state.model.parameters()):
        raise DivergenceError(
            f"a weight became NaN or infinite within the first steps of {stage}; lower "
            f"{stage}.learning_rate, or look at the loss and the data"
        )
    return seconds
