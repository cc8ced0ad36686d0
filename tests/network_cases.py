"""A case for every built-in network, and the arithmetic by which their tests compute by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
State = dict[str, Array]


@dataclass
class NetworkCase:
    """What one example of a built-in network's input is like, and options for a quick test."""

    shape: tuple[int, ...]  # of one example
    outputs: tuple[int, ...] = (10,)  # shape of one example's output
    options: dict[str, Any] = field(default_factory=dict)
    tokens: int | None = None  # for inputs that are tokens: how many there are

    def batch(self, count: int) -> Tensor:
        if self.tokens is not None:
            return torch.randint(self.tokens, (count, *self.shape))
        return torch.randn(count, *self.shape)


NETWORK_CASES = {
    "audio-conv": NetworkCase((1, 8000)),
    "audio-gru": NetworkCase((12, 40)),
    "autoencoder": NetworkCase((640,), (640,)),
    "ds-cnn": NetworkCase((1, 49, 10), (12,)),
    "gpt-small": NetworkCase((16,), (16, 65), tokens=65),
    "lenet-300-100": NetworkCase((1, 28, 28)),
    "lenet-5-caffe": NetworkCase((1, 28, 28)),
    "mobilenet-v1-025": NetworkCase((3, 96, 96), (2,)),
    "resnet-20": NetworkCase((3, 32, 32)),
    "resnet-50": NetworkCase((3, 32, 32), (100,), {"width": 4, "upsample": 1}),
    "resnet-8": NetworkCase((3, 32, 32)),
    "vgg-small": NetworkCase((1, 28, 28)),
}


def lively(network: nn.Module) -> nn.Module:
    """The network in float64 and evaluation mode, its biases and batch norms not as they start."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.2, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            for values in (module.running_var, module.weight.data):
                assert values is not None
                values.uniform_(0.5, 1.5, generator=generator)
    return network.double().eval()


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that are no vectors, by layer."""
    weights = ((name, p) for name, p in network.named_parameters() if p.dim() > 1)
    return {name.removesuffix(".weight"): tuple(p.shape) for name, p in weights}


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def statistics_count(network: nn.Module) -> int:
    """Running means and variances, which Keras counts among the parameters."""
    return sum(b.numel() for name, b in network.named_buffers() if "running" in name)


def state_of(network: nn.Module) -> State:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def same_margins(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding "same", before and after, as its documentation of `tf.nn` says."""
    rest = size % stride or stride
    total = max(kernel - rest, 0)
    return total // 2, total - total // 2


def convolved(x: Array, state: State, name: str, *, stride: int = 1, margins: Any = None) -> Array:
    """(N, O, ...) of (N, I, ...): a sum over the places of the kernel; padded "same" by default.

    A weight of one input channel a row is a depthwise one.
    """
    weight = state[f"{name}.weight"]
    sizes, kernel = x.shape[2:], weight.shape[2:]
    if margins is None:
        margins = [same_margins(n, k, stride) for n, k in zip(sizes, kernel, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *margins])
    depthwise = weight.shape[1] == 1 and x.shape[1] > 1
    spans = [
        (n + sum(m) - k) // stride * stride + 1
        for n, m, k in zip(sizes, margins, kernel, strict=True)
    ]
    bias = state.get(f"{name}.bias", np.zeros(len(weight)))
    total: Any = bias.reshape(-1, *[1] * len(sizes))
    for place in np.ndindex(*kernel):
        cut = tuple(slice(p, p + span, stride) for p, span in zip(place, spans, strict=True))
        seen, factor = padded[(..., *cut)], weight[(..., *place)]
        if depthwise:
            total = total + seen * factor.reshape(-1, *[1] * len(sizes))
        else:
            total = total + np.einsum("ni...,oi->no...", seen, factor)
    return total


def normalized(x: Array, state: State, name: str, eps: float) -> Array:
    """Batch norm with the running statistics, channel by channel."""
    mean, var, weight, bias = (
        state[f"{name}.{key}"].reshape(-1, *[1] * (x.ndim - 2))
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def linear(x: Array, state: State, name: str) -> Array:
    product = x @ state[f"{name}.weight"].T
    return product + state[f"{name}.bias"] if f"{name}.bias" in state else product


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def assert_close(output: Tensor, expected: Array) -> None:
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-9, atol=1e-9)
