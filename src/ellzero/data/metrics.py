"""Metrics: what a score is computed from, batch by batch, over a whole set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ellzero.data.batch import Batch
from ellzero.data.outputs import find, logits_of
from ellzero.errors import InputError

Right = Callable[[Tensor, Tensor], Tensor]
Shares = Callable[[Tensor, Tensor | None], Tensor | None]


def running_sum(device: torch.device) -> Tensor:
    """A zero to sum up batches on, in double precision where the device has it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.zeros((), dtype=dtype, device=device)


class Metric(Protocol):
    """Sees a set batch by batch; nothing is read from the device before the end."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """A batch, and what the network gives for it."""
        ...

    def compute(self) -> float:
        """The score of all that was seen; NaN where nothing counts."""
        ...


class Mean:
    """The mean over a set of what is a mean over a batch.

    Args:
        function: maps outputs and their batch to a 0-d tensor.
        amount: over how much the mean of a batch is one.
        device: where the tensors are.

    Example:
        >>> mean = Mean(lambda outputs, batch: outputs.mean(), len, torch.device("cpu"))
        >>> for values in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0])):
        ...     mean.update(values, values)
        >>> mean.compute()
        3.0
    """

    def __init__(
        self,
        function: Callable[[Any, Any], Tensor],
        amount: Callable[[Any], int | Tensor],
        device: torch.device,
    ) -> None:
        self._function, self._amount = function, amount
        self._total = running_sum(device)
        self._count: int | Tensor = 0

    def update(self, outputs: Any, batch: Any) -> None:
        amount = self._amount(batch)
        self._total = self._total + summed(self._function(outputs, batch), amount)
        self._count = self._count + amount

    def compute(self) -> float:
        return _mean(self._total, self._count)


class Accuracy:
    """The share of the targets that are right: `sum(w r) / sum(w)` over the set.

    Args:
        right: whether each target is, by logits and targets.
        shares: what each target counts, by targets and weights; None: all the same.
        device: where the tensors are.
    """

    def __init__(self, right: Right, shares: Shares, device: torch.device) -> None:
        self._is_right, self._shares = right, shares
        self._right = running_sum(device)
        self._count: int | Tensor = 0

    def update(self, outputs: Any, batch: Batch) -> None:
        right = self._is_right(logits_of(outputs), batch.targets)
        shares = self._shares(batch.targets, batch.weights)
        if shares is None:
            self._right = self._right + right.sum()
            self._count += right.numel()
        else:
            self._right = self._right + (right * shares).sum(dtype=self._right.dtype)
            self._count = self._count + shares.sum(dtype=self._right.dtype)

    def compute(self) -> float:
        return _mean(self._right, self._count)


class MicroF1:
    """F1 over all labels of all examples: `2 TP / (2 TP + FP + FN)`; 0 without any positive.

    A label is predicted where its logit is above 0, which is a probability of a half.

    Example:
        >>> f1 = MicroF1(torch.device("cpu"))
        >>> logits = torch.tensor([[1.0, 1.0, -1.0]])
        >>> f1.update(logits, Batch(logits, torch.tensor([[1, 0, 1]])))
        >>> f1.compute()
        0.5
    """

    def __init__(self, device: torch.device) -> None:
        self._both, self._either = running_sum(device), running_sum(device)

    def update(self, outputs: Any, batch: Batch) -> None:
        predicted, true = logits_of(outputs) > 0, batch.targets > 0
        both, either = (predicted & true), predicted.int() + true.int()
        if batch.weights is not None:
            shares = batch.weights[:, None]
            both, either = both * shares, either * shares
        self._both = self._both + 2 * both.sum(dtype=self._both.dtype)
        self._either = self._either + either.sum(dtype=self._either.dtype)

    def compute(self) -> float:
        either = float(self._either)
        return float(self._both) / either if either else 0.0


class OfObject:
    """A metric that is an object with `update`, `compute` and `reset`, as torchmetrics has them.

    A copy of it works on the network's device; the given one is left as it is.

    Args:
        metric: the object.
        predictions: makes of logits what the metric compares with the targets.
        device: where the tensors are.
    """

    def __init__(
        self, metric: Any, predictions: Callable[[Tensor], Tensor], device: torch.device
    ) -> None:
        self._metric: Any = copy.deepcopy(metric)
        self._predictions = predictions
        self._metric.reset()
        for part in _metric_parts(self._metric):
            # as torchmetrics has it, which would add up what each process has seen of all
            part.distributed_available_fn = _no_others
        if callable(getattr(self._metric, "to", None)):
            self._metric = self._metric.to(device)

    def update(self, outputs: Any, batch: Batch) -> None:
        logits = outputs if isinstance(outputs, Tensor) else find(outputs, "logits")
        given = self._predictions(logits) if isinstance(logits, Tensor) else outputs
        try:
            self._metric.update(given, batch.targets)
        except (RuntimeError, TypeError, ValueError) as error:
            shown = " and ".join(
                f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                for x in (given, batch.targets)
            )
            raise InputError(
                f"the score {type(self._metric).__name__} cannot take {shown}, predictions and "
                f"targets: {error}"
            ) from error

    def compute(self) -> float:
        value = self._metric.compute()
        if not isinstance(value, int | float) and not (
            isinstance(value, Tensor) and value.numel() == 1
        ):
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"the score {type(self._metric).__name__} computes {shown}; expected one number"
            )
        return float(value)


def _metric_parts(metric: Any) -> list[Any]:
    """The metric and those within it that know of other processes."""
    parts = metric.modules() if isinstance(metric, nn.Module) else ()
    return [part for part in parts if hasattr(part, "distributed_available_fn")]


def _no_others() -> bool:
    """Whether there are other processes to add up with."""
    return False


def is_metric(score: object) -> bool:
    """Whether a score is an object that sees a set batch by batch, and no function."""
    return all(callable(getattr(score, name, None)) for name in ("update", "compute", "reset"))


def summed(mean: Tensor, amount: int | Tensor) -> Tensor:
    """What a batch adds to a sum over the set; nothing where its mean is one over nothing, NaN.

    Example:
        >>> summed(torch.tensor(float("nan")), torch.tensor(0))
        tensor(0.)
    """
    if isinstance(amount, Tensor):
        return torch.where(amount > 0, mean * amount, 0.0)
    return mean * amount


def ratio(part: int | Tensor, whole: int | Tensor) -> float | Tensor:
    """One amount by another; 0 where there is none, without a look at the number."""
    return part / (whole.clamp(min=1e-38) if isinstance(whole, Tensor) else whole)


def _mean(total: Tensor, count: int | Tensor) -> float:
    return float(total) / float(count) if float(count) else float("nan")
