"""The network for recipe.toml; change it as you like."""

from torch import nn


def network(channels: int, height: int, width: int, classes: int) -> nn.Module:
    """A small convolution network for images (N, channels, height, width).

    What stands under [model] in the recipe, beside the name, are its arguments.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * (height // 4) * (width // 4), 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
