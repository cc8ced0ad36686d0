"""The plan: which step of the scheme comes next, as a pure function of recipe and outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ellzero.data.data import Data
from ellzero.recipe import Recipe
from ellzero.recipe_stages import StageTable
from ellzero.record import Outcome, Stage


@dataclass(frozen=True)
class Step:
    """One step of the scheme: a stage, and for a fine-tuning the pruning it begins with.

    `nonzeros` is how many weights the step leaves in the end, None for a dense step. Under a budget
    `search` bounds the logarithm of the nonzero ratio instead, and the pruning finds the count.
    """

    stage: Stage
    round: int = 0
    epochs: int = 0
    nonzeros: int | None = None
    search: tuple[float, float] | None = None

    def table(self, recipe: Recipe) -> StageTable:
        """The table of the recipe that says how this step moves the weights, and how long."""
        return getattr(recipe, self.stage)

    @property
    def label(self) -> str:
        """The step's name for people: `train`, or `finetune round 2`."""
        return f"{self.stage} round {self.round}" if self.round > 1 else self.stage


def steps_per_epoch(table: StageTable, data: Data) -> int:
    """How many steps the optimizer takes in an epoch."""
    batches = data.train.batch_count(table.batch_size)
    return math.ceil(batches / table.gradient_accumulation_steps)


def stage_batches(table: StageTable, data: Data) -> int:
    """How many batches a stage trains on."""
    per_epoch = data.train.batch_count(table.batch_size)
    if table.steps is None:
        return table.length * per_epoch
    epochs, rest = divmod(table.steps, steps_per_epoch(table, data))
    return epochs * per_epoch + rest * table.gradient_accumulation_steps


def stage_epochs(recipe: Recipe, data: Data) -> dict[Stage, int]:
    """How many epochs each stage has; of one that counts steps, the last one may end early."""
    tables: dict[Stage, StageTable] = {
        "reference": recipe.reference,
        "train": recipe.train,
        "finetune": recipe.finetune,
    }
    return {
        stage: table.length
        if table.steps is None
        else math.ceil(table.steps / steps_per_epoch(table, data))
        for stage, table in tables.items()
    }


def next_step(
    recipe: Recipe,
    numel: int,
    outcomes: tuple[Outcome, ...],
    *,
    has_reference: bool,
    epochs: Mapping[Stage, int],
) -> Step | None:
    """The step after those done: reference, train, then rounds of prune and fine-tune; then None.

    Args:
        recipe: the recipe.
        numel: count of the selected weights.
        outcomes: of the steps done so far, in order.
        has_reference: whether the reference was given, so that it need not be trained.
        epochs: how many each stage has, from `stage_epochs`.
    """
    done = {outcome.stage for outcome in outcomes}
    rounds = [outcome for outcome in outcomes if outcome.stage == "finetune"]
    target = recipe.prune.target(numel)
    if "reference" not in done and not has_reference:
        return Step("reference", epochs=epochs["reference"])
    if "train" not in done and recipe.train.file is None:
        gradual = target if recipe.prune.gradual else None
        return Step("train", epochs=epochs["train"], nonzeros=gradual)
    if len(rounds) == recipe.prune.rounds:
        return None
    step = Step("finetune", round=len(rounds) + 1, epochs=epochs["finetune"])
    if target is None:
        return _under_budget(step, numel, rounds)
    # each round keeps the same fraction of what the round before it kept
    ratio = (numel / target) ** (step.round / recipe.prune.rounds)
    count = target if step.round == recipe.prune.rounds else round(numel / ratio)
    return Step(step.stage, step.round, step.epochs, nonzeros=count)


def _under_budget(step: Step, numel: int, rounds: list[Outcome]) -> Step | None:
    """Go up by the guided search until a round fails; then halve the way between, in log ratio."""
    ratios = [(math.log(numel / max(o.nonzeros, 1)), o.within) for o in rounds]
    low = max((ratio for ratio, within in ratios if within), default=0.0)
    high = min((ratio for ratio, within in ratios if not within), default=None)
    if low >= math.log(numel):
        return None  # one weight is left
    if high is None:
        return Step(step.stage, step.round, step.epochs, search=(low, math.log(numel)))
    count = round(numel / math.exp((low + high) / 2))
    if any(o.nonzeros == count for o in rounds):
        return None  # success and failure are next to each other: nothing is left to try
    return Step(step.stage, step.round, step.epochs, nonzeros=count)


def kept_at(recipe: Recipe, step: Step, numel: int, epoch: int) -> int | None:
    """Weights that stay from this epoch of a gradual schedule on; None before it begins.

    The cubic schedule of Zhu & Gupta 2017, arXiv 1710.01878, one pruning an epoch.
    """
    schedule = recipe.prune.gradual
    if step.stage != "train" or schedule is None or step.nonzeros is None:
        return None
    progress = epoch / step.epochs
    # the last epoch ends at the asked sparsity, wherever the schedule ends
    fraction = 1.0 if epoch == step.epochs - 1 else schedule(progress)
    return numel - round(fraction * (numel - step.nonzeros)) if fraction > 0 else None
