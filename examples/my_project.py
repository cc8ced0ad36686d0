"""A network and a data set of your own, for the recipe beside this file.

Run it from this folder with `ellzero run own_model.toml`.
"""

import torch
from torch import nn

import ellzero as ez


def network(hidden: int = 64) -> nn.Module:
    """A network of your own; the recipe's other keys under `model` are its arguments."""
    return nn.Sequential(nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, 1))


def data(examples: int = 3000) -> ez.Data:
    """A regression on made-up measurements, of which only four of sixteen inputs matter."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, 16, generator=generator)
    noise = 0.05 * torch.randn(examples, generator=generator)
    targets = (inputs[:, 0] * inputs[:, 1] + inputs[:, 2].sin() + inputs[:, 3] + noise)[:, None]
    first, second = examples * 8 // 10, examples * 9 // 10
    return ez.Data(
        (inputs[:first], targets[:first]),
        (inputs[first:second], targets[first:second]),
        (inputs[second:], targets[second:]),
    )
