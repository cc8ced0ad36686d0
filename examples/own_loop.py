"""A training loop of your own, and the lines that make its network small.

Run it with `python examples/own_loop.py`: a small network on 5,000 real digits, a few seconds.
"""

import torch
from torch import nn

import ellzero as ez
from ellzero.data.mnist_5k import mnist_5k


def train(model, optimizer, batches, epochs, regularizer=None):
    """An ordinary loop; the regularizer adds one line to it."""
    for _ in range(epochs):
        for inputs, targets in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            if regularizer is not None:
                regularizer.add_gradient()
            optimizer.step()


def main() -> float:
    """Train, prune, fine-tune; the accuracy on the validation digits."""
    torch.manual_seed(0)
    data = mnist_5k()
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def batches():
        return data.train.batches(64, torch.device("cpu"), shuffle=True)

    regularizer = ez.Regularizer(model, ez.L0(5e-5, beta=5) + ez.L2(1e-5))
    train(model, optimizer, batches, epochs=8, regularizer=regularizer)

    masks = ez.prune(model, sparsity=0.95)
    with masks.hold(optimizer):
        train(model, optimizer, batches, epochs=4)

    accuracy = ez.evaluate(model, data, "validation").score
    print(f"{masks.nonzeros:,} of {masks.numel:,} weights, {100 * accuracy:.1f} % right")
    return accuracy


if __name__ == "__main__":
    main()
