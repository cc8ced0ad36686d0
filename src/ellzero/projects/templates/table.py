"""The network for recipe.toml; change it as you like."""

from torch import nn


def network(inputs: int, outputs: int) -> nn.Module:
    """A network for rows of a table, (N, inputs) to (N, outputs).

    What stands under [model] in the recipe, beside the name, are its arguments.
    """
    return nn.Sequential(
        nn.Linear(inputs, 64),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, outputs),
    )
