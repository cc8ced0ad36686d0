"""Networks on their way through training, for the tests of masks that are held."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import ellzero as ez
from cases import small_network


def data(step: int) -> tuple[Tensor, Tensor]:
    """A batch for `small_network`, another for each step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (6,), generator=generator)


def backward(model: nn.Module, step: int) -> None:
    """The gradient of a batch, in whatever precision the network is."""
    model.zero_grad()
    x, y = data(step)
    outputs = model(x.to(next(model.parameters()).dtype))
    nn.functional.cross_entropy(outputs.to(x.dtype), y).backward()


def started(make: Any, **options: Any) -> tuple[Any, torch.optim.Optimizer]:
    """A network and its optimizer after two steps, so that every weight has momentum."""
    model = small_network(**options)
    optimizer = make(model.parameters())
    for step in range(2):
        backward(model, step)
        optimizer.step()
    return model, optimizer


def revived(model: nn.Module, masks: ez.Masks) -> int:
    """How many pruned weights are not exactly zero; NaN is none either."""
    return sum(int(model.get_parameter(n)[~mask].count_nonzero()) for n, mask in masks.items())


def step_without_gradient(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step in which only momentum and weight decay can move anything."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
