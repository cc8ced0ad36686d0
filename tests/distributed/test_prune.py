"""Pruning of sharded weights: bit by bit what one process makes of the whole ones."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import ellzero as ez
from distributed_networks import network, sharded
from ellzero.sharding import local, whole

PRUNINGS: dict[str, dict[str, Any]] = {
    "sparsity": {"sparsity": 0.7},
    "nearly all": {"sparsity": 0.99},
    "nothing": {"nonzeros": 147},
    "nonzeros": {"nonzeros": 23},
    "threshold": {"threshold": 0.25},
    "threshold and fewest": {"threshold": 0.3, "keep_per_layer": 9},
    "layers": {"sparsity": 0.6, "scope": "layer"},
    "fewest": {"sparsity": 0.8, "keep_per_layer": 5},
}
"""What `ez.prune` is asked for; 147 weights are selected."""


def _masks(*, ties: bool, dtype: torch.dtype, shard: bool) -> dict[str, dict[str, Tensor]]:
    """The whole masks of every pruning, and the weights after it."""
    found = {}
    for name, asked in PRUNINGS.items():
        model: Any = network(ties=ties, dtype=dtype)
        model = sharded(model) if shard else model
        with warnings.catch_warnings():  # of weights that are zero already
            warnings.simplefilter("ignore", ez.EllzeroWarning)
            masks = ez.prune(model, **asked)
        found[name] = {n: whole(mask) for n, mask in masks.items()}
        assert masks.nonzeros == sum(int(mask.sum()) for mask in found[name].values())
        assert masks.numel == sum(mask.numel() for mask in found[name].values())
        for weight, w in masks.weights.items():
            assert local(masks[weight]).shape == local(w).shape
            assert whole(w).ne(0).equal(found[name][weight])
            found[name][f"{weight}, the weight"] = whole(w.detach())
    return found


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ties", [False, True])
def test_masks_are_those_of_one_process(run_in, size, ties, dtype):
    expected = _masks(ties=ties, dtype=dtype, shard=False)
    for found in run_in(size, _sharded_masks, ties, dtype):
        for name in PRUNINGS:
            assert list(found[name]) == list(expected[name]), name
            for key, tensor in expected[name].items():
                assert found[name][key].equal(tensor), (name, key)


def _sharded_masks(ties: bool, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    return _masks(ties=ties, dtype=dtype, shard=True)
