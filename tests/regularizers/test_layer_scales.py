"""Layer scales against values worked out by hand."""

from math import sqrt
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import LN2, fill
from ellzero.regularizers import layer_scales

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),  # 72 weights; 24 without the kernel's height
        nn.Conv2d(4, 8, 3),  # 288; 96
        nn.Conv2d(8, 4, 1),  # 32; 32
        nn.Conv2d(4, 6, (3, 1)),  # 72; 24
        nn.Conv2d(6, 4, (1, 3)),  # 72; 72
        nn.Linear(16, 4),  # 64
        nn.Linear(4, 4),  # 16
    )


EXPECTED = {
    None: [1, 1, 1, 1, 1, 1, 1],
    # sqrt(n / n_max) per kind: n_max is 288 for conv, 64 for dense
    "paper": [1 / 2, 1, 1 / 3, 1 / 2, 1 / 2, 1, 1 / 2],
    # the height left out: n_max is 96 for conv; 24/96, 96/96, 32/96, 24/96, 72/96
    "paper-code": [1 / 2, 1, sqrt(1 / 3), 1 / 2, sqrt(3 / 4), 1, 1 / 2],
    # N / (7 n) with N = 72 + 288 + 32 + 72 + 72 + 64 + 16 = 616, so 88 / n
    "inverse": [88 / 72, 88 / 288, 88 / 32, 88 / 72, 88 / 72, 88 / 64, 88 / 16],
}


@pytest.mark.parametrize("rule", EXPECTED)
def test_by_hand(rule):
    assert layer_scales(ez.select(network()), rule) == pytest.approx(EXPECTED[rule], rel=1e-14)


def test_the_numbers_of_experiment_5():
    # ResNet-50: a 1x1 kernel of 1024 -> 2048 is the largest to the authors' code (2097152), a 3x3
    # one of 512 -> 512 in truth (2359296, of which the code counts a third); dense n_max = 524288
    model = nn.Sequential(
        nn.Conv2d(1024, 2048, 1),
        nn.Conv2d(512, 512, 3),
        nn.Linear(2048, 256),
        nn.Linear(256, 100),
    )
    weights = ez.select(model)
    dense = [1, sqrt(25600 / 524288)]
    assert layer_scales(weights, "paper-code") == pytest.approx([1, sqrt(3 / 8), *dense])
    assert layer_scales(weights, "paper") == pytest.approx([sqrt(8 / 9), 1, *dense])


@pytest.mark.parametrize(
    ("layer", "other", "expected"),
    [
        (nn.Conv1d(2, 4, 3), nn.Conv1d(2, 4, 1), [1, 1]),  # the only kernel axis is left out
        (nn.Conv3d(2, 4, (5, 1, 3)), nn.Conv3d(2, 4, 3), [sqrt(3 / 9), 1]),
        (nn.ConvTranspose2d(2, 4, (5, 2)), nn.ConvTranspose2d(2, 4, 4), [sqrt(2 / 4), 1]),
    ],
)
def test_the_kernels_height_in_other_dimensions(layer, other, expected):
    weights = ez.select(nn.Sequential(layer, other))
    assert layer_scales(weights, "paper-code") == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["papr", "Paper", "", 1])
def test_unknown_rule(rule):
    with pytest.raises(ez.EllzeroError, match=rf"layer_scale is {rule!r};.*paper"):
        ez.Regularizer(nn.Linear(2, 2), ez.L0(1.0), layer_scale=rule)


def two_layers() -> Any:
    model: Any = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 8, bias=False)).double()
    for layer in model:
        fill(layer.weight, torch.ones_like(layer.weight))
    return model


# With beta = ln 2 and all weights 1: a weight's l0 is 1 - 1/2, its derivative ln2 / 2.
# Layers of 4 and 16 weights: the paper's scales are 1/2 and 1, the inverse ones 20/8 and 20/32.
SCALES = {"paper": (1 / 2, 1), "inverse": (20 / 8, 20 / 32)}


@pytest.mark.parametrize("rule", SCALES)
@pytest.mark.parametrize("form", ["gradient", "loss", "decoupled"])
def test_acts_on_the_l0_term_in_every_form(rule, form):
    model, (first, second) = two_layers(), SCALES[rule]
    regularizer = ez.Regularizer(model, ez.L0(0.1, beta=LN2, form=form), layer_scale=rule)
    assert regularizer.value().item() == pytest.approx(0.1 * (4 * first + 16 * second) / 2)
    before = [layer.weight.detach().clone() for layer in model]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (regularizer.loss() + sum(w.sum() * 0 for w in model.parameters())).backward()
    regularizer.add_gradient()
    optimizer.step()
    regularizer.step(optimizer)
    for layer, w, scale in zip(model, before, (first, second), strict=True):
        expected = w - 0.1 * scale * LN2 / 2
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("term", [ez.L1(0.5), ez.L2(0.5)], ids=str)
def test_other_terms_are_never_scaled(term):
    model = two_layers()
    regularizer = ez.Regularizer(model, term + ez.L0(0.0), layer_scale="paper")
    assert regularizer.value().item() == 0.5 * 20
    regularizer.add_gradient()
    slope = term.gradient(torch.ones(())).item()
    for layer in model:
        assert layer.weight.grad.equal(torch.full_like(layer.weight, slope))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("rule", ["paper", "paper-code", "inverse"])
def test_a_layer_without_weights_scales_nothing(rule):
    others = [nn.Linear(3, 4), nn.Linear(4, 2)]
    expected = layer_scales(ez.select(nn.Sequential(*others)), rule)
    model = nn.Sequential(nn.Linear(0, 5), nn.Conv2d(0, 5, 3), *others)
    assert layer_scales(ez.select(model), rule)[2:] == pytest.approx(expected)
    regularizer = ez.Regularizer(model, ez.L0(1.0), layer_scale=rule)
    regularizer.add_gradient()
    assert regularizer.value().isfinite()
