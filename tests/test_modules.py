"""Modes of modules: dropout that is switched off, wherever a layer has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ellzero.modules import without_dropout

X = torch.ones(4, 5, 8)
LAYERS: dict[str, Any] = {
    "a layer": nn.Dropout(0.5),
    "recurrent layers": nn.GRU(8, 8, 2, batch_first=True, dropout=0.5),
    "attention": nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True),
    "an encoder": nn.TransformerEncoderLayer(8, 2, 8, 0.5, batch_first=True),
}


def output(layer: Any) -> torch.Tensor:
    result = layer(X, X, X) if isinstance(layer, nn.MultiheadAttention) else layer(X)
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("what", LAYERS)
def test_nothing_is_dropped_inside_and_afterwards_again(what):
    torch.manual_seed(0)
    layer = LAYERS[what].train()
    with without_dropout(layer):
        assert torch.equal(output(layer), output(layer))
    layer.train()
    assert not torch.equal(output(layer), output(layer))
