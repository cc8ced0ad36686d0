"""The loop: the epochs of one step, yielding metrics. No files, no display."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ellzero import processes
from ellzero.data.batch import Batch
from ellzero.data.data import Data
from ellzero.data.inputs import all_of, of_each
from ellzero.data.metrics import ratio, running_sum, summed
from ellzero.data.mixup import mixed
from ellzero.data.outputs import in_float32
from ellzero.data.share import Share
from ellzero.modules import device_of, has_batch_norm, without_dropout
from ellzero.pruning import Masks, kept_count, largest, minimums, ranked
from ellzero.recipe import Recipe
from ellzero.record import EpochMetrics, Evaluation
from ellzero.schedules import learning_rate
from ellzero.training.evaluation import evaluate
from ellzero.training.parallel import accumulating
from ellzero.training.plan import Step, kept_at, steps_per_epoch
from ellzero.training.seeds import seed_epoch
from ellzero.training.state import State


def epochs(
    state: State, recipe: Recipe, data: Data, *, tick: Callable[[], None]
) -> Iterator[tuple[EpochMetrics, Evaluation]]:
    """Train the state's step from its epoch on; after each epoch its metrics and validation.

    A fine-tuning yields an epoch 0 first: the network as the pruning left it.

    Args:
        state: changed in place; between two epochs it is complete, so that it can be saved.
        recipe: the recipe.
        data: the data.
        tick: called after every batch.
    """
    step = state.step
    assert step is not None
    if state.regularizer is not None:
        span = max(1.0, _span(step, recipe, data))
        state.regularizer.progress = min(1.0, state.epoch / span)
    if step.stage == "finetune" and state.epoch == 0:
        yield _metrics(state, data, None, 0.0, time.perf_counter())
    while state.epoch < step.epochs:
        began = time.perf_counter()
        seed_epoch(recipe.seed, step.stage, step.round, state.epoch)
        if state.regularizer is not None:
            state.regularizer.renew_noise()
        kept = kept_at(recipe, step, state.weights.numel, state.epoch)
        if kept is not None:
            with state.averaged():
                state.masks = masks_for(state, recipe, kept)
            if state.average is not None:
                state.masks.apply()
                state.average.prune(state.masks)
        loss, rate = _train_epoch(state, recipe, data, tick)
        state.epoch += 1
        yield _metrics(state, data, loss, rate, began)


def masks_for(state: State, recipe: Recipe, kept: int) -> Masks:
    """Masks that keep this many weights, by magnitude over the recipe's scope, and apply them."""
    least = minimums(state.weights.values(), recipe.prune.keep_per_layer)
    if recipe.prune.scope == "layer":
        # at the end exactly the sparsity asked for, whatever its rounding over all layers was
        numel, asked = state.weights.numel, recipe.prune.sparsity
        if asked is not None and kept == kept_count(numel, asked):
            sparsity = asked
        else:
            sparsity = 1 - kept / numel
        counts = [kept_count(w.numel(), sparsity) for w in state.weights.values()]
        counts = [max(pair) for pair in zip(counts, least, strict=True)]
        tensors = ranked(state.weights, *counts)
        chosen = [largest([w], count)[0] for w, count in zip(tensors, counts, strict=True)]
    else:
        chosen = largest(ranked(state.weights, kept), kept, least)
    masks = Masks(state.weights, dict(zip(state.weights, chosen, strict=True)))
    masks.apply()
    return masks


def _train_epoch(
    state: State, recipe: Recipe, data: Data, tick: Callable[[], None]
) -> tuple[float, float]:
    """One pass over the training data; the mean loss without penalty, the last learning rate."""
    step, model, optimizer = state.step, state.model, state.optimizer
    regularizer = state.regularizer
    assert step is not None
    assert optimizer is not None
    table = step.table(recipe)
    device = device_of(model)
    per_epoch, span = steps_per_epoch(table, data), _span(step, recipe, data)
    total = running_sum(device)
    count, rate = 0, 0.0
    model.train()
    drops = step.stage != "finetune" or recipe.finetune.dropout
    with (
        nullcontext() if drops else without_dropout(model),
        state.masks.hold(optimizer) if state.masks is not None else nullcontext(),
    ):
        # batch normalization cannot be trained on a lone example
        share = Share.here(least=2 if has_batch_norm(model) else 1)
        batches = data.train.batches(table.batch_size, device, shuffle=True, share=share)
        groups = _groups(batches, table.gradient_accumulation_steps)
        left = None if table.steps is None else table.steps - state.epoch * per_epoch
        for index, group in enumerate(islice(groups, left)):
            progress = (state.epoch + index / per_epoch) / span
            rate = learning_rate(
                progress,
                peak=table.learning_rate * state.rate_factor,
                warmup=table.warmup,
                decay=table.decay,
                floor=table.floor,
            )
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = rate
            if regularizer is not None:
                regularizer.progress = progress
            losses, amount = _step(state, recipe, data, group)
            total, count = total + losses, count + amount
            for _ in group:
                tick()
    return float(processes.total(total)) / float(_of_all(count, device)), rate


def _span(step: Step, recipe: Recipe, data: Data) -> float:
    """How long the step is in epochs, by which progress is measured."""
    table = step.table(recipe)
    return step.epochs if table.steps is None else table.steps / steps_per_epoch(table, data)


def _step(
    state: State, recipe: Recipe, data: Data, group: list[Batch]
) -> tuple[Tensor, int | Tensor]:
    """A step of the optimizer on all examples of some batches; the sum of their losses, the amount.

    A batch's mean loss counts by its amount: its examples, labels that count, or weights. Both are
    of this process; the gradient is that of the mean over the examples of all.
    """
    optimizer, regularizer = state.optimizer, state.regularizer
    assert state.step is not None
    assert optimizer is not None
    table = state.step.table(recipe)
    amounts = [data.objective.amount(batch) if batch.counts else 0 for batch in group]
    count = sum(amounts[1:], amounts[0])
    ranks = processes.world_size()
    whole = count if ranks == 1 else _of_all(count, device_of(state.model))
    losses: list[Tensor] = []
    optimizer.zero_grad(set_to_none=True)
    with nullcontext() if regularizer is None else regularizer.before_forward():
        for number, (batch, amount) in enumerate(zip(group, amounts, strict=True)):
            assert state.forward is not None
            with accumulating(state.forward, is_last=number == len(group) - 1):
                loss = _loss(state, recipe, data, batch)
                losses.append(summed(loss.detach(), amount))
                objective = loss
                if len(group) * ranks > 1:
                    # so that the gradients, which are averaged over the processes, add up to that
                    # of the mean over all examples
                    objective = loss * (ratio(amount, whole) * ranks)
                if regularizer is not None and number == 0:
                    objective = objective + regularizer.loss()
                objective.backward()
    if regularizer is not None:
        regularizer.add_gradient()
    if table.clip_grad_norm:
        nn.utils.clip_grad_norm_(list(state.model.parameters()), table.clip_grad_norm)
    if table.clip_grad_value:
        nn.utils.clip_grad_value_(list(state.model.parameters()), table.clip_grad_value)
    optimizer.step()
    if regularizer is not None:
        regularizer.step(optimizer)
    if state.average is not None:
        state.average.update()
    return sum(losses[1:], losses[0]), count


def _of_all(amount: int | Tensor, device: torch.device) -> Tensor:
    """The sum of an amount over all processes."""
    return processes.total(torch.as_tensor(amount, dtype=running_sum(device).dtype, device=device))


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches by the optimizer's steps that they make together; the last step may have fewer."""
    left = iter(batches)
    while group := list(islice(left, size)):
        yield group


def _loss(state: State, recipe: Recipe, data: Data, batch: Batch) -> Tensor:
    """The mean loss of a batch of training data, without penalty."""
    assert state.step is not None
    assert state.forward is not None
    alpha, other, share = state.step.table(recipe).mixup, None, None
    if alpha:
        batch, other, share = mixed(batch, alpha)
    if recipe.channels_last:
        batch = replace(batch, inputs=of_each(_channels_last, batch.inputs))
    outputs = _outputs(state.forward, recipe, data, batch)
    loss = data.objective.loss(outputs, batch)
    if other is not None and share is not None:
        loss = share * loss + (1 - share) * data.objective.loss(outputs, other)
    if state.teacher is None:
        return loss
    with torch.no_grad():
        taught = _outputs(state.teacher.forward, recipe, data, batch)
    return state.teacher.distilled(loss, outputs, taught, data, batch)


def _outputs(forward: Callable[..., Any], recipe: Recipe, data: Data, batch: Batch) -> Any:
    if recipe.precision == "float32":
        return data.outputs(forward, batch)
    with torch.autocast(all_of(batch.inputs)[0].device.type, torch.bfloat16):
        outputs = data.outputs(forward, batch)
    return in_float32(outputs)  # the loss itself keeps full precision


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _metrics(
    state: State, data: Data, train_loss: float | None, rate: float, began: float
) -> tuple[EpochMetrics, Evaluation]:
    assert state.step is not None
    regularizer = state.regularizer
    with state.averaged():
        with nullcontext() if regularizer is None else regularizer.finalized():
            validation = evaluate(state.model, data, "validation")
            nonzeros = state.nonzeros
        penalty = 0.0 if regularizer is None else float(regularizer.value())
    metrics = EpochMetrics(
        stage=state.step.stage,
        round=state.step.round,
        epoch=state.epoch,
        train_loss=train_loss,
        penalty=penalty,
        validation_loss=validation.loss,
        validation_score=validation.score,
        nonzeros=nonzeros,
        learning_rate=rate,
        seconds=round(max(0.0, time.perf_counter() - began), 3),
    )
    if processes.world_size() > 1:  # what is decided by them is decided alike everywhere
        metrics = EpochMetrics(**processes.agreed(metrics.to_table()))
        validation = Evaluation(metrics.validation_score, metrics.validation_loss)
    return metrics, validation
