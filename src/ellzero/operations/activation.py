"""Functions of each value: ReLU and its kin."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor
from torch.nn import functional as F

from ellzero.c.arrays import c_float
from ellzero.errors import InputError
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Elementwise, Recognized, Recognizer
from ellzero.operations.shapes import Number
from ellzero.tensors import Shape


@dataclass(frozen=True)
class Formula:
    """A function of a value and its parameters, in torch and in C.

    Args:
        run: (batch, parameters ...) -> batch.
        c: (C expression of a value, C constants of the parameters ...) -> C expression.
        parameters: how many parameters it has.
    """

    run: Callable[..., Tensor]
    c: Callable[..., str]
    parameters: int = 0


# in C NaN goes through: a comparison with it is false
FUNCTIONS = {
    "relu": Formula(F.relu, lambda v: f"{v} < 0.0f ? 0.0f : {v}"),
    "leaky_relu": Formula(
        F.leaky_relu, lambda v, slope: f"{v} < 0.0f ? {v} * {slope} : {v}", parameters=1
    ),
    "clamp": Formula(
        F.hardtanh,
        lambda v, low, high: f"{v} < {low} ? {low} : ({v} > {high} ? {high} : {v})",
        parameters=2,
    ),
    "elu": Formula(
        F.elu, lambda v, alpha: f"{v} < 0.0f ? {alpha} * expm1f({v}) : {v}", parameters=1
    ),
    "sigmoid": Formula(torch.sigmoid, lambda v: f"1.0f / (1.0f + expf(-{v}))"),
    "tanh": Formula(torch.tanh, lambda v: f"tanhf({v})"),
    "silu": Formula(F.silu, lambda v: f"{v} / (1.0f + expf(-{v}))"),
    "gelu": Formula(F.gelu, lambda v: f"0.5f * {v} * (1.0f + erff({v} * 0.707106781f))"),
    "hardswish": Formula(
        F.hardswish,
        lambda v: f"{v} < -3.0f ? 0.0f : ({v} > 3.0f ? {v} : {v} * ({v} + 3.0f) * 0.166666667f)",
    ),
    "hardsigmoid": Formula(
        F.hardsigmoid,
        lambda v: f"{v} < -3.0f ? 0.0f : ({v} > 3.0f ? 1.0f : {v} * 0.166666667f + 0.5f)",
    ),
}
"""Activations by name."""


def _known(function: str) -> str:
    if function not in FUNCTIONS:
        raise ValueError(f"expected one of {', '.join(FUNCTIONS)}")
    return function


class Activation(Elementwise):
    """A function of each value: relu, leaky_relu (slope), clamp (low, high), elu (alpha), ..."""

    kind: Literal["activation"] = "activation"
    function: Annotated[str, AfterValidator(_known)]
    parameters: tuple[Number, ...] = ()

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return RECOGNIZERS

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return FUNCTIONS[self.function].run(inputs[0], *self.parameters)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        expected = FUNCTIONS[self.function].parameters
        if len(self.parameters) != expected:
            raise InputError(
                f"{self.function} with {len(self.parameters)} parameters; expected {expected}"
            )
        if self.function == "clamp" and self.parameters[0] > self.parameters[1]:
            raise InputError(f"clamp from {self.parameters[0]} to {self.parameters[1]}")
        return inputs[0]

    def c_value(self, v: str, weights: Mapping[str, str]) -> str:
        return FUNCTIONS[self.function].c(v, *map(c_float, self.parameters))


def _activation(call: Call, function: str, *parameters: Any) -> Recognized | None:
    if any(not isinstance(p, int | float) or not math.isfinite(p) for p in parameters):
        return None
    return Recognized(Activation(function=function, parameters=parameters), [call["self"]])


def _bounded(call: Call, low: Any, high: Any) -> Recognized | None:
    if (low, high) == (0, None):
        return _activation(call, "relu")
    clamp = _activation(call, "clamp", low, high)
    return clamp if clamp is not None and low <= high else None


def _elu(call: Call) -> Recognized | None:
    is_selu = (call["scale"], call["input_scale"]) != (1, 1)
    return None if is_selu else _activation(call, "elu", call["alpha"])


def _gelu(call: Call) -> Recognized | None:
    return _activation(call, "gelu") if call["approximate"] == "none" else None


RECOGNIZERS: dict[Any, Recognizer] = {
    aten.relu.default: lambda call: _activation(call, "relu"),
    aten.relu6.default: lambda call: _bounded(call, 0.0, 6.0),
    aten.leaky_relu.default: lambda call: _activation(call, "leaky_relu", call["negative_slope"]),
    aten.hardtanh.default: lambda call: _bounded(call, call["min_val"], call["max_val"]),
    aten.clamp.default: lambda call: _bounded(call, call["min"], call["max"]),
    aten.elu.default: _elu,
    aten.sigmoid.default: lambda call: _activation(call, "sigmoid"),
    aten.tanh.default: lambda call: _activation(call, "tanh"),
    aten.silu.default: lambda call: _activation(call, "silu"),
    aten.gelu.default: _gelu,
    aten.hardswish.default: lambda call: _activation(call, "hardswish"),
    aten.hardsigmoid.default: lambda call: _activation(call, "hardsigmoid"),
}
