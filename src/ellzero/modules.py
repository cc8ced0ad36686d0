"""Modules: where a network is, what is around it, and the mode it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ellzero.errors import InputError

WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
"""The only child of what `torch.compile` and activation checkpointing wrap around a module."""


def require_network(model: object, what: str = "the network") -> None:
    """Make sure that a value is a network.

    Raises:
        InputError: it is something else.

    Example:
        >>> require_network(nn.Linear)
        Traceback (most recent call last):
        ellzero.errors.InputError: the network is the class Linear; expected an object of it
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InputError(f"{what} is the class {model.__name__}; expected an object of it")
    if not isinstance(model, nn.Module):
        raise InputError(f"{what} is {type(model).__name__}; expected torch.nn.Module")


def device_of(model: nn.Module) -> torch.device:
    """The device a network's parameters are on; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what torch wraps around it: to compile it, to share it out, to recompute.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> unwrapped(nn.DataParallel(model)) is model
        True
    """
    while (child := wrapped_child(model)) is not None:
        within = model._modules[child]
        assert within is not None
        model = within
    return model


def wrapped_child(module: nn.Module) -> str | None:
    """Under which name a wrapper holds what it wraps; None of a module that is no wrapper."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return "module"
    return next((name for name in WRAPPED if name in module._modules), None)


def is_replicated(model: nn.Module) -> bool:
    """Whether DDP keeps a network, or a part of it, equal on all ranks."""
    return any(isinstance(module, DistributedDataParallel) for module in model.modules())


def plain_name(name: str) -> str:
    """A name in a network, such as a key of its state_dict, without what wrappers within add to it.

    Example:
        >>> plain_name("blocks.0._orig_mod.weight")
        'blocks.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def named_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module, under each of its names, without wrappers and what they add to names.

    Example:
        >>> model = nn.Sequential(nn.DataParallel(nn.Linear(3, 2)), nn.ReLU())
        >>> [name for name, module in named_modules(model)]
        ['', '0', '1']
    """
    model = unwrapped(model)
    yield prefix, model
    for name, child in model._modules.items():
        if child is not None:
            yield from named_modules(child, f"{prefix}.{name}" if prefix else name)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether what a network gives for an example in training hangs on the others of its batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


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
