"""Compaction where axes are cut, joined, turned and compared: the output stays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ellzero as ez
from c_programs import predicted, raw_inputs
from random_layouts import random_layouts


class Wired(nn.Module):
    """Layers, and how they are put together."""

    def __init__(self, wiring: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def check_random(seeds: range) -> None:
    """Zeros are in the weights as they are drawn; compaction takes its part of them."""
    for seed in seeds:
        network = random_layouts(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ez.EllzeroWarning)  # of dead outputs
            small = ez.compact(network).model
        x = raw_inputs(network)
        given, expected = predicted(small, x), predicted(network, x)
        torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6, msg=f"seed {seed}")


def test_compaction_of_random_layouts():
    check_random(range(40))


@pytest.mark.slow
def test_compaction_of_many_random_layouts():
    check_random(range(1000, 2000))


def test_a_causal_query_keeps_its_place():
    torch.manual_seed(0)
    layers = {name: nn.Linear(6, 6).double() for name in "qkv"}
    model = Wired(
        lambda m, x: F.scaled_dot_product_attention(
            m.q(x), m.k(x[:, 1:4]), m.v(x[:, 1:4]), is_causal=True
        )[:, 2],
        **layers,
    )
    x = torch.randn(3, 5, 6).double()
    torch.testing.assert_close(ez.compact(model, x).model(x), model(x))


def test_places_of_an_input_that_are_cut_anew_stay_where_they_are():
    torch.manual_seed(0)
    model = Wired(lambda m, x: m.d(x.reshape(-1, 8, 1)[:, 5:7]), d=nn.Linear(1, 3).double())
    x = torch.randn(3, 4, 2).double()
    torch.testing.assert_close(ez.compact(model, x).model(x), model(x))
