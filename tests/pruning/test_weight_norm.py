"""Weights under weight normalization: a row of zeros would be NaN, so none is made."""

from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.regularizers import layer_scales
from small import classification, recipe

ORIGINAL = "parametrizations.weight.original1"


def normalized(seed: int = 0, **options: Any) -> Any:
    """A layer of 8 rows, some of which are far smaller than the others."""
    torch.manual_seed(seed)
    layer = nn.Linear(6, 8)
    with torch.no_grad():
        layer.weight[:4] *= 1e-3
    return nn.utils.parametrizations.weight_norm(layer, **options)


ASKED = [
    {"sparsity": 0.8},
    {"nonzeros": 10},
    {"threshold": 0.2},
    {"sparsity": 0.8, "scope": "layer"},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_every_row_keeps_its_largest_weight(asked):
    layer = normalized()
    before = layer.weight.detach().clone()
    largest = before.abs().argmax(1)
    masks = ez.prune(layer, **asked)
    assert layer.weight.isfinite().all()
    kept = masks[ORIGINAL]
    assert kept[torch.arange(8), largest].all()
    # the count is exact, and what is left of a row has the row's norm
    assert int(kept.sum()) == int((layer.weight != 0).sum())
    if "threshold" not in asked:
        assert int(kept.sum()) == 10
    torch.testing.assert_close(layer.weight.norm(dim=1), before.norm(dim=1))


def test_in_a_network_the_rest_is_ranked_as_ever():
    model = nn.Sequential(normalized(), nn.Linear(8, 3))
    first, second = (w.detach().abs() for w in ez.select(model).values())
    masks = ez.prune(model, nonzeros=30)
    tops = first == first.amax(1, keepdim=True)
    rest = torch.cat([first[~tops], second.flatten()]).sort(descending=True).values
    bound = rest[21]  # 8 rows have one each, so 22 of the others stay
    assert masks["0." + ORIGINAL].equal(tops | (first >= bound))
    assert masks["1.weight"].equal(second >= bound)
    assert model(torch.ones(1, 6)).isfinite().all()


def test_one_norm_for_all_needs_one_weight():
    layer = normalized(dim=None)
    ez.prune(layer, nonzeros=1)
    assert layer.weight.isfinite().all()
    spectral: Any = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
    ez.prune(spectral, nonzeros=1)
    assert spectral.eval().weight.isfinite().all()


@pytest.mark.parametrize("asked", [{"nonzeros": 7}, {"sparsity": 0.9, "scope": "layer"}], ids=str)
def test_fewer_weights_than_rows_are_refused(asked):
    layer = normalized()
    before = layer.weight.detach().clone()
    with pytest.raises(ez.InputError, match=r"but under weight normalization 8 rows need one each"):
        ez.prune(layer, **asked)
    assert layer.weight.equal(before)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"penalty": ez.L1(1.0, form="decoupled")}, "the form 'decoupled'"),
        ({"gates": ez.HardConcrete(1.0)}, "gates"),
        ({"gates": ez.PMMP(1.0)}, "gates"),
    ],
)
def test_what_could_empty_a_row_while_training_is_refused(options, what):
    with pytest.raises(ez.InputError, match=rf"^0\.{ORIGINAL} is divided by .*{what} could"):
        ez.Regularizer(nn.Sequential(normalized()), **options)
    ez.Regularizer(normalized(), ez.L1(1.0) + ez.L0(1.0, form="loss"))


@pytest.mark.parametrize(
    "prune", [{"sparsity": 0.75}, {"sparsity": 0.7, "scope": "layer"}], ids=str
)
def test_the_whole_scheme(prune):
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(6, 16)), nn.ReLU(), norm(nn.Linear(16, 3)))
    result = ez.compress(model, classification(), recipe(prune=prune))
    assert result.masks.nonzeros == round(144 * (1 - prune["sparsity"]))
    assert result.record.compressed.validation.score > 0.6
    gradual = {**prune, "gradual": {"after": 0.1, "until": 0.5}}
    result = ez.compress(model, classification(), recipe(prune=gradual))
    assert result.record.compressed.validation.score > 0.6


def test_under_a_budget_no_round_goes_below_a_weight_a_row():
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(6, 32)), nn.ReLU(), nn.Linear(32, 3))
    told = recipe(prune={"budget": {"max_accuracy_drop": 60.0}, "rounds": 4})
    result = ez.compress(model, classification(), told)
    assert result.masks.nonzeros >= 32
    assert all(row.nonzeros >= 32 for row in result.record.outcomes)


@pytest.mark.parametrize("prune", [{"nonzeros": 18}, {"sparsity": 0.9, "scope": "layer"}], ids=str)
def test_too_few_weights_are_refused_before_anything_is_trained(prune, tmp_path):
    model = nn.Sequential(normalized(), nn.Linear(8, 3))
    model[1] = nn.utils.parametrizations.weight_norm(nn.Linear(8, 24))
    with pytest.raises(ez.InputError, match="rows need one each"):
        ez.compress(model, classification(), recipe(prune=prune), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    ("old", "name"),
    [(nn.utils.weight_norm, "weight_v"), (nn.utils.spectral_norm, "weight_orig")],
    ids=["weight_norm", "spectral_norm"],
)
def test_the_old_hooks_are_known_too(old, name):
    torch.manual_seed(0)
    model = nn.Sequential(old(nn.Linear(6, 8)), nn.Linear(8, 3))
    assert list(ez.select(model)) == [f"0.{name}", "1.weight"]
    masks = ez.prune(model, nonzeros=12)
    outputs = model.eval()(torch.ones(2, 6))
    assert outputs.isfinite().all()
    computed: Any = model[0].weight  # by the forward pass
    zero = computed.detach() == 0
    assert zero.equal(~masks[f"0.{name}"])


def test_masks_that_empty_a_row_are_refused():
    layer = normalized()
    mask = torch.ones(8, 6, dtype=torch.bool)
    mask[2] = False
    with pytest.raises(ez.InputError, match=r"leaves a row without a weight.*NaN"):
        ez.Masks(ez.select(layer), {ORIGINAL: mask})


def test_layers_are_scaled_by_their_own_kind():
    conv, dense = nn.Conv2d(3, 4, 3), nn.Linear(50, 20)
    plain = nn.Sequential(nn.Conv2d(3, 2, 3), conv, dense)
    norm = nn.utils.parametrizations.weight_norm
    normed = nn.Sequential(nn.Conv2d(3, 2, 3), norm(nn.Conv2d(3, 4, 3)), norm(nn.Linear(50, 20)))
    for rule in ("paper", "paper-code"):
        expected = layer_scales(ez.select(plain), rule)
        assert layer_scales(ez.select(normed), rule) == pytest.approx(expected)
