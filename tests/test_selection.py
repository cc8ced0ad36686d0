import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.selection import Selection, named_weights


def kinds(model: nn.Module, **options) -> dict[str, str]:
    return {weight.name: weight.kind for weight in ez.select(model, **options).weights}


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 2), {"weight": "dense"}),
        (nn.Linear(3, 2, bias=False), {"weight": "dense"}),
        (nn.Bilinear(3, 2, 4), {"weight": "dense"}),
        (nn.Conv1d(2, 4, 3), {"weight": "conv"}),
        (nn.Conv2d(2, 4, 3), {"weight": "conv"}),
        (nn.Conv3d(2, 4, 3), {"weight": "conv"}),
        (nn.ConvTranspose1d(2, 4, 3), {"weight": "conv"}),
        (nn.ConvTranspose2d(2, 4, 3), {"weight": "conv"}),
        (nn.ConvTranspose3d(2, 4, 3), {"weight": "conv"}),
        (
            nn.MultiheadAttention(8, 2),
            {"in_proj_weight": "dense", "out_proj.weight": "dense"},
        ),
        (
            nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True),
            {
                "q_proj_weight": "dense",
                "k_proj_weight": "dense",
                "v_proj_weight": "dense",
                "out_proj.weight": "dense",
            },
        ),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, nn.Module) else None,
)
def test_layers_selected_by_default(layer, expected):
    assert kinds(layer) == expected


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.Embedding(5, 4),
        nn.EmbeddingBag(5, 4),
        nn.PReLU(),
        nn.ReLU(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_left_out_by_default(layer):
    with pytest.raises(ez.EllzeroError, match=f"no weights selected in {type(layer).__name__}"):
        ez.select(layer)
    beside_a_linear_one = nn.Sequential(layer, nn.Linear(2, 2))
    assert list(ez.select(beside_a_linear_one)) == ["1.weight"]


def test_a_parameter_of_the_users_own_is_left_out_unless_included():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.gain = nn.Parameter(torch.ones(2))

    assert kinds(Scaled()) == {"weight": "dense"}  # a subclass counts as what it is
    assert kinds(Scaled(), include=["gain"]) == {"gain": "other"}


def encoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 7, bias=False)
    )


def test_is_a_mapping_in_the_networks_order():
    model = encoder()
    selection = ez.select(model)
    assert isinstance(selection, Selection)
    assert list(selection) == ["1.weight", "3.weight"]
    assert selection["1.weight"] is model[1].weight
    assert len(selection) == 2
    assert selection.numel == 4 * 4 + 4 * 7
    with pytest.raises(KeyError):
        selection["0.weight"]


def test_include_selects_exactly_what_matches():
    model = encoder()
    assert list(ez.select(model, include=["*"])) == [name for name, _ in model.named_parameters()]
    assert kinds(model, include=["0.*", "1.bias"]) == {"0.weight": "embedding", "1.bias": "other"}
    assert list(ez.select(model, include=["[13].weight"])) == ["1.weight", "3.weight"]
    assert list(ez.select(model, include=["?.bias"])) == ["1.bias", "2.bias"]


def test_exclude_takes_away_from_either():
    model = encoder()
    assert list(ez.select(model, exclude=["3.*"])) == ["1.weight"]
    assert list(ez.select(model, include=["*.weight"], exclude=["1.*", "2.*"])) == [
        "0.weight",
        "3.weight",
    ]
    with pytest.raises(ez.EllzeroError, match="no weights selected in Sequential"):
        ez.select(model, exclude=["*"])


def test_patterns_mind_the_case_and_match_whole_names():
    model = nn.Sequential()
    model.add_module("Head", nn.Linear(2, 2))
    model.add_module("head", nn.Linear(2, 2))
    assert list(ez.select(model, include=["head.*"])) == ["head.weight", "head.bias"]
    with pytest.raises(ez.EllzeroError, match="'weight' matches no parameter"):
        ez.select(model, include=["weight"])


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_names_the_nearest(option):
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(2, 2))
    model.add_module("zzz", nn.Linear(2, 2))
    with pytest.raises(ez.EllzeroError) as caught:
        ez.select(model, **{option: ["encoder.*", "encodr.weight"]})
    assert "'encodr.weight' matches no parameter; did you mean encoder.weight" in str(caught.value)


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_text_is_no_list_of_patterns(option):
    with pytest.raises(ez.EllzeroError, match=rf"{option} is the text '\*'; expected a list"):
        ez.select(nn.Linear(2, 2), **{option: "*"})


def test_tied_weights_count_once_under_their_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert list(ez.select(model)) == ["0.weight", "1.weight"]
    assert ez.select(model).numel == 18


def test_a_pattern_may_name_a_tied_weight_by_any_of_its_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(ez.select(model, include=["1.weight"])) == ["0.weight"]
    assert list(ez.select(model, include=["*"], exclude=["1.weight"])) == ["0.bias", "1.bias"]


def test_a_module_used_twice_counts_once():
    block = nn.Linear(3, 3)
    assert list(ez.select(nn.Sequential(block, nn.ReLU(), block))) == ["0.weight"]


@pytest.mark.parametrize("embedding_first", [True, False])
def test_a_weight_tied_to_an_embedding_counts_as_embedding(embedding_first):
    embedding, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = embedding.weight
    order = [embedding, head] if embedding_first else [head, embedding]
    model = nn.Sequential(*order, nn.Linear(2, 2))
    assert kinds(model) == {"2.weight": "dense"}
    assert kinds(model, include=["0.weight"]) == {"0.weight": "embedding"}


def test_frozen_weights_are_never_selected():
    model = encoder()
    model[1].weight.requires_grad_(False)
    assert list(ez.select(model)) == ["3.weight"]
    assert list(ez.select(model, include=["*.weight"])) == ["0.weight", "2.weight", "3.weight"]
    with pytest.raises(ez.EllzeroError, match=r"'1\.weight' matches only frozen.*1\.weight"):
        ez.select(model, include=["1.weight", "3.weight"])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ez.EllzeroError, match=r"no weights selected.*6 parameters, 6 .*frozen"):
        ez.select(model)


@pytest.mark.parametrize(
    ("model", "name"),
    [(nn.LazyLinear(3), "weight"), (nn.Sequential(nn.ReLU(), nn.LazyConv2d(3, 3)), "1.weight")],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_refused(model, name):
    with pytest.raises(ez.EllzeroError, match=f"^{name} is uninitialized"):
        ez.select(model)


def test_lazy_layers_are_fine_after_a_batch():
    model = nn.Sequential(nn.LazyLinear(3))
    model(torch.ones(1, 5))
    assert ez.select(model).numel == 15


def test_every_parameter_is_listed_once_with_all_its_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    listed = {weight.name: names for names, weight in named_weights(model)}
    assert listed == {"0.weight": ["0.weight", "1.weight"], "0.bias": ["0.bias"]}
