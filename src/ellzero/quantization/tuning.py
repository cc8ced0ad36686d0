"""The fine-tuning of a quantized network: epochs of Adam, of which the best is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ellzero.data.data import Data
from ellzero.errors import InputError, is_number
from ellzero.modules import device_of, evaluating
from ellzero.progress import shown_progress
from ellzero.record import Evaluation
from ellzero.schedules import learning_rate as rate_at
from ellzero.training.seeds import seed_epoch, settings

Found = TypeVar("Found")


@dataclass(frozen=True)
class Tuning:
    """How long and how fast a quantized network is fine-tuned.

    Args:
        epochs: passes over the training data.
        learning_rate: the peak of a cosine that falls to 0.
        batch_size: examples a step.
        seed: of the order of the examples.

    Raises:
        InputError: a setting out of range.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        for what, value in (("epochs", self.epochs), ("batch_size", self.batch_size)):
            if type(value) is not int or value < 1:
                raise InputError(f"{what} is {value!r}; expected a whole number >= 1")
        rate = self.learning_rate
        if not is_number(rate) or not 0 < rate < float("inf"):
            raise InputError(f"learning_rate is {rate!r}; expected a finite number > 0")


@dataclass(frozen=True)
class Trained:
    """A network with weights that are made of others, which are trained.

    Args:
        network: its own weights and their gradients do not change.
        parameters: what is trained.
        weights: makes of them some of the network's weights, by their names, for autograd.
        what: what they are, in the plural.
    """

    network: nn.Module
    parameters: Sequence[Tensor]
    weights: Callable[[], Mapping[str, Tensor]]
    what: str

    def step(self, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor]) -> None:
        """One step on the parameters alone."""
        made = dict(self.weights())

        def network(*inputs: Tensor, **named: Tensor) -> Any:
            return functional_call(self.network, made, inputs, named)

        gradients = torch.autograd.grad(loss(network), self.parameters, materialize_grads=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


def tune(
    trained: Trained,
    data: Data,
    how: Tuning,
    *,
    best: Evaluation,
    ended: Callable[[], tuple[Evaluation, Found]],
    keep: Callable[[Found], None],
    progress: bool,
) -> Evaluation:
    """Train in evaluation mode, as the network will be shipped, and keep the best epoch.

    Args:
        trained: the network, and what of it is trained.
        data: the train part trains.
        how: the settings.
        best: what was reached before.
        ended: after each epoch, what was reached, and what it was reached by.
        keep: takes that where it is better than all before.
        progress: whether it is shown.

    Returns:
        The best evaluation.
    """
    device = device_of(trained.network)
    optimizer = torch.optim.Adam(trained.parameters)
    count = data.train.batch_count(how.batch_size)
    with (
        settings(None, device),
        evaluating(trained.network),
        shown_progress(shown=progress) as bar,
    ):
        task = bar.add_task(f"fine-tuning {trained.what}", total=how.epochs * count, note="")
        for epoch in range(how.epochs):
            seed_epoch(how.seed, "codebook", 0, epoch)
            batches = data.train.batches(how.batch_size, device, shuffle=True)
            for index, batch in enumerate(batches):
                done = (epoch + index / count) / how.epochs
                rate = rate_at(done, peak=how.learning_rate, warmup=0, decay="cosine")
                optimizer.param_groups[0]["lr"] = rate
                trained.step(
                    optimizer,
                    lambda network, now=batch: data.objective.loss(data.outputs(network, now), now),
                )
                bar.advance(task)
            reached, found = ended()
            bar.update(task, note=f"score {reached.score:.4f}")
            if reached.better_than(best):
                best = reached
                keep(found)
    return best
