"""Your network and your data: recipe.toml names these two functions."""

import torch
from torch import nn

import ellzero as ez


def network(channels: int = 32) -> nn.Module:
    """Your network, untrained: any nn.Module.

    What stands under [model] in the recipe, beside the name, are the function's arguments.
    """
    return nn.Sequential(
        nn.Conv1d(3, channels, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(4),
        nn.Conv1d(channels, channels, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(4),
        nn.Flatten(),
        nn.Linear(4 * channels, 3),
    )


def data(examples: int = 3000) -> ez.Data:
    """Your data: inputs and targets for training, for validation (where choices are made), to test.

    Tensors, arrays, Datasets or DataLoaders. These are made up: 64 accelerations along three axes
    of a device that lies still (0), is carried (1) or falls (2).
    """
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(examples) % 3
    time = torch.linspace(0, 1, 64)
    speed = 3 + 4 * torch.rand(examples, 3, 1, generator=generator)
    carried = torch.sin(2 * torch.pi * speed * time)
    falls = (time > torch.rand(examples, 1, 1, generator=generator)).expand(-1, 3, -1)
    signal = torch.stack([torch.zeros_like(carried), carried, falls])
    noise = 0.7 * torch.randn(examples, 3, 64, generator=generator)
    inputs = signal[targets, torch.arange(examples)] + noise
    first, second = examples * 8 // 10, examples * 9 // 10
    return ez.Data(
        (inputs[:first], targets[:first]),
        (inputs[first:second], targets[first:second]),
        (inputs[second:], targets[second:]),
        classes=["still", "carried", "falls"],
    )
