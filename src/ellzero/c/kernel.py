"""A kernel: one function of generated C, first as data, then as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ellzero.c.arrays import Array, floats
from ellzero.c.storage import Matrix, Storage, StorageChoice
from ellzero.c.text import comment, dimensions, indented, loop
from ellzero.tensors import Shape

At = Callable[[str], str]
"""C expression of a channel -> C's index of the channel's value that a loop is at."""

Expressions = str | tuple[str, ...]
"""C of a value: one expression, or several in order, each but the first of `v`, which is then what
the one before gave."""


@dataclass(frozen=True)
class After:
    """An operation of single values that a kernel does before it stores them.

    Args:
        name: the node's, for comments.
        weights: by their roles.
        value: (C expression of a value, C expressions of its channel's weights by role) -> C of
            the result.
    """

    name: str
    weights: Mapping[str, Tensor]
    value: Callable[[str, Mapping[str, str]], Expressions]


@dataclass
class Kernel:
    """One function of the generated C, as data.

    Args:
        name: the node's, for comments, and of which the function's is made.
        kind: the operation's, for comments.
        weights: the operation's, by their roles.
        body: writes the function's body.
        inputs: (node whose value is read, its shape).
        shape: one example's result.
        result: the node whose value is stored: the last of those in `after`.
        in_place: whether it may store where it reads.
        state: floats that the body finds as it left them the step before, zeros at first.
        work: floats that the body works in.
        keeps: whether the state stays from call to call; else each call begins at zeros.
        after: operations done on each value before it is stored.
    """

    name: str
    kind: str
    weights: Mapping[str, Tensor]
    body: Callable[[Context], str]
    inputs: list[tuple[str, Shape]]
    shape: Shape
    result: str
    in_place: bool = False
    state: int = 0
    work: int = 0
    keeps: bool = False
    after: list[After] = field(default_factory=list)


class Context:
    """What an operation works with to write its C.

    Args:
        kernel: what is to be written.
        name: the C function's; arrays begin with it.
        choice: which storage a weight is to have.
    """

    def __init__(self, kernel: Kernel, name: str, choice: StorageChoice) -> None:
        self.kernel, self.name = kernel, name
        self.choice: StorageChoice = choice
        self.inputs = [shape for _, shape in kernel.inputs]
        """Shapes of `x` and, where there are more inputs, `x2`, `x3` ..."""
        self.shape = kernel.shape
        """Shape of `y`, the result."""
        self.weights = kernel.weights
        self.arrays: list[Array] = []
        self.stored: dict[str, tuple[Matrix, Storage]] = {}
        """A layer's weights by role, and how they lie; a report says it."""

    def array(self, array: Array) -> str:
        """Define an array with the function; its name."""
        self.arrays.append(array)
        return array.name

    def vector(self, role: str) -> str:
        """A weight of one number a channel as an array; its name."""
        return self._vector(role, self.weights[role], "")

    def finish(self, value: Expressions, target: str, channel: str) -> str:
        """Do what comes after on one value, and store it.

        Args:
            value: C of the value.
            target: where it goes.
            channel: C expression of the output's channel.
        """
        first, *then = _in_order(value)
        for number, after in enumerate(self.kernel.after, start=1):
            weights = {
                role: f"{self._vector(role, weight, f'_{number}')}[{channel}]"
                for role, weight in after.weights.items()
            }
            then += _in_order(after.value("v", weights))
        if not then:
            return f"{target} = {first};"
        return "\n".join([f"float v = {first};", *(f"v = {x};" for x in then), f"{target} = v;"])

    def of_channel(self, channel: str) -> dict[str, str]:
        """C expressions of a channel's own weights, by role."""
        return {role: f"{self.vector(role)}[{channel}]" for role in self.weights}

    def each_value(self, value: Callable[[At], Expressions]) -> str:
        """A loop over the result's channels and their values.

        Args:
            value: C of a value, given how to index an input by a channel; the result's
                channel is `c`.
        """
        channels, *rest = self.shape
        size = math.prod(rest)

        def at(channel: str) -> str:
            return f"[{channel}]" if size == 1 else f"[{channel} * {size} + i]"

        inner = self.finish(value(at), f"y{at('c')}", "c")
        return loop("c", channels, loop("i", size, inner) if size > 1 else inner)

    def each_place(self, value: Callable[[Sequence[str]], str]) -> str:
        """A loop over all axes of the result.

        Args:
            value: C expression of a value, given the C variables that count the axes.
        """
        indices = [f"i{axis}" for axis in range(len(self.shape))]
        body = self.finish(value(indices), "*y++", indices[0])
        for index, size in reversed(list(zip(indices, self.shape, strict=True))):
            body = loop(index, size, body)
        return body

    def _vector(self, role: str, weight: Tensor, suffix: str) -> str:
        """The array of a weight, defined the first time it is asked for."""
        name = f"{self.name}_{role}{suffix}"
        if all(array.name != name for array in self.arrays):
            self.arrays.append(floats(name, weight.cpu().numpy()))
        return name


def _in_order(value: Expressions) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def input_names(count: int) -> list[str]:
    """What a kernel's inputs are called in C.

    Example:
        >>> input_names(3)
        ['x', 'x2', 'x3']
    """
    return ["x", *(f"x{number}" for number in range(2, count + 1))][:count]


def strides(shape: Shape) -> list[int]:
    """How many values lie between two neighbours along each axis.

    Example:
        >>> strides((4, 3, 2))
        [6, 2, 1]
    """
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


@dataclass(frozen=True)
class Function:
    """A kernel as C: its arrays, its body, and what a report says of its weights."""

    name: str
    kernel: Kernel
    body: str
    arrays: list[Array]
    stored: dict[str, tuple[Matrix, Storage]]

    def source(self, definition: Callable[[Array], str] = Array.source) -> str:
        """The arrays and the function.

        Args:
            definition: C of an array.
        """
        arrays = "".join(map(definition, self.arrays))
        # a kernel that works value by value may store where it reads: nothing is restrict there
        restrict = "" if self.kernel.in_place else "restrict "
        kernel = self.kernel
        read = [f"const float *{restrict}{x}" for x in input_names(len(kernel.inputs))]
        stored = ["y", *["state"] * bool(kernel.state), *["work"] * bool(kernel.work)]
        parameters = ", ".join([*read, *(f"float *{restrict}{name}" for name in stored)])
        body = self.body
        if kernel.state and not kernel.keeps:
            body = f"{loop('i', kernel.state, 'state[i] = 0.0f;')}\n{body}"
        return (
            f"/* {self._described()} */\n{arrays}"
            f"static void {self.name}({parameters})\n"
            f"{{\n{indented(body)}\n}}\n"
        )

    def _described(self) -> str:
        kernel = self.kernel
        sizes = f"{dimensions(kernel.inputs[0][1])} -> {dimensions(kernel.shape)}"
        text = f"{comment(kernel.name)} ({kernel.kind}): {sizes}"
        for role, (matrix, storage) in self.stored.items():
            text += (
                f"; {matrix.nonzeros} of {kernel.weights[role].numel()} weights, {storage.layout}, "
                f"{storage.values.kind}"
            )
        if kernel.after:
            text += "; then " + ", ".join(comment(after.name) for after in kernel.after)
        return text


def written(kernel: Kernel, name: str, choice: StorageChoice) -> Function:
    """The C function of a kernel, its weights in the storage that is asked for."""
    context = Context(kernel, name, choice)
    body = kernel.body(context)
    return Function(f"{name}_step", kernel, body, context.arrays, context.stored)
