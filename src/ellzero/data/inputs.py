"""A batch of a network's inputs: a tensor, or where the network takes several a tuple of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...]
"""What a network is called with; dimension 0 of each is the batch."""


def all_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The inputs in order, one or several."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def of_each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """What a function makes of each input.

    Example:
        >>> import torch
        >>> of_each(len, torch.zeros(3, 2)), of_each(len, (torch.zeros(3, 2), torch.zeros(3)))
        (3, (3, 3))
    """
    return tuple(map(function, inputs)) if isinstance(inputs, tuple) else function(inputs)


def of_first(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The inputs, of which a function changes the first; the others stay as they are."""
    if isinstance(inputs, tuple):
        return (function(inputs[0]), *inputs[1:])
    return function(inputs)


def called(network: Callable[..., Any], inputs: Inputs) -> Any:
    """What a network gives for a batch of its inputs."""
    return network(*all_of(inputs))
