"""Distillation: a network learns from the outputs of the reference beside the targets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.data.batch import Batch
from ellzero.data.data import Data
from ellzero.data.outputs import logits_of
from ellzero.data.tasks import TASKS, Labels, weighted_mean
from ellzero.errors import InputError
from ellzero.recipe_stages import Distillation
from ellzero.training.parallel import restore


class Teacher:
    """The reference as a step distills from it: a copy in evaluation mode, without gradients.

    Args:
        model: a network of the same architecture.
        tensors: the reference's state_dict, on rank 0.
        settings: how much its outputs count, and how soft they are.
        compile: whether it is called compiled.

    Source:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015,
        arXiv 1503.02531.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Mapping[str, Tensor],
        settings: Distillation,
        *,
        compile: bool,
    ) -> None:
        network = copy.deepcopy(model).eval().requires_grad_(False)
        restore(network, tensors)
        self.forward: Callable[..., Any] = torch.compile(network) if compile else network
        """The network, as it is called."""
        self._settings = settings

    def distilled(
        self, loss: Tensor, student: Any, teacher: Any, data: Data, batch: Batch
    ) -> Tensor:
        """`(1 - weight) * loss + weight * distance`, of a batch.

        Args:
            loss: by the targets, 0-d.
            student: outputs of the network that is trained.
            teacher: outputs of this one for the same inputs.
            data: what says whether the outputs are logits.
            batch: what says which of them count, and how much.
        """
        weight, task = self._settings.weight, data.task
        student, teacher = logits_of(student), logits_of(teacher)
        if isinstance(task, Labels):
            temperature = self._settings.temperature
            each = soft_divergence(student, teacher, temperature, task.class_dim)
            shares = task.shares(batch.targets, batch.weights)
            distance = each.mean() if shares is None else weighted_mean(each, shares)
        else:
            distance = TASKS["regression"].loss(student, teacher, batch.weights)
        return (1 - weight) * loss + weight * distance


def soft_divergence(
    student: Tensor, teacher: Tensor, temperature: float, class_dim: int = 1
) -> Tensor:
    """`T^2 KL(p || q)` of the softened classes `p = softmax(teacher / T)`, `q` of the student.

    The factor keeps its gradient as large as that of the loss, whatever the temperature.

    Args:
        student: logits (N, C, ...).
        teacher: logits of the same shape.
        temperature: T, above 0; the higher, the more the small probabilities count.
        class_dim: the dimension of the classes.

    Returns:
        The divergence of each target, (N, ...).

    Example:
        >>> teacher, student = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2)
        >>> soft_divergence(student, teacher, temperature=1.0)  # log 2 - entropy
        tensor([0.3278])
    """
    q = nn.functional.log_softmax(student / temperature, class_dim)
    p = nn.functional.log_softmax(teacher / temperature, class_dim)
    divergence = nn.functional.kl_div(q, p, reduction="none", log_target=True)
    return temperature**2 * divergence.sum(class_dim)


def require_distillable(data: Data) -> None:
    """Make sure that it is known what the network's outputs are.

    Raises:
        InputError: the loss is the user's own, and no task says what the outputs are.
    """
    if data.task is None:
        raise InputError(
            "distillation compares outputs as the losses of the tasks take them, and the loss is "
            "one of your own; give the data a task=..., or leave distillation out"
        )
