"""Tiny networks, data and recipes that tests share; a whole scheme on them takes milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import ellzero as ez
from ellzero.recipe_tables import without_others


def blobs(count: int, seed: int, *, spread: float = 0.6) -> tuple[Tensor, Tensor]:
    """Three Gaussian clouds in six dimensions that overlap a little: (count, 6) and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.eye(6)[:3]
    return centres[labels] + spread * torch.randn(count, 6, generator=generator), labels


def classification(**options: Any) -> ez.Data:
    """A problem of three classes: 60 examples to train on, 45 to validate, 30 to test.

    Also beside a loss of one's own the score is the accuracy.
    """
    if options.get("loss") is not None:
        options = {"task": "classification", **options}
    return ez.Data(blobs(60, 1), blobs(45, 2), blobs(30, 3), **options)


def regression(**options: Any) -> ez.Data:
    """One number to predict, (N, 1), a linear function of the six inputs and some noise."""
    parts = []
    for seed, count in ((1, 60), (2, 45), (3, 30)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(count, 6, generator=generator)
        noise = 0.1 * torch.randn(count, 1, generator=generator)
        parts.append((x, 2 * x[:, :1] - x[:, 1:2] + noise))
    return ez.Data(*parts, **options)


def images(**options: Any) -> ez.Data:
    """Two classes of uint8 images, (N, 2, 6, 6): bright on the left, or on the right."""
    parts = []
    for seed, count in ((1, 40), (2, 20), (3, 20)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 160, (count, 2, 6, 6), generator=generator, dtype=torch.uint8)
        y = torch.arange(count) % 2
        x[y == 0, :, :, :3] += 60
        x[y == 1, :, :, 3:] += 60
        parts.append((x, y))
    return ez.Data(*parts, preprocess=ez.Preprocess(1 / 128, -1.0), **options)


def mlp(outputs: int = 3, seed: int = 0) -> nn.Sequential:
    """6-16-outputs; with three outputs 96 + 48 = 144 weights, in `0.weight` and `2.weight`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))


def dropout_mlp(seed: int = 0) -> nn.Sequential:
    """As `mlp`, with dropout, so that its training draws random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def convnet(seed: int = 0) -> nn.Sequential:
    """Two convolutions with batch normalization and a dense layer, for `images`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 2),
        )


def trained(data: ez.Data, model: nn.Module, *, steps: int = 150, sparsity: float = 0.5) -> Any:
    """A network that fits the data, with half of its weights pruned."""
    inputs, targets = next(data.train.batches(1000, torch.device("cpu")))
    masks = ez.prune(model, sparsity=sparsity)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with masks.hold(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            data.loss(model(inputs), targets).backward()
            optimizer.step()
    model.zero_grad()
    return model


class Residual(nn.Module):
    """Batch norms, a sum, a concatenation, a table, both poolings, padding, and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last_norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 3)
        for norm in (self.norm, self.last_norm):  # the last one stays a scale and a shift
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
            assert norm.running_var is not None
            norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.norm(self.first(x)))
        summed = torch.relu(first + self.second(first))
        left = nn.functional.max_pool2d(nn.functional.hardswish(summed), 2)
        right = nn.functional.avg_pool2d(nn.functional.pad(summed, (0, 1, 1, 0)), 3, 2)
        left = nn.functional.adaptive_max_pool2d(left, 1).flatten(1)
        both = torch.cat([left, right.mean((2, 3))], 1)
        return torch.softmax(self.out(torch.relu(self.last_norm(both[:, :, None])).flatten(1)), 1)


def residual(seed: int = 0) -> Residual:
    """A network of the steps that integer networks have."""
    torch.manual_seed(seed)
    return Residual().eval()


def recipe(**tables: Any) -> ez.Recipe:
    """A short recipe, with the keys of these tables on top: `recipe(prune={"nonzeros": 30})`."""
    told: dict[str, Any] = {
        "device": "cpu",
        "reference": {"epochs": 3},
        "train": {
            "epochs": 4,
            "batch_size": 16,
            "learning_rate": 0.02,
            "penalty": {"l0": {"strength": 1e-4}, "l2": {"strength": 1e-5}},
        },
        "prune": {"sparsity": 0.75},
        "finetune": {"epochs": 3},
    }
    for name, table in tables.items():
        if isinstance(table, dict) and name not in ("prune", "model", "data"):
            table = {**without_others(name, told.get(name, {}), table), **table}
        told[name] = table
    return ez.Recipe.parse(told)


def tensors_equal(left: nn.Module, right: nn.Module) -> bool:
    """Whether two networks have the same state_dict, bit for bit."""
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def nonzero_weights(model: nn.Module) -> int:
    """Count of nonzeros in all matrices and kernels, biases and normalization left out."""
    return sum(int((p != 0).sum()) for p in model.parameters() if p.ndim > 1)


def right_answers(model: nn.Module, examples: tuple[Tensor, Tensor]) -> int:
    """How many examples a classifier gets right, one by one."""
    model.eval()
    with torch.no_grad():
        return sum(int(model(x[None])[0].argmax() == y) for x, y in zip(*examples, strict=True))


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of right answers, as a score of one's own."""
    return (outputs.argmax(1) == targets).float().mean()


def metrics_of(folder: Path, *without: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without some keys."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in without} for line in lines]


class Counted(Dataset[Any]):
    """A Dataset that counts how often each example is taken, and can raise at the nth time."""

    def __init__(self, examples: tuple[Tensor, Tensor], *, stop_after: int | None = None) -> None:
        self.examples = examples
        self.taken = [0] * len(examples[1])
        self.stop_after = stop_after

    def __len__(self) -> int:
        return len(self.taken)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.stop_after is not None and sum(self.taken) >= self.stop_after:
            raise KeyboardInterrupt
        self.taken[index] += 1
        return self.examples[0][index], self.examples[1][index]
