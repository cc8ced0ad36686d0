import copy
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.selection import Selection
from ellzero.weights import named_weights

pytestmark = pytest.mark.filterwarnings("ignore:embeddings are not selected")


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


def weight_norm(layer: nn.Module, **options) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer, **options)


def spectral_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(layer)


ORIGINAL1 = "parametrizations.weight.original1"
ORIGINAL = "parametrizations.weight.original"


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (
            nn.LSTM(3, 4, num_layers=2, proj_size=2),
            dict.fromkeys(
                [f"weight_{what}_l{n}" for n in (0, 1) for what in ("ih", "hh", "hr")], "recurrent"
            ),
        ),
        (
            nn.GRU(3, 4, bidirectional=True),
            dict.fromkeys(
                [f"weight_{what}_l0{end}" for end in ("", "_reverse") for what in ("ih", "hh")],
                "recurrent",
            ),
        ),
        (nn.RNN(3, 4), {"weight_ih_l0": "recurrent", "weight_hh_l0": "recurrent"}),
        (nn.LSTMCell(3, 4), {"weight_ih": "recurrent", "weight_hh": "recurrent"}),
        (nn.GRUCell(3, 4), {"weight_ih": "recurrent", "weight_hh": "recurrent"}),
        (nn.RNNCell(3, 4), {"weight_ih": "recurrent", "weight_hh": "recurrent"}),
        (weight_norm(nn.Linear(3, 2)), {ORIGINAL1: "parametrized"}),
        (weight_norm(nn.Conv1d(3, 2, 3)), {ORIGINAL1: "parametrized"}),
        (spectral_norm(nn.Linear(3, 2)), {ORIGINAL: "parametrized"}),
        (
            weight_norm(nn.LSTM(3, 4), name="weight_hh_l0"),
            {
                "weight_ih_l0": "recurrent",
                "parametrizations.weight_hh_l0.original1": "parametrized",
            },
        ),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, nn.Module) else None,
)
def test_recurrent_and_parametrized_weights_are_kinds_of_their_own(layer, expected):
    assert kinds(layer) == expected


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_zeros_of_a_selected_parametrized_weight_are_zeros_of_the_layers(norm):
    layer: Any = norm(nn.Linear(6, 5))
    ez.prune(layer, sparsity=0.8)
    assert int((layer.weight == 0).sum()) == 24


class Symmetric(nn.Module):
    def forward(self, x):
        return x + x.T


@pytest.mark.parametrize(
    "layer",
    [
        nn.utils.parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric()),
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
        nn.utils.parametrize.register_parametrization(
            spectral_norm(nn.Linear(4, 4)), "weight", Symmetric()
        ),
    ],
)
def test_parametrizations_that_move_zeros_are_named_and_not_selected(layer):
    with pytest.warns(ez.EllzeroWarning, match=rf"0\.{ORIGINAL} \(4 x 4\); include="):
        assert list(ez.select(nn.Sequential(layer, nn.Linear(4, 1)))) == ["1.weight"]


class FusedAttention(nn.Module):
    """A query, key and value in one bare parameter, as many networks have it."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.ones(24, 8))
        self.token = nn.Parameter(torch.ones(1, 1, 8))  # a vector, however it is written
        self.bias_k = nn.Parameter(torch.ones(2, 8))
        self.norm = nn.LayerNorm([2, 8])
        self.out = nn.Linear(8, 8)


def test_a_matrix_of_no_known_layer_is_named_with_the_pattern_that_includes_it():
    model = nn.Sequential(FusedAttention(), FusedAttention(), nn.Embedding(5, 3))
    with pytest.warns() as caught:
        assert list(ez.select(model)) == ["0.out.weight", "1.out.weight"]
    assert [str(w.message) for w in caught] == [
        "embeddings are not selected by default: 2.weight (5 x 3); "
        "include=['default', '2.weight'] selects them too",
        "weights of a kind that is not known are not selected: *.qkv (2 of 24 x 8); "
        "include=['default', '*.qkv'] selects them too",
    ]
    assert all(w.category is ez.EllzeroWarning for w in caught)
    told = ez.select(model, include=["default", "*.qkv", "2.weight"])
    assert list(told) == ["0.qkv", "0.out.weight", "1.qkv", "1.out.weight", "2.weight"]
    assert told.left_out == ()


def test_nothing_is_said_of_what_the_user_left_out():
    model = nn.Sequential(FusedAttention(), nn.Embedding(5, 3))
    model[1].weight.requires_grad_(False)
    assert ez.select(model, exclude=["*.qkv"]).left_out == ()
    assert ez.select(model, include=["*.weight"]).left_out == ()


def test_a_network_of_unknown_weights_alone_is_told_how_to_select_them():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 2))

    with pytest.raises(
        ez.InputError, match=r"no weights.*: w \(3 x 2\); include=\['default', 'w'\]"
    ):
        ez.select(Bare())


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (nn.Linear(3, 2, dtype=torch.complex64), "complex64"),
        (nn.Linear(3, 2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (nn.Linear(3, 2, device="meta"), r"\(2, 3\) is on the meta device"),
        (FusedAttention().out.requires_grad_(False), None),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused_by_name(layer, what):
    model = nn.Sequential(layer, nn.Linear(2, 2))
    if what is None:
        assert list(ez.select(model)) == ["1.weight"]
        return
    for act in (
        ez.select,
        lambda m: ez.prune(m, sparsity=0.5),
        lambda m: ez.Regularizer(m, ez.L1(1)),
    ):
        with pytest.raises(ez.InputError, match=rf"^0\.weight .*{what}"):
            act(model)
    assert list(ez.select(model, exclude=["0.*"])) == ["1.weight"]


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


def test_a_selection_knows_when_its_network_has_other_weights():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    weights = ez.select(model)
    weights.require_current()
    model.load_state_dict(model.state_dict())  # copies values into the same parameters
    weights.require_current()
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    with pytest.raises(ez.InputError, match=r"^0\.weight of Sequential is another parameter now"):
        weights.require_current()
    weights = ez.select(model)
    model[1] = nn.Linear(3, 2)
    with pytest.raises(ez.InputError, match=r"^1\.weight of Sequential is another parameter now"):
        weights.require_current()
    weights = ez.select(model)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ez.InputError, match=r"^0\.weight of Sequential is no longer there"):
        weights.require_current()


def test_a_selection_is_copied_with_its_network_or_not_at_all():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = nn.Parameter(torch.ones(2, 3))
    network, weights = copy.deepcopy((model, ez.select(model)))
    weights.require_current()
    assert weights["1.weight"] is network[1].weight
    with pytest.raises(ez.InputError, match=r"copy\.deepcopy\(\(model, masks\)\)"):
        copy.deepcopy(weights)


def test_tables_of_positions_are_embeddings_and_biases_no_matrices():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_embed = nn.Parameter(torch.ones(1, 17, 32))
            self.relative_position_bias_table = nn.Parameter(torch.ones(9, 4))
            self.head = nn.Linear(32, 2)

    with pytest.warns(ez.EllzeroWarning) as caught:
        assert list(ez.select(Encoder())) == ["head.weight"]
    assert [str(w.message) for w in caught] == [
        "embeddings are not selected by default: pos_embed (1 x 17 x 32); "
        "include=['default', 'pos_embed'] selects them too"
    ]
    assert caught[0].filename == __file__
    for use in (lambda m: ez.prune(m, sparsity=0.5), lambda m: ez.Regularizer(m, ez.L1(0.1))):
        with pytest.warns(ez.EllzeroWarning) as caught:
            use(Encoder())
        assert [w.filename for w in caught] == [__file__]
