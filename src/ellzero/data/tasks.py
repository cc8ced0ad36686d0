"""Tasks: what outputs and targets of a kind mean, with the loss and the score that are right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.data.metrics import Accuracy, Mean, Metric, MicroF1
from ellzero.data.outputs import logits_of
from ellzero.errors import InputError, nearest

IGNORED = -100
"""The label that counts neither in loss nor in score, as torch's cross-entropy has it."""


class Task(ABC):
    """What a network's logits are for; adding one takes a class, and an entry of `TASKS`."""

    name: str

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The mean loss of a batch, by the weights of its examples (N,): 0-d."""

    @abstractmethod
    def metric(self, device: torch.device) -> Metric:
        """What computes the score of a set."""

    def amount(self, targets: Tensor, weights: Tensor | None = None) -> int | Tensor:
        """Over how much the loss of a batch is a mean: what it counts in one over the set."""
        return len(targets) if weights is None else weights.sum()

    def predictions(self, logits: Tensor) -> Tensor:
        """What a metric of another library compares with the targets.

        Probabilities where the logits are of labels, with the classes in dimension 1. For such a
        metric takes logits for probabilities where all of a batch happen to lie between 0 and 1.
        """
        return logits

    def fits(self, logits: Tensor, targets: Tensor) -> bool:
        """Whether the shapes go together."""
        return logits.shape == targets.shape

    @abstractmethod
    def wrong(self, targets: Tensor, classes: int | None) -> str | None:
        """What is wrong about some targets, in words; `classes`: how many there are, if known."""


@dataclass(frozen=True)
class Labels(Task):
    """A label of several classes: of an example, of each token or of each pixel.

    The loss is the cross-entropy of the logits, the score the accuracy: the share of labels at
    which the largest logit is.

    Args:
        name: of the task.
        class_dim: the logits' dimension of the classes: 1, or -1 for the last.
        ignored: a label that does not count; None: all labels do.
    """

    name: str
    class_dim: int = 1
    ignored: int | None = None

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        targets = targets.long()
        if self.class_dim == -1:
            classes, shape = logits.shape[-1], targets.shape
            logits, targets = logits.reshape(-1, classes), targets.flatten()
            weights = None if weights is None else _as_wide(weights, shape).flatten()
        if weights is None and self.ignored is None:
            return nn.functional.cross_entropy(logits, targets)
        index = IGNORED if self.ignored is None else self.ignored
        reduction = "sum" if weights is None else "none"
        losses = nn.functional.cross_entropy(
            logits, targets, ignore_index=index, reduction=reduction
        )
        shares = self.shares(targets, weights)
        assert shares is not None
        if weights is None:  # without a label that counts the loss is 0, and no NaN
            return losses / shares.sum().clamp(min=1)
        return weighted_mean(losses, shares)

    def shares(self, targets: Tensor, weights: Tensor | None) -> Tensor | None:
        """What each target counts; None: all the same."""
        counted = None if self.ignored is None else targets != self.ignored
        if weights is None:
            return counted
        wide = _as_wide(weights, targets.shape)
        return wide if counted is None else wide * counted

    def amount(self, targets: Tensor, weights: Tensor | None = None) -> int | Tensor:
        shares = self.shares(targets, weights)
        return len(targets) if shares is None else shares.sum()

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whether the largest logit of each target is at its label; bool, of the targets' shape."""
        return logits.argmax(self.class_dim) == targets

    def metric(self, device: torch.device) -> Metric:
        return Accuracy(self.right, self.shares, device)

    def fits(self, logits: Tensor, targets: Tensor) -> bool:
        return logits.ndim > 1 and self._targets_shape(logits) == targets.shape

    def _targets_shape(self, logits: Tensor) -> torch.Size:
        shape = list(logits.shape)
        del shape[self.class_dim]
        return torch.Size(shape)

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.softmax(self.class_dim).movedim(self.class_dim, 1)

    def wrong(self, targets: Tensor, classes: int | None) -> str | None:
        if targets.is_floating_point() or targets.is_complex():
            return f"targets are {targets.dtype}; {self.name} expects labels, integers"
        if classes is None or not targets.numel():
            return None
        counted = targets if self.ignored is None else targets[targets != self.ignored]
        low, high = (int(counted.min()), int(counted.max())) if counted.numel() else (0, 0)
        if low < 0 or high >= classes:
            return f"labels run from {low} to {high}; expected 0 to {classes - 1}, one per class"
        return None


@dataclass(frozen=True)
class Regression(Task):
    """Numbers: the mean squared error, and its negative as the score."""

    name: str = "regression"

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        targets = targets if targets.is_floating_point() else targets.to(logits.dtype)
        if weights is None:
            return nn.functional.mse_loss(logits, targets)
        return weighted_mean(_of_each((logits - targets).square()), weights)

    def metric(self, device: torch.device) -> Metric:
        return Mean(
            lambda outputs, b: -self.loss(logits_of(outputs), b.targets, b.weights),
            lambda b: self.amount(b.targets, b.weights),
            device,
        )

    def wrong(self, targets: Tensor, classes: int | None) -> str | None:
        return None


@dataclass(frozen=True)
class MultiLabel(Task):
    """Labels of which each is there or not: targets 0 or 1, (N, L).

    The loss is the binary cross-entropy of the logits, the score micro F1.
    """

    name: str = "multi-label"

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        targets, compared = targets.to(logits.dtype), nn.functional.binary_cross_entropy_with_logits
        if weights is None:
            return compared(logits, targets)
        return weighted_mean(_of_each(compared(logits, targets, reduction="none")), weights)

    def metric(self, device: torch.device) -> Metric:
        return MicroF1(device)

    def predictions(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def fits(self, logits: Tensor, targets: Tensor) -> bool:
        return logits.ndim == 2 and logits.shape == targets.shape

    def wrong(self, targets: Tensor, classes: int | None) -> str | None:
        if bool(((targets == 0) | (targets == 1)).all()):
            return None
        return f"targets hold other numbers than 0 and 1, which {self.name} expects"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Labels("classification"),
        Labels("tokens", class_dim=-1, ignored=IGNORED),
        Labels("segmentation", ignored=IGNORED),
        Regression(),
        MultiLabel(),
    )
}
"""The tasks by their names."""


def task_named(name: str) -> Task:
    """A task by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in TASKS:
        raise InputError(f"task is {name!r}; {nearest(str(name), list(TASKS))}")
    return TASKS[name]


def inferred(targets: Tensor, logits: Tensor | None = None) -> Task | None:
    """The task by the kind of the targets, and where that is not enough by the logits' shape.

    Floating targets are for regression, integers (N,) for classification, integers (N, ...) for
    whichever of segmentation and tokens the logits fit.

    Returns:
        The task; None where it takes the logits to know it.

    Raises:
        InputError: logits that fit both, or none.

    Example:
        >>> inferred(torch.zeros(4, 7, dtype=torch.long), torch.zeros(4, 7, 50)).name
        'tokens'
    """
    if targets.is_floating_point():
        return TASKS["regression"]
    if targets.ndim < 2:
        return TASKS["classification"]
    if logits is None:
        return None
    fitting = [t for t in (TASKS["segmentation"], TASKS["tokens"]) if t.fits(logits, targets)]
    if len(fitting) == 1:
        return fitting[0]
    shapes = f"outputs of {tuple(logits.shape)} and targets of {tuple(targets.shape)}"
    if fitting:
        raise InputError(
            f"{shapes} could have their classes in dimension 1 or in the last one; say "
            "task='segmentation' or task='tokens'"
        )
    if logits.shape == targets.shape:
        raise InputError(
            f"{shapes} could be numbers or labels; say task='multi-label' or another, or for "
            "one-hot rows give the class numbers, targets.argmax(1)"
        )
    raise InputError(mismatch(logits, targets, None))


def mismatch(logits: Tensor, targets: Tensor, task: Task | None) -> str:
    """A sentence for outputs and targets whose shapes do not go together."""
    expected = logits.shape
    if isinstance(task, Labels) or (task is None and logits.ndim > 1):
        first = task is None or task.class_dim == 1
        expected = logits.shape[:1] + logits.shape[2:] if first else logits.shape[:-1]
    return (
        f"outputs of {tuple(logits.shape)} do not go with targets of {targets.dtype} "
        f"{tuple(targets.shape)}; expected targets of {tuple(expected)}, or a loss and a score of "
        f"your own{_remedy(logits, targets)}"
    )


def _remedy(logits: Tensor, targets: Tensor) -> str:
    """What to do about targets that are one operation away from the right ones."""
    if logits.ndim != 2:
        return ""
    if targets.ndim == 1 and targets.is_floating_point():
        if logits.shape[1] == 1:
            return "; give targets.unsqueeze(1)"
        return "; for classes give their numbers, targets.long()"
    if targets.shape[1:] == (1,) and not targets.is_floating_point():
        return "; give targets.squeeze(1)"
    return ""


def of_cross_entropy(loss: Any, targets: Any) -> Labels | None:
    """The task of torch's cross-entropy, a function or a module; None of another loss."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return None  # floating ones are probabilities of the classes
    name = "classification" if targets.ndim < 2 else "segmentation"
    if loss is nn.functional.cross_entropy:
        return Labels(name, ignored=IGNORED)
    if type(loss) is nn.CrossEntropyLoss and loss.reduction == "mean":
        return Labels(name, ignored=loss.ignore_index)
    return None


def _as_wide(weights: Tensor, shape: torch.Size) -> Tensor:
    """A weight of each example (N,) as one of each of its targets (N, ...)."""
    return weights.view(-1, *(1 for _ in shape[1:])).expand(shape)


def _of_each(losses: Tensor) -> Tensor:
    """The mean of each example, (N,)."""
    return losses.reshape(len(losses), -1).mean(1)


def weighted_mean(losses: Tensor, shares: Tensor) -> Tensor:
    """`sum(w l) / sum(w)`; 0 where all weights are."""
    tiny = torch.finfo(losses.dtype).tiny
    return (losses * shares).sum() / shares.sum().clamp(min=tiny)
