"""One call of a torch operation in an exported program, as a recognizer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ellzero.tensors import Shape

aten = torch.ops.aten


class ComputedWeightError(Exception):
    """A weight that the network computes has no values yet: its call is no operation's."""


class Call:
    """One call of a torch operation in an exported program.

    `call["stride"]` is the argument of that name in the operation's schema: a number, None, or a
    `torch.fx.Node`, which stands for a value on its way or for a weight.

    Args:
        fx_node: the call.
        weights: the values of what stands for a weight.
    """

    def __init__(self, fx_node: fx.Node, weights: Mapping[Any, Tensor]) -> None:
        self.fx_node, self._weights = fx_node, weights
        self.name, self.path = fx_node.name, path_of(fx_node)
        self._arguments = arguments_of(fx_node)

    def __getitem__(self, role: str) -> Any:
        return self._arguments[role]

    @property
    def shape(self) -> Shape:
        """Shape of one example of the result; of a tuple, of its first tensor."""
        return example_shape(first_result(self.fx_node))

    def shape_of(self, role: str) -> Shape:
        """Shape of one example of an argument; () where it is no batch of tensors."""
        argument = self[role]
        return example_shape(first_result(argument)) if isinstance(argument, fx.Node) else ()

    def weight(self, role: str) -> Tensor:
        """The values of an argument that is a weight.

        Raises:
            ComputedWeightError: the network computes it; whoever traces then keeps the call as an
                opaque one.
        """
        if self[role] not in self._weights:
            raise ComputedWeightError
        return self._weights[self[role]]


def path_of(fx_node: fx.Node) -> str:
    """The module that an operation belongs to, or else the operation's own name."""
    stack = list((fx_node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path if path and not path.startswith("_empty") else fx_node.name


def first_result(fx_node: fx.Node) -> Any:
    """What a call gives, as far as is known when it is traced; of a tuple its first part."""
    value = fx_node.meta.get("val")
    return value[0] if isinstance(value, tuple | list) and value else value


def is_batch(value: Any) -> bool:
    """Whether a traced value is a tensor whose dimension 0 is the batch."""
    return isinstance(value, Tensor) and value.ndim > 0 and not isinstance(value.shape[0], int)


def example_shape(value: Any) -> Shape:
    """Shape of one example of a traced tensor, nothing for what is none or has no batch."""
    if not is_batch(value):
        return ()
    shape = value.shape[1:]
    return tuple(shape) if all(isinstance(n, int) for n in shape) else ()


def arguments_of(fx_node: Any) -> dict[str, Any]:
    """A call's arguments by their names in the operation's schema, defaults filled in."""
    arguments = {}
    for index, argument in enumerate(fx_node.target._schema.arguments):
        given = fx_node.args[index] if index < len(fx_node.args) else argument.default_value
        arguments[argument.name] = fx_node.kwargs.get(argument.name, given)
    return arguments
