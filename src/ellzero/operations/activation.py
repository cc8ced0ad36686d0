"""Functions of each value: ReLU and its kin, powers, and sums and products with a number."""

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
from ellzero.c.kernel import Expressions
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
        c: (C expression of a value, C constants of the parameters ...) -> C of the result.
        parameters: how many parameters it has.
    """

    run: Callable[..., Tensor]
    c: Callable[..., Expressions]
    parameters: int = 0


# in C NaN goes through: a comparison with it is false
FUNCTIONS = {
    "relu": Formula(F.relu, lambda v: f"{v} < 0.0f ? 0.0f : {v}"),
    "leaky_relu": Formula(
        F.leaky_relu, lambda v, slope: f"{v} < 0.0f ? {v} * {slope} : {v}", parameters=1
    ),
    "clamp": Formula(
        F.hardtanh,
        lambda v, low, high: (f"{v} < {low} ? {low} : {v}", f"v > {high} ? {high} : v"),
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
        lambda v: (
            f"{v} < -3.0f ? 0.0f : {v}",
            "v > 3.0f ? v : v * (v + 3.0f) * 0.166666667f",
        ),
    ),
    "hardsigmoid": Formula(
        F.hardsigmoid,
        lambda v: (f"{v} > 3.0f ? 1.0f : {v} * 0.166666667f + 0.5f", "v < 0.0f ? 0.0f : v"),
    ),
    "gelu_tanh": Formula(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda v: (
            f"0.5f * {v} * (1.0f + tanhf(0.797884561f * {v} * (1.0f + 0.044715f * {v} * {v})))"
        ),
    ),
    "selu": Formula(
        F.selu, lambda v: f"{v} < 0.0f ? 1.75809934f * expm1f({v}) : 1.05070099f * {v}"
    ),
    "celu": Formula(
        F.celu, lambda v, alpha: f"{v} < 0.0f ? {alpha} * expm1f({v} / {alpha}) : {v}", parameters=1
    ),
    "softplus": Formula(
        F.softplus,
        lambda v, beta, threshold: (
            f"{v} * {beta} > {threshold} ? {v} : log1pf(expf({v} * {beta})) / {beta}"
        ),
        parameters=2,
    ),
    "mish": Formula(F.mish, lambda v: f"{v} * tanhf(log1pf(expf({v})))"),
    "log_sigmoid": Formula(
        F.logsigmoid, lambda v: f"({v} < 0.0f ? {v} : 0.0f) - log1pf(expf(-fabsf({v})))"
    ),
    "hardshrink": Formula(
        F.hardshrink, lambda v, limit: f"fabsf({v}) <= {limit} ? 0.0f : {v}", parameters=1
    ),
    "softshrink": Formula(
        F.softshrink,
        lambda v, limit: f"fabsf({v}) <= {limit} ? 0.0f : {v} - copysignf({limit}, {v})",
        parameters=1,
    ),
    "threshold": Formula(
        F.threshold, lambda v, limit, value: f"{v} <= {limit} ? {value} : {v}", parameters=2
    ),
    "at_least": Formula(torch.clamp_min, lambda v, low: f"{v} < {low} ? {low} : {v}", parameters=1),
    "at_most": Formula(
        torch.clamp_max, lambda v, high: f"{v} > {high} ? {high} : {v}", parameters=1
    ),
    "abs": Formula(torch.abs, lambda v: f"fabsf({v})"),
    "neg": Formula(torch.neg, lambda v: f"-{v}"),
    "exp": Formula(torch.exp, lambda v: f"expf({v})"),
    "log": Formula(torch.log, lambda v: f"logf({v})"),
    "erf": Formula(torch.erf, lambda v: f"erff({v})"),
    "square": Formula(torch.square, lambda v: f"{v} * {v}"),
    "sqrt": Formula(torch.sqrt, lambda v: f"sqrtf({v})"),
    "rsqrt": Formula(torch.rsqrt, lambda v: f"1.0f / sqrtf({v})"),
    "reciprocal": Formula(torch.reciprocal, lambda v: f"1.0f / {v}"),
    "pow": Formula(torch.pow, lambda v, exponent: f"powf({v}, {exponent})", parameters=1),
    "plus": Formula(torch.add, lambda v, number: f"{v} + {number}", parameters=1),
    "times": Formula(torch.mul, lambda v, number: f"{v} * {number}", parameters=1),
    "divided_by": Formula(torch.div, lambda v, number: f"{v} / {number}", parameters=1),
    "subtracted_from": Formula(torch.rsub, lambda v, number: f"{number} - {v}", parameters=1),
}
"""Activations by name."""

POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
"""Exponents that have a function of their own."""


def _known(function: str) -> str:
    if function not in FUNCTIONS:
        raise ValueError(f"expected one of {', '.join(FUNCTIONS)}")
    return function


class Activation(Elementwise):
    """A function of each value: relu, leaky_relu (slope), clamp (low, high), elu (alpha), ..."""

    kind: Literal["activation"] = "activation"
    function: Annotated[str, AfterValidator(_known)]
    parameters: tuple[Number, ...] = ()
    ANY_LAYOUT = True

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
        if self.function == "celu" and abs(self.parameters[0]) < torch.finfo(torch.float32).tiny:
            raise InputError(f"celu divides by {self.parameters[0]}, which is 0 or hardly more")
        if self.function == "softshrink" and self.parameters[0] < 0:
            raise InputError(f"softshrink by {self.parameters[0]}; expected 0 or more")
        return inputs[0]

    def c_value(self, v: str, weights: Mapping[str, str]) -> Expressions:
        return FUNCTIONS[self.function].c(v, *map(c_float, self.parameters))


def _activation(call: Call, function: str, *parameters: Any) -> Recognized | None:
    if any(not isinstance(p, int | float) or not math.isfinite(p) for p in parameters):
        return None
    return Recognized(Activation(function=function, parameters=parameters), [call["self"]])


def _bounded(call: Call, low: Any, high: Any) -> Recognized | None:
    if (low, high) == (0, None):
        return _activation(call, "relu")
    if high is None:
        return _activation(call, "at_least", low)
    if low is None:
        return _activation(call, "at_most", high)
    clamp = _activation(call, "clamp", low, high)
    return clamp if clamp is not None and low <= high else None


def _elu(call: Call) -> Recognized | None:
    is_selu = (call["scale"], call["input_scale"]) != (1, 1)
    return None if is_selu else _activation(call, "elu", call["alpha"])


def _gelu(call: Call) -> Recognized | None:
    return _activation(call, "gelu" if call["approximate"] == "none" else "gelu_tanh")


def _pow(call: Call) -> Recognized | None:
    name = POWERS.get(call["exponent"])
    return _activation(call, name) if name else _with_number(call, "pow", call["exponent"])


def _with_number(call: Call, function: str, number: Any) -> Recognized | None:
    """A function of each value and a number, of floats: with integers the result is one again."""
    if not call.fx_node.meta["val"].is_floating_point():
        return None
    return _activation(call, function, number)


def _sum(call: Call, function: str = "plus", sign: int = 1) -> Recognized | None:
    if call["alpha"] != 1 or not isinstance(call["other"], int | float):
        return None
    return _with_number(call, function, sign * call["other"])


def _difference(call: Call) -> Recognized | None:
    return _sum(call, sign=-1)


def _reversed_difference(call: Call) -> Recognized | None:
    return _sum(call, "subtracted_from")


def _product(call: Call) -> Recognized | None:
    return _with_number(call, "times", call["other"])


def _quotient(call: Call) -> Recognized | None:
    return _with_number(call, "divided_by", call["other"])


def _plain(function: str, *roles: str) -> Recognizer:
    """Of a call that is a function by itself, whose parameters are its arguments."""
    return lambda call: _activation(call, function, *(call[role] for role in roles))


RECOGNIZERS: dict[Any, Recognizer] = {
    aten.relu.default: _plain("relu"),
    aten.relu6.default: lambda call: _bounded(call, 0.0, 6.0),
    aten.leaky_relu.default: _plain("leaky_relu", "negative_slope"),
    aten.hardtanh.default: lambda call: _bounded(call, call["min_val"], call["max_val"]),
    aten.clamp.default: lambda call: _bounded(call, call["min"], call["max"]),
    aten.clip.default: lambda call: _bounded(call, call["min"], call["max"]),
    aten.clamp_min.default: lambda call: _bounded(call, call["min"], None),
    aten.clamp_max.default: lambda call: _bounded(call, None, call["max"]),
    aten.elu.default: _elu,
    aten.selu.default: _plain("selu"),
    aten.celu.default: _plain("celu", "alpha"),
    aten.sigmoid.default: _plain("sigmoid"),
    aten.log_sigmoid.default: _plain("log_sigmoid"),
    aten.tanh.default: _plain("tanh"),
    aten.silu.default: _plain("silu"),
    aten.gelu.default: _gelu,
    aten.mish.default: _plain("mish"),
    aten.softplus.default: _plain("softplus", "beta", "threshold"),
    aten.hardswish.default: _plain("hardswish"),
    aten.hardsigmoid.default: _plain("hardsigmoid"),
    aten.hardshrink.default: _plain("hardshrink", "lambd"),
    aten.softshrink.default: _plain("softshrink", "lambd"),
    aten.threshold.default: _plain("threshold", "threshold", "value"),
    aten.abs.default: _plain("abs"),
    aten.neg.default: _plain("neg"),
    aten.exp.default: _plain("exp"),
    aten.log.default: _plain("log"),
    aten.erf.default: _plain("erf"),
    aten.square.default: _plain("square"),
    aten.sqrt.default: _plain("sqrt"),
    aten.rsqrt.default: _plain("rsqrt"),
    aten.reciprocal.default: _plain("reciprocal"),
    aten.pow.Tensor_Scalar: _pow,
    aten.add.Tensor: _sum,
    aten.add.Scalar: _sum,
    aten.sub.Tensor: _difference,
    aten.sub.Scalar: _difference,
    aten.rsub.Scalar: _reversed_difference,
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.div.Tensor: _quotient,
    aten.div.Scalar: _quotient,
}
