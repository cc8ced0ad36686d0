"""Evaluation: loss and score of a network on one part of a data set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ellzero import processes
from ellzero.data.data import Data, require_data
from ellzero.data.metrics import running_sum, summed
from ellzero.data.part import Part
from ellzero.errors import EllzeroError, InputError
from ellzero.modules import device_of, evaluating, require_network
from ellzero.record import Evaluation
from ellzero.tensors import require_held

BATCH = 1000


def evaluate(model: nn.Module, data: Data, part: str = "validation") -> Evaluation:
    """Score and mean loss of a network on the `train`, `validation` or `test` part of the data.

    In evaluation mode and in the weights' own precision, on the device the network is on. The test
    part is for the end, when nothing is chosen any more; so it is read on request only.

    Raises:
        InputError: the data has no such part, or the network cannot take them; weights that have no
            values (the meta device).

    Example:
        >>> import torch, ellzero as ez
        >>> x = torch.eye(3)
        >>> data = ez.Data((x, torch.arange(3)), (x, torch.arange(3)))
        >>> ez.evaluate(torch.nn.Identity(), data).score
        1.0
    """
    require_network(model)
    require_data(data)
    try:
        return _evaluate(model, data, part, None)
    except EllzeroError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError):
        data.check_fit(model)  # which says what does not fit, if that is it
        raise


def validated(model: nn.Module, data: Data) -> Evaluation:
    """Score and loss on the validation part, those of rank 0 on all ranks, which all call this.

    Each of them reads the whole part: scores need not be sums over parts of it.
    """
    return Evaluation(*processes.agreed(evaluate(model, data, "validation")))


def evaluate_each(model: nn.Module, data: Data, part: str) -> tuple[Evaluation, Tensor | None]:
    """The same, and whether each example got its own class: bool, in the data's order, on the CPU.

    So that two networks can be compared example by example. Where an example has several labels
    (segmentation), one entry for each; None where the score is no accuracy.
    """
    right: list[Tensor] | None = [] if data.scores_accuracy else None
    evaluation = _evaluate(model, data, part, right)
    return evaluation, None if right is None else torch.cat(right).cpu()


@torch.no_grad()
def _evaluate(model: nn.Module, data: Data, part: str, right: list[Tensor] | None) -> Evaluation:
    examples: Part | None = getattr(data, part) if part in ("train", "validation", "test") else None
    if examples is None:
        known = ", ".join(p.name for p in data.parts)
        raise InputError(f"the data has no part {part!r}; it has {known}")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            require_held(name, parameter)
    device = device_of(model)
    objective, loss, metric = data.objective, running_sum(device), None
    count: int | Tensor = 0
    with evaluating(model):
        for batch in examples.batches(BATCH, device):
            outputs = data.outputs(model, batch)
            mean, amount = objective.loss(outputs, batch), objective.amount(batch)
            loss, count = loss + summed(mean, amount), count + amount
            metric = metric or objective.metric(device)  # the first outputs may tell which it is
            if metric is not None:
                metric.update(outputs, batch)
            if right is not None:
                right.append(objective.right(outputs, batch))
    if not float(count):
        raise InputError(
            f"no example of the {part} data counts: all of their weights are 0, or all of their "
            "labels are ignored"
        )
    total = float(loss) / float(count)
    return Evaluation(-total if metric is None else metric.compute(), total)
