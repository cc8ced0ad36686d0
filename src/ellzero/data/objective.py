"""The objective: the loss that a network is trained by, and the score that it is judged by."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from ellzero.data.batch import Batch
from ellzero.data.metrics import Mean, Metric, OfObject, is_metric
from ellzero.data.outputs import logits_of, loss_of
from ellzero.data.tasks import Labels, Task, inferred, mismatch, of_cross_entropy, task_named
from ellzero.errors import InputError

LossFunction = Callable[..., Tensor]
"""Maps outputs and targets of a batch, and what else it names, to a 0-d tensor."""

NO_SCORE = (
    "beside a loss of your own there is no score by default, for nothing says what the outputs "
    "mean: give score=..., a task=..., or score='loss' (the loss times -1)"
)


class Objective:
    """The loss and the score of a data set.

    Args:
        task: name of the task; None: it is known by the targets, or by the first outputs.
        loss: a function of the user's, or "model" for a network that computes it; None: the task's.
        score: a function, an object with `update`, `compute` and `reset`, or "loss" for the loss
            times -1; None: the task's.
        targets: an example's.
        has_weights: whether examples have weights.

    Raises:
        InputError: an unknown task; targets that are not of the task; a loss without a score; a
            loss that does not know of the weights, or sums over a batch; a class of losses.
    """

    def __init__(
        self,
        task: str | None,
        loss: LossFunction | Literal["model"] | None,
        score: Any,
        targets: Any,
        *,
        has_weights: bool,
    ) -> None:
        self.is_models = isinstance(loss, str)
        if self.is_models and loss != "model":
            raise InputError(f"loss is {loss!r}; expected a function, or 'model'")
        if isinstance(score, str) and score != "loss":
            raise InputError(f"score is {score!r}; expected a function, a metric, or 'loss'")
        if getattr(score, "higher_is_better", None) is False:
            raise InputError(
                f"the score {type(score).__name__} is the better the lower it is; give one that is "
                "the better the higher it is"
            )
        if isinstance(score, _Loss) or (callable(score) and score is loss):
            raise InputError(
                "the score is a loss, which is the better the lower it is; give score='loss', "
                "which is the loss times -1"
            )
        for role, given in (("loss", loss), ("score", score)):
            if isinstance(given, type):
                raise InputError(f"the {role} is the class {given.__name__}; give an object of it")
        if getattr(loss, "reduction", "mean") == "sum":  # epochs would count it by their examples
            raise InputError(
                f"the loss {type(loss).__name__} sums over a batch; give it reduction='mean'"
            )
        self.is_own = loss is not None
        self._loss: Any = loss
        self._loss_takes = frozenset() if isinstance(loss, str) else _further(loss)
        if has_weights and self.is_own and "weights" not in self._loss_takes:
            named = "" if self.is_models else "give it a third or fourth parameter weights, or "
            raise InputError(
                f"the examples have weights, which the loss does not know: {named}leave them out"
            )
        self._score: Any = score
        self._score_takes = _further(score)
        self.is_told = task is not None
        self.task = None if task is None else task_named(task)
        """What the outputs mean; None: not known, or not known yet."""
        self._cross_entropy = of_cross_entropy(loss, targets)
        if not isinstance(targets, Tensor):
            if loss is None or score is None or task is not None:
                raise InputError(
                    "the targets of an example are several tensors, for which there is no task; "
                    "give a loss and a score of your own"
                )
        elif self.task is None and not self.is_own:
            self.task = inferred(targets)
        elif self._cross_entropy is not None and self.task is None:
            self.task = self._cross_entropy
        if self.is_own and score is None and self.task is None:
            raise InputError(NO_SCORE)
        self._may_be_labels = isinstance(targets, Tensor) and not targets.is_floating_point()

    @property
    def is_inferred_regression(self) -> bool:
        """Whether floating targets are taken for regression, without being told so."""
        return not self.is_told and not self.is_own and not self._may_be_labels

    @property
    def is_of_labels(self) -> bool:
        """Whether the outputs are the logits of classes, and the targets their labels."""
        unknown = self.task is None and not self.is_own and self._may_be_labels
        return unknown or isinstance(self.task, Labels)

    @property
    def scores_accuracy(self) -> bool:
        """Whether the score is the share of right labels."""
        return self._score is None and self.is_of_labels

    @property
    def scores_squares(self) -> bool:
        """Whether the score is the mean squared error times -1."""
        return self._score is None and self.task is not None and self.task.name == "regression"

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """The mean loss of a batch, 0-d."""
        if not self.is_own:
            logits = logits_of(outputs)
            return self.known(logits, batch.targets).loss(logits, batch.targets, batch.weights)
        if self.is_models:
            return loss_of(outputs)
        loss = self._loss(outputs, batch.targets, **_named(self._loss_takes, batch))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError(f"the loss of a batch is {_kind(loss)}; expected a 0-d tensor")
        return loss

    def amount(self, batch: Batch) -> int | Tensor:
        """Over how much a batch's loss is a mean: examples, labels that count, or their weights.

        How a loss of the user's own, torch's cross-entropy apart, makes a mean is not known: it
        counts by its examples, or their weights.
        """
        if not self.is_own:
            assert self.task is not None  # known by the outputs that the loss has seen
            return self.task.amount(batch.targets, batch.weights)
        if batch.weights is not None:
            return batch.weights.sum()
        known = self._cross_entropy
        if known is None:
            return batch.length
        if getattr(self._loss, "weight", None) is not None:
            counted = batch.targets != known.ignored
            return (self._loss.weight[batch.targets * counted] * counted).sum()
        return known.amount(batch.targets)

    def metric(self, device: torch.device) -> Metric | None:
        """What computes the score of a set; None: it is the loss times -1."""
        if self._score is None:
            assert self.task is not None
            return None if self.scores_squares and not self.is_own else self.task.metric(device)
        if isinstance(self._score, str):
            return None
        if is_metric(self._score):
            predictions = self.task.predictions if self.task is not None else lambda x: x
            return OfObject(self._score, predictions, device)
        takes = self._score_takes

        def amount(batch: Batch) -> int | Tensor:
            weighted = "weights" in takes and batch.weights is not None
            return batch.weights.sum() if weighted and batch.weights is not None else batch.length

        def score(outputs: Any, batch: Batch) -> Any:
            score = self._score(outputs, batch.targets, **_named(takes, batch))
            if isinstance(score, Real) or (isinstance(score, Tensor) and score.numel() == 1):
                return score
            raise InputError(f"the score of a batch is {_kind(score)}; expected one number")

        return Mean(score, amount, device)

    def right(self, outputs: Any, batch: Batch) -> Tensor:
        """Whether each label that counts is right, where the score is the accuracy."""
        assert isinstance(self.task, Labels)
        right = self.task.right(logits_of(outputs), batch.targets).flatten()
        shares = self.task.shares(batch.targets, None)
        return right if shares is None else right[shares.flatten()]

    def known(self, logits: Tensor, targets: Tensor) -> Task:
        """The task, after a look at a network's logits if it takes that."""
        if self.task is None:
            self.task = inferred(targets, logits)
            assert self.task is not None
        return self.task

    def check(self, outputs: Any, batch: Batch) -> None:
        """Make sure that a network's outputs are what the loss and the score take them for.

        Raises:
            InputError: they are not.
        """
        if self.is_own and (self.task is None or self._score is not None):
            return
        logits = logits_of(outputs)
        task = self.known(logits, batch.targets)
        # the losses themselves would broadcast (N, 1) against (N,), every output with every target
        if not task.fits(logits, batch.targets):
            raise InputError(mismatch(logits, batch.targets, task))
        if self.is_own and isinstance(task, Labels) and logits.shape[task.class_dim] < 2:
            raise InputError(
                "the accuracy needs an output per class; give a score of your own beside your loss"
            )
        if self.is_models:
            self._compare(loss_of(outputs), task.loss(logits, batch.targets))

    def _compare(self, given: Tensor, expected: Tensor) -> None:
        # such as a network that shifts its targets to predict the next token
        close = torch.allclose(given.float(), expected.float(), rtol=1e-2, atol=1e-4)
        if torch.isfinite(given) and not close:  # an example may have no label that counts
            assert self.task is not None
            raise InputError(
                f"the network's own loss of an example is {float(given):.4g}, that of the task "
                f"{self.task.name} {float(expected):.4g}: it compares the targets in another way, "
                "so the task's score would be wrong; give a score of your own, or score='loss'"
            )


def _further(function: object) -> frozenset[str]:
    """Which of `inputs` and `weights` a function names after its first two parameters."""
    called = function.forward if isinstance(function, nn.Module) else function
    if not callable(called):
        return frozenset()
    try:
        names = list(inspect.signature(called).parameters)[2:]
    except ValueError:  # of C
        return frozenset()
    return frozenset(names) & {"inputs", "weights"}


def _named(takes: frozenset[str], batch: Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in takes}


def _kind(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
