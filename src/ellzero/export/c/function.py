"""A function of generated C: its arrays, its body, and what is done on each value it stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import indent
from typing import Literal

from torch import Tensor

from ellzero.export.c.arrays import Array, c_float, floats
from ellzero.export.c.step import Plan, Step
from ellzero.export.c.storage import Matrix, Storage
from ellzero.graph import Node, ops

Aim = Literal["size", "speed", "dense"]


@dataclass
class Function:
    """One step as C: its arrays, its body, and what a report says of it."""

    name: str
    step: Step
    body: str
    arrays: list[Array] = field(default_factory=list)
    storage: Storage | None = None
    matrix: Matrix | None = None

    @property
    def arguments(self) -> list[str]:
        """Names of the inputs."""
        return ["x", "x2"][: len(self.step.inputs)]

    def source(self) -> str:
        """The arrays and the function."""
        arrays = "".join(array.source() for array in self.arrays)
        # a step that works value by value may store where it reads, so nothing is restrict there
        restrict = "" if self.step.in_place else "restrict "
        inputs = ", ".join(f"const float *{restrict}{x}" for x in self.arguments)
        return (
            f"/* {_described(self)} */\n{arrays}"
            f"static void {self.name}({inputs}, float *{restrict}y)\n"
            f"{{\n{indented(self.body)}\n}}\n"
        )


def _described(function: Function) -> str:
    step, matrix, storage = function.step, function.matrix, function.storage
    sizes = f"{_size(step.inputs[0][1])} -> {_size(step.shape)}"
    text = f"{comment(step.node.name)} ({step.node.op.kind}): {sizes}"
    if matrix is not None and storage is not None:
        text += (
            f"; {matrix.nonzeros} of {matrix.dense.size} weights, {storage.layout}, "
            f"{storage.values.kind}"
        )
    if step.after:
        text += "; then " + ", ".join(comment(node.name) for node in step.after)
    return text


def comment(text: str) -> str:
    """A name inside a comment: printable ASCII that cannot end it."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *")


def _size(shape: ops.Shape) -> str:
    return " x ".join(map(str, shape))


class Context:
    """What an emitter works with."""

    def __init__(self, step: Step, plan: Plan, name: str, aim: Aim) -> None:
        self.step, self.plan, self.name = step, plan, name
        self.aim: Aim = aim
        self.function = Function(f"{name}_step", step, "")

    def weight(self, node: Node, role: str) -> Tensor | None:
        """A weight by its role, if the node has it."""
        return self.plan.weights[node.weights[role]] if role in node.weights else None

    def array(self, array: Array) -> str:
        """Define an array with the function; its name."""
        self.function.arrays.append(array)
        return array.name

    def vector(self, node: Node, role: str, suffix: str = "") -> str:
        """A weight per channel as an array; its name."""
        tensor = self.weight(node, role)
        assert tensor is not None
        return self.array(floats(f"{self.name}_{role}{suffix}", tensor.cpu().numpy()))

    def finish(self, value: str, target: str, channel: str) -> str:
        """Do what comes after on one value, and store it.

        Args:
            value: C expression of the value.
            target: where it goes.
            channel: C expression of the output's channel.
        """
        if not self.step.after:
            return f"{target} = {value};"
        lines = [f"float v = {value};"]
        for number, node in enumerate(self.step.after):
            lines.append(f"v = {self.elementwise(node, 'v', channel, number + 1)};")
        lines.append(f"{target} = v;")
        return "\n".join(lines)

    def elementwise(self, node: Node, v: str, channel: str, number: int) -> str:
        """C expression of an elementwise operation on `v`."""
        suffix = f"_{number}" if number else ""
        weights = {role: f"{self.once(node, role, suffix)}[{channel}]" for role in node.weights}
        return EXPRESSIONS[type(node.op)](node.op, v, weights)

    def once(self, node: Node, role: str, suffix: str) -> str:
        """The array of a vector, defined the first time it is asked for."""
        name = f"{self.name}_{role}{suffix}"
        known = any(array.name == name for array in self.function.arrays)
        return name if known else self.vector(node, role, suffix)

    def done(self, body: str) -> Function:
        """The function with its body."""
        self.function.body = body
        return self.function


# NaN goes through: a comparison with it is false
FUNCTIONS: dict[str, Callable[..., str]] = {
    "relu": lambda v: f"{v} < 0.0f ? 0.0f : {v}",
    "leaky_relu": lambda v, slope: f"{v} < 0.0f ? {v} * {slope} : {v}",
    "clamp": lambda v, low, high: f"{v} < {low} ? {low} : ({v} > {high} ? {high} : {v})",
    "elu": lambda v, alpha: f"{v} < 0.0f ? {alpha} * expm1f({v}) : {v}",
    "sigmoid": lambda v: f"1.0f / (1.0f + expf(-{v}))",
    "tanh": lambda v: f"tanhf({v})",
    "silu": lambda v: f"{v} / (1.0f + expf(-{v}))",
    "gelu": lambda v: f"0.5f * {v} * (1.0f + erff({v} * 0.707106781f))",
    "hardswish": lambda v: (
        f"{v} < -3.0f ? 0.0f : ({v} > 3.0f ? {v} : {v} * ({v} + 3.0f) * 0.166666667f)"
    ),
    "hardsigmoid": lambda v: (
        f"{v} < -3.0f ? 0.0f : ({v} > 3.0f ? 1.0f : {v} * 0.166666667f + 0.5f)"
    ),
}


def _affine(op: ops.Op, v: str, weights: Mapping[str, str]) -> str:
    return f"{v} * {weights['scale']} + {weights['shift']}"


def _activation(op: ops.Op, v: str, weights: Mapping[str, str]) -> str:
    assert isinstance(op, ops.Activation)
    return FUNCTIONS[op.function](v, *map(c_float, op.parameters))


def _prelu(op: ops.Op, v: str, weights: Mapping[str, str]) -> str:
    return f"{v} < 0.0f ? {v} * {weights['slope']} : {v}"


EXPRESSIONS: dict[type[ops.Op], Callable[[ops.Op, str, Mapping[str, str]], str]] = {
    ops.Affine: _affine,
    ops.Activation: _activation,
    ops.PReLU: _prelu,
}
"""Elementwise operations of one value as a C expression of it and of its channel's weights by role;
such an operation is done as soon as the step before it has the value."""


def scope(text: str) -> str:
    """Statements in a block of their own, where they define something."""
    return f"{{\n{indented(text)}\n}}" if "\n" in text else text


def indented(text: str, levels: int = 1) -> str:
    """Lines further to the right."""
    return indent(text.strip("\n"), "    " * levels)
