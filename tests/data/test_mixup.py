"""Mixup: inputs laid over each other, the losses of both targets, and a training by hand."""

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.data.batch import Batch
from ellzero.data.mixup import mixed
from ellzero.errors import InputError
from ellzero.training.seeds import seed_epoch
from small import blobs, mlp, recipe, tensors_equal


def test_inputs_and_both_targets_by_hand():
    torch.manual_seed(1)
    x, y, w = torch.randn(7, 2), torch.arange(7), torch.arange(7.0)
    one, other, share = mixed(Batch((x, y), {"labels": y}, w), alpha=0.5)
    assert 0 < share < 1
    order = other.targets["labels"]
    assert sorted(order.tolist()) == list(range(7))
    assert order.tolist() != list(range(7))
    for batch in (one, other):
        assert torch.allclose(batch.inputs[0], share * x + (1 - share) * x[order])
        assert batch.inputs[1] is y  # the first input alone is mixed
    assert one.targets["labels"] is y
    assert one.weights is w
    assert other.weights is not None
    assert torch.equal(other.weights, w[order])


def test_the_share_is_of_a_beta_distribution():
    # of Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))
    torch.manual_seed(0)
    batch = Batch(torch.zeros(1, 1), torch.zeros(1))
    for alpha in (0.2, 2.0):
        shares = torch.stack([mixed(batch, alpha)[2] for _ in range(4000)])
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_integers_are_refused():
    x, y = torch.arange(40)[:, None], torch.arange(40) % 3
    told = recipe(finetune={"mixup": 0.2}, prune={"sparsity": 0.5, "include": ["*"]})
    model = nn.Sequential(nn.Embedding(40, 4), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(InputError, match=r"first one is torch\.int64"):
        ez.compress(model, ez.Data((x, y), (x, y)), told)


def test_a_training_equals_one_by_hand():
    x, y = blobs(40, 1)
    told = recipe(
        reference={"epochs": 1},
        train={
            "epochs": 1,
            "mixup": 0.4,
            "batch_size": 40,
            "penalty": {},
            "warmup": 0,
            "decay": "constant",
        },
        finetune={"epochs": 0},
        prune={"sparsity": 0.0},
    )
    model = ez.compress(mlp(), ez.Data((x, y), blobs(9, 2)), told).model

    expected = mlp()
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.02, fused=True)
    with torch.random.fork_rng():
        seed_epoch(0, "train", 0, 0)
        shuffled = torch.randperm(40)
        share = torch.distributions.Beta(torch.tensor(0.4), torch.tensor(0.4)).sample()
        order = torch.randperm(40)
    x, y = x[shuffled], y[shuffled]
    outputs = expected(share * x + (1 - share) * x[order])
    loss = nn.functional.cross_entropy
    (share * loss(outputs, y) + (1 - share) * loss(outputs, y[order])).backward()
    optimizer.step()
    assert tensors_equal(model, expected)


def test_zero_switches_it_off_where_it_would_be_taken_over():
    told = recipe(train={"mixup": 0.2}, finetune={"mixup": 0})
    assert (told.train.mixup, told.finetune.mixup) == (0.2, 0)
    data = ez.Data(blobs(40, 1), blobs(9, 2))
    mixed_too = ez.compress(mlp(), data, recipe(train={"mixup": 0.2})).model
    assert not tensors_equal(ez.compress(mlp(), data, told).model, mixed_too)
    none, zero = recipe(), recipe(train={"mixup": 0})
    assert tensors_equal(*(ez.compress(mlp(), data, r).model for r in (none, zero)))
