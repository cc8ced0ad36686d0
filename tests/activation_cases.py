"""For every activation: a module that computes the same, and its parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ellzero import operations as ops


class Own(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


ACTIVATIONS: dict[str, tuple[nn.Module, tuple[float, ...]]] = {
    "relu": (nn.ReLU(), ()),
    "leaky_relu": (nn.LeakyReLU(0.3), (0.3,)),
    "clamp": (nn.Hardtanh(-0.5, 1.25), (-0.5, 1.25)),
    "elu": (nn.ELU(0.7), (0.7,)),
    "sigmoid": (nn.Sigmoid(), ()),
    "tanh": (nn.Tanh(), ()),
    "silu": (nn.SiLU(), ()),
    "gelu": (nn.GELU(), ()),
    "hardswish": (nn.Hardswish(), ()),
    "hardsigmoid": (nn.Hardsigmoid(), ()),
    "gelu_tanh": (nn.GELU("tanh"), ()),
    "selu": (nn.SELU(), ()),
    "celu": (nn.CELU(0.7), (0.7,)),
    "softplus": (nn.Softplus(2.0, 1.5), (2.0, 1.5)),
    "mish": (nn.Mish(), ()),
    "log_sigmoid": (nn.LogSigmoid(), ()),
    "hardshrink": (nn.Hardshrink(0.4), (0.4,)),
    "softshrink": (nn.Softshrink(0.4), (0.4,)),
    "threshold": (nn.Threshold(0.2, -0.7), (0.2, -0.7)),
    "at_least": (Own(lambda x: x.clamp(min=-0.3)), (-0.3,)),
    "at_most": (Own(lambda x: x.clamp(max=0.4)), (0.4,)),
    "abs": (Own(lambda x: x.abs()), ()),
    "neg": (Own(lambda x: -x), ()),
    "exp": (Own(lambda x: x.exp()), ()),
    "log": (Own(lambda x: x.log()), ()),
    "erf": (Own(lambda x: x.erf()), ()),
    "square": (Own(lambda x: x**2), ()),
    "sqrt": (Own(lambda x: x**0.5), ()),
    "rsqrt": (Own(lambda x: x**-0.5), ()),
    "reciprocal": (Own(lambda x: x**-1), ()),
    "pow": (Own(lambda x: x**2.5), (2.5,)),
    "plus": (Own(lambda x: x + 1.5), (1.5,)),
    "times": (Own(lambda x: x * -0.3), (-0.3,)),
    "divided_by": (Own(lambda x: x / 3), (3.0,)),
    "subtracted_from": (Own(lambda x: 1 - x), (1.0,)),
}

OF_POSITIVES = {"log", "sqrt", "rsqrt", "reciprocal", "pow"}
"""Those that are no numbers, or have no bound, elsewhere."""

UNSTEADY = {"exp", "square", "hardshrink", "threshold"}
"""Those that grow beyond all bounds when they are chained, or jump."""

STEADY = [name for name in ACTIVATIONS if name not in OF_POSITIVES | UNSTEADY]


def activation(function: str) -> ops.Activation:
    """The operation, with the parameters of its case."""
    _, parameters = ACTIVATIONS[function]
    return ops.Activation(function=function, parameters=parameters)
