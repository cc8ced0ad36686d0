"""Modules: where a network is, and the mode it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """The device a network's parameters are on; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """No dropout inside the block, of the layers that are dropout and of those that have it.

    Afterwards recurrent layers and attention have theirs again; dropout layers stay in evaluation
    mode, until the network is put into training mode.
    """
    having = [m for m in model.modules() if isinstance(m, nn.RNNBase | nn.MultiheadAttention)]
    # not evaluation mode: cuDNN trains recurrent layers in training mode alone
    rates = [module.dropout for module in having]
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    for module in having:
        module.dropout = 0.0
    try:
        yield
    finally:
        for module, rate in zip(having, rates, strict=True):
            module.dropout = rate
