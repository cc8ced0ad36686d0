"""A network's inputs: a tensor, a tuple of tensors, or a dictionary of tensors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ellzero.errors import InputError

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a network is called with; dimension 0 of each tensor is the batch."""


def all_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors in order, one or several."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    return tuple(inputs.values()) if isinstance(inputs, dict) else inputs


def require_alike(expected: Inputs, given: Inputs, part: str) -> None:
    """Make sure that examples have the inputs that the first ones have, in the same order.

    A network may do without one of them, and the first one is the one that is preprocessed.

    Raises:
        InputError: others.

    Example:
        >>> import torch
        >>> x = torch.zeros(3, 2)
        >>> require_alike({"x": x, "mask": x}, {"x": x}, "validation")
        Traceback (most recent call last):
        ellzero.errors.InputError: validation inputs are x; expected x, mask, as the first ones are
    """
    if _form(expected) != _form(given):
        raise InputError(
            f"{part} inputs are {_form(given)}; expected {_form(expected)}, as the first ones are"
        )


def _form(inputs: Inputs) -> str:
    if isinstance(inputs, dict):
        return ", ".join(inputs)
    count = len(all_of(inputs))
    return "one tensor" if count == 1 else f"a tuple of {count}"


def of_each(function: Callable[[Tensor], Any], inputs: Inputs) -> Any:
    """What a function makes of each tensor, put together as they are.

    Example:
        >>> import torch
        >>> of_each(len, torch.zeros(3, 2)), of_each(len, (torch.zeros(3, 2), torch.zeros(3)))
        (3, (3, 3))
        >>> of_each(len, {"tokens": torch.zeros(3, 2)})
        {'tokens': 3}
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(x) for name, x in inputs.items()}
    return tuple(map(function, inputs))


def of_first(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The inputs, of which a function changes the first; the others stay as they are."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        first = next(iter(inputs))
        return {**inputs, first: function(inputs[first])}
    return (function(inputs[0]), *inputs[1:])


def called(network: Callable[..., Any], inputs: Inputs, **more: Tensor) -> Any:
    """What a network gives for a batch of its inputs, and further arguments by name.

    Example:
        >>> import torch
        >>> called(lambda x, scale: x * scale, {"x": torch.ones(2), "scale": torch.tensor(3.0)})
        tensor([3., 3.])
    """
    if isinstance(inputs, dict):
        return network(**inputs, **more)
    return network(*all_of(inputs), **more)
