"""One call of a torch operation in an exported program, as a recognizer sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ellzero.operations.layout import Layout
from ellzero.tensors import Shape

aten = torch.ops.aten

BATCHES = (2, 3)
"""Sizes of the batch for which is computed what no input changes."""


class ComputedWeightError(Exception):
    """A weight that the network computes has no values yet: its call is no operation's."""


@dataclass
class Values:
    """What is known of the values of a program, by what computes them (nodes of torch.fx)."""

    batch: Any = None
    """The batch's size, a SymInt."""
    weights: dict[Any, Tensor] = field(default_factory=dict)
    """Of what stands for a weight, the weight."""
    constants: dict[Any, Tensor] = field(default_factory=dict)
    """Of what is the same for every input, one example: no weight, but a mask, or positions."""
    counted: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)
    """Of what only the batch's size changes, the values for batches of `BATCHES` examples."""
    layouts: dict[Any, Layout] = field(default_factory=dict)
    """Of all that operations can read: batches, weights and constants."""


class Call:
    """One call of a torch operation in an exported program.

    `call["stride"]` is the argument of that name in the operation's schema: a number, None, or a
    `torch.fx.Node`, which stands for a value on its way or for a weight.

    Args:
        fx_node: the call.
        values: what is known of what it reads.
        part: of a call that gives a tuple, the index of the result that is asked for.
    """

    def __init__(self, fx_node: fx.Node, values: Values, part: int = 0) -> None:
        self.fx_node, self.values, self.part = fx_node, values, part
        self.name, self.path = fx_node.name, path_of(fx_node)
        self._arguments = arguments_of(fx_node)

    def __getitem__(self, role: str) -> Any:
        return self._arguments[role]

    @property
    def result(self) -> Any:
        """What it gives, as far as is known when it is traced; of a tuple the part asked for."""
        return result_of(self.fx_node, self.part)

    @property
    def shape(self) -> Shape:
        """Shape of one example of the result; () where it is no plain batch of tensors."""
        return example_shape(self.result)

    def layout(self, role: str) -> Layout | None:
        """Where the batch lies in an argument; None where it is nothing that operations read."""
        argument = self[role]
        return self.values.layouts.get(argument) if isinstance(argument, fx.Node) else None

    def shape_of(self, role: str) -> Shape:
        """Shape of one example of an argument; () where it is no batch of tensors."""
        layout = self.layout(role)
        return layout.shape if layout is not None and layout.has_batch else ()

    def weight(self, role: str) -> Tensor:
        """The values of an argument that is a weight.

        Raises:
            ComputedWeightError: the network computes it; whoever traces then keeps the call as an
                opaque one.
        """
        if self[role] not in self.values.weights:
            raise ComputedWeightError
        return self.values.weights[self[role]]

    def is_weight(self, role: str) -> bool:
        """Whether an argument is a weight as it is, not one that the network computes."""
        return self[role] in self.values.weights

    def constant(self, role: str) -> Tensor | None:
        """One example of an argument that is the same for every input and no weight, or None."""
        return self.values.constants.get(self[role])

    def is_places_of_batch(self, argument: Any) -> bool:
        """Whether an argument is 0, 1, 2 ... along the batch: what picks each example itself."""
        counted = self.values.counted.get(argument, ())
        return bool(counted) and all(
            values.flatten().tolist() == list(range(batch))
            for values, batch in zip(counted, BATCHES, strict=True)
        )

    def viewed(self, role: str) -> Layout | None:
        """The layout of the result where its values are an argument's in the same order."""
        layout, result = self.layout(role), self.result
        if layout is None or not isinstance(result, Tensor):
            return None
        return layout.viewed(tuple(result.shape), self.values.batch)


def path_of(fx_node: fx.Node) -> str:
    """The module that an operation belongs to, or else the operation's own name."""
    stack = list((fx_node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path if path and not path.startswith("_empty") else fx_node.name


def result_of(fx_node: fx.Node, part: int = 0) -> Any:
    """What a call gives, as far as is known when it is traced; of a tuple a part."""
    value = fx_node.meta.get("val")
    return value[part] if isinstance(value, tuple | list) and part < len(value) else value


def is_truth(source: Any) -> bool:
    """Whether an argument is true or false at each place."""
    value = result_of(source) if isinstance(source, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.bool


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
