"""Pruning: exact counts, against an independent NumPy ranking."""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ellzero as ez
from cases import fill
from ellzero.pruning import kept_count, largest, ranking

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def keep_by_numpy(tensors: Sequence[torch.Tensor], count: int) -> list[np.ndarray]:
    """What is to be kept: a stable sort of all magnitudes in float64, zeros never kept."""
    flat = np.concatenate([w.detach().double().numpy().reshape(-1) for w in tensors])
    keep = np.zeros(flat.size, dtype=bool)
    keep[np.argsort(-np.abs(flat), kind="stable")[:count]] = True
    keep &= flat != 0
    ends = np.cumsum([w.numel() for w in tensors])[:-1]
    parts = np.split(keep, ends)
    return [part.reshape(w.shape) for part, w in zip(parts, tensors, strict=True)]


def network(tensors: Sequence[torch.Tensor]) -> nn.Sequential:
    """Dense layers (out, in) with these weights."""
    layers = []
    for w in tensors:
        layer = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
        fill(layer.weight, w)
        layers.append(layer)
    return nn.Sequential(*layers)


@st.composite
def tied_tensors(draw, dtypes=(torch.float32,)) -> list[torch.Tensor]:
    """Up to four matrices of small whole numbers: hardly a magnitude occurs once."""
    tensors = []
    for _ in range(draw(st.integers(1, 4))):
        rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
        size = rows * columns
        values = draw(st.lists(st.integers(-3, 3), min_size=size, max_size=size))
        dtype = draw(st.sampled_from(dtypes))
        tensors.append(torch.tensor(values, dtype=dtype).view(rows, columns))
    return tensors


def check(model: nn.Module, tensors, expected: list[np.ndarray], asked: int, **options) -> None:
    """Prune, and compare masks, weights and the warning with what is expected."""
    kept = sum(int(part.sum()) for part in expected)
    few = f"{asked} weights were to be kept, but only {kept} are nonzero"
    with pytest.warns(UserWarning, match=few) if kept < asked else nullcontext():
        masks = ez.prune(model, **options)
    assert masks.nonzeros == kept
    for (name, mask), w, part in zip(masks.items(), tensors, expected, strict=True):
        assert mask.numpy().tolist() == part.tolist()
        pruned = model.get_parameter(name).detach()
        assert pruned.dtype == w.dtype
        assert pruned.double().numpy().tolist() == (w.double().numpy() * part).tolist()
        assert not torch.signbit(pruned[~mask]).any(), "pruned weights are +0"


@given(st.data())
def test_global_count_is_exact_ties_included(data):
    tensors = data.draw(tied_tensors())
    count = data.draw(st.integers(1, sum(w.numel() for w in tensors)))
    check(network(tensors), tensors, keep_by_numpy(tensors, count), asked=count, nonzeros=count)


@given(st.data())
def test_layer_count_is_exact_ties_included(data):
    tensors = data.draw(tied_tensors())
    percent = data.draw(st.integers(0, 99))
    # round(n p / 100), halves to even, in whole numbers; never all of them
    gone = [_round_half_even(w.numel() * percent, 100) for w in tensors]
    counts = [max(w.numel() - g, 1) for w, g in zip(tensors, gone, strict=True)]
    expected = [keep_by_numpy([w], n)[0] for w, n in zip(tensors, counts, strict=True)]
    check(
        network(tensors),
        tensors,
        expected,
        asked=sum(counts),
        sparsity=percent / 100,
        scope="layer",
    )


def _round_half_even(numerator: int, denominator: int) -> int:
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


@pytest.mark.parametrize("chunk", [1, 3, 7])
@given(data=st.data())
def test_tensors_larger_than_a_chunk_and_of_mixed_dtypes(chunk, data):
    tensors = data.draw(tied_tensors(dtypes=DTYPES))
    count = data.draw(st.integers(0, sum(w.numel() for w in tensors)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CHUNK", chunk)
        masks = largest(tensors, count)
    for mask, part in zip(masks, keep_by_numpy(tensors, count), strict=True):
        assert mask.dtype == torch.bool
        assert mask.numpy().tolist() == part.tolist()


FLOATS = {
    torch.float16: st.floats(width=16, allow_nan=False, allow_infinity=False),
    # bfloat16 is the upper half of a float32
    torch.bfloat16: st.floats(width=32, allow_nan=False, allow_infinity=False),
    torch.float32: st.floats(width=32, allow_nan=False, allow_infinity=False),
    torch.float64: st.floats(allow_nan=False, allow_infinity=False),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_magnitudes_of_any_size_are_ranked_to_the_last_bit(dtype, data):
    values = data.draw(st.lists(FLOATS[dtype], min_size=1, max_size=20))
    w = torch.tensor(values, dtype=torch.float64).to(dtype)
    w = w[w.isfinite()]  # the largest float32 round to infinity in bfloat16
    # neighbours that differ in the last bit, of the other sign too
    w = torch.cat([w, -torch.nextafter(w, torch.zeros_like(w))])
    count = data.draw(st.integers(0, len(w)))
    (mask,) = largest([w], count)
    assert mask.tolist() == keep_by_numpy([w], count)[0].tolist()


@pytest.mark.parametrize(
    ("coarse", "fine", "larger"),
    [
        (torch.float16, torch.float32, 1.0001),  # each rounds to 1 in the dtype of the first
        (torch.bfloat16, torch.float16, 1.001),
        (torch.float32, torch.float64, 1.00000001),
    ],
    ids=str,
)
def test_mixed_dtypes_are_compared_without_rounding(coarse, fine, larger):
    ones, above = torch.ones(2, dtype=coarse), torch.tensor([0.5, larger], dtype=fine)
    assert above.to(coarse)[1] == 1
    masks = largest([ones, above], 2)
    assert [mask.tolist() for mask in masks] == [[True, False], [False, True]]


@pytest.mark.parametrize("count", [1, 1000, 12_345, 49_999])
def test_large_tensors(count):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(200, 200, generator=generator), torch.randn(10_000, generator=generator)]
    masks = largest(tensors, count)
    assert sum(int(mask.sum()) for mask in masks) == count
    for mask, part in zip(masks, keep_by_numpy(tensors, count), strict=True):
        assert (mask.numpy() == part).all()


@pytest.mark.parametrize(
    ("numel", "sparsity", "kept"),
    [
        (1000, 0.985, 15),
        (10, 0.0, 10),
        (10, 0.5, 5),
        (10, 0.04, 10),  # round(0.4) = 0 go
        (10, 0.06, 9),
        (10, 0.25, 8),  # round(2.5) = 2, halves to even
        (10, 0.75, 2),  # round(7.5) = 8
        (3, 0.99, 1),  # round(2.97) = 3 would be all
        (1, 0.999, 1),
        (0, 0.5, 0),
        (266_200, 1 - 1 / 68, 3915),  # 266200 / 68 = 3914.7
    ],
)
def test_kept_count_by_hand(numel, sparsity, kept):
    assert kept_count(numel, sparsity) == kept
    if numel:
        model = nn.Linear(numel, 1, bias=False)
        fill(model.weight, torch.arange(1, numel + 1))
        assert ez.prune(model, sparsity=sparsity).nonzeros == kept


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize(
    ("threshold", "kept"), [(0, [1, 2, 3, 5]), (0.5, [2, 3, 5]), (1.9, [2, 3, 5]), (2.0, [5])]
)
def test_threshold_takes_what_is_at_it_too(scope, threshold, kept):
    # |w| = 0, 0.5, 2, 2 and 0, 3 in the other layer; 2.0 itself goes at a threshold of 2.0
    values = [[0.0, 0.5, -2.0, 2.0]], [[-0.0, -3.0]]
    model = network([torch.tensor(v) for v in values])
    masks = ez.prune(model, threshold=threshold, scope=scope)
    mask = torch.cat([m.view(-1) for m in masks.values()])
    assert mask.nonzero().view(-1).tolist() == kept
    weights = torch.cat([w.detach().view(-1) for w in masks.weights.values()])
    assert weights.equal(torch.tensor([0, 0.5, -2, 2, 0, -3]) * mask)


def test_global_scope_ranks_layers_together_and_layer_scope_each_alone():
    tensors = [torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[10.0, 20.0, 30.0, 40.0]])]
    together = ez.prune(network(tensors), sparsity=0.5)
    assert [mask.tolist() for mask in together.values()] == [[[False] * 4], [[True] * 4]]
    alone = ez.prune(network(tensors), sparsity=0.5, scope="layer")
    assert [mask.tolist() for mask in alone.values()] == [[[False, False, True, True]]] * 2


def test_only_the_selected_weights_are_pruned():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    untouched = {
        key: tensor.clone() for key, tensor in model.state_dict().items() if key != "2.weight"
    }
    masks = ez.prune(model, sparsity=0.5, weights=ez.select(model, exclude=["0.*"]))
    assert list(masks) == ["2.weight"]
    assert masks.nonzeros == 8
    assert all(model.state_dict()[key].equal(tensor) for key, tensor in untouched.items())


def test_tied_weights_are_pruned_once():
    model: Any = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    masks = ez.prune(model, sparsity=0.75)
    assert (masks.numel, masks.nonzeros) == (16, 4)
    assert int(model[1].weight.count_nonzero()) == 4


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_sparse_network_can_be_pruned_further(scope):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    original = {name: w.detach().clone() for name, w in ez.select(model).items()}
    previous = ez.prune(model, sparsity=0.0)
    for sparsity, kept in ((0.5, 100), (0.5, 100), (0.8, 40), (0.99, 2)):
        masks = ez.prune(model, sparsity=sparsity, scope=scope)
        assert masks.nonzeros == kept, "the sparsity is of all weights, not of those left"
        for name, mask in masks.items():
            assert not (mask & ~previous[name]).any(), "no weight comes back"
            assert model.get_parameter(name).detach().equal(original[name] * mask)
        previous = masks


def test_fewer_nonzeros_than_asked_for_are_all_kept_and_reported():
    model = network([torch.tensor([[0.0, 1.0, 0.0, -2.0]]), torch.tensor([[0.0, 0.0, 3.0, 0.0]])])
    with pytest.warns(UserWarning, match="5 weights were to be kept, but only 3 are nonzero"):
        masks = ez.prune(model, nonzeros=5)
    assert [mask.tolist() for mask in masks.values()] == [
        [[False, True, False, True]],
        [[False, False, True, False]],
    ]
    # 2 of each layer: the second one has only 1
    with pytest.warns(UserWarning, match="4 weights were to be kept, but only 3 are nonzero"):
        ez.prune(model, sparsity=0.5, scope="layer")
    assert ez.prune(model, nonzeros=3).nonzeros == 3


def test_weights_in_channels_last_order_rank_by_their_logical_index():
    values = torch.arange(2 * 3 * 2 * 2).remainder(3).sub(1).view(2, 3, 2, 2).float()  # -1, 0, 1
    assert values.count_nonzero() == 16
    model = nn.Conv2d(3, 2, 2, bias=False)
    model.weight.data = model.weight.data.to(memory_format=torch.channels_last)
    fill(model.weight, values)
    assert not model.weight.is_contiguous()
    masks = ez.prune(model, nonzeros=5)
    assert masks["weight"].numpy().tolist() == keep_by_numpy([values], 5)[0].tolist()
    assert model.weight.detach().equal(values * masks["weight"])
    assert not model.weight.is_contiguous(), "and stay in that order"
    assert masks.kept_zeros == {}


def test_transposed_weights_are_pruned_in_place():
    model = nn.Linear(3, 2, bias=False)
    model.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [2.0, 2.0], [0.5, 3.0]]).T)
    masks = ez.prune(model, nonzeros=3)
    # rows of the weight are (1, 2, 0.5) and (2, 2, 3): 3, then the first two of the 2s
    assert model.weight.tolist() == [[0, 2, 0], [2, 0, 3]]
    assert masks["weight"].tolist() == [[False, True, False], [True, False, True]]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"threshold": 0.1}, {"nonzeros": 2}])
def test_weights_that_cannot_be_ranked_are_refused_and_nothing_changes(bad, options):
    model = network([torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, bad, 0.01]])])
    before = [w.detach().clone() for w in model.parameters()]
    with pytest.raises(ez.EllzeroError, match=r"1\.weight \(1, 3\) holds NaN or inf"):
        ez.prune(model, **options)
    for w, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(w.detach(), old, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to go by; expected exactly one"),
        ({"sparsity": 0.5, "nonzeros": 3}, "sparsity and nonzeros; expected exactly one"),
        ({"sparsity": 0.5, "threshold": 0.1, "nonzeros": 3}, "expected exactly one"),
        ({"sparsity": 0.5, "scope": "local"}, "scope is 'local'; expected 'global' or 'layer'"),
        ({"nonzeros": 3, "scope": "layer"}, "with scope='layer' give sparsity"),
        *(
            ({"sparsity": s, "scope": scope}, r"sparsity is .*expected a number in \[0, 1\)")
            for s in (-0.1, 1, 1.0, 1.5, 98, np.nan, np.inf, "0.5", True, False, [0.5])
            for scope in ("global", "layer")
        ),
        *(
            ({"threshold": t}, "threshold is .*expected a finite number >= 0")
            for t in (-0.1, np.nan, np.inf, "0.1", True, [0.1])
        ),
        *(
            ({"nonzeros": n}, r"nonzeros is .*expected a whole number in 1\.\.16")
            for n in (0, -1, 17, 2.0, 0.5, "3", True, [3])
        ),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    with pytest.raises(ez.EllzeroError, match=message):
        ez.prune(model, **options)
    assert model.weight.detach().equal(before)


def test_numbers_of_numpy_are_numbers():
    torch.manual_seed(0)
    assert ez.prune(nn.Linear(4, 4), nonzeros=np.int64(3)).nonzeros == 3  # pyright: ignore[reportArgumentType]
    assert ez.prune(nn.Linear(4, 4), sparsity=np.float32(0.5)).nonzeros == 8  # pyright: ignore[reportArgumentType]


def test_nothing_to_prune():
    with pytest.raises(ez.EllzeroError, match="no weights selected"):
        ez.prune(nn.LayerNorm(3), sparsity=0.5)


@pytest.mark.parametrize("flushed", [False, True])
def test_denormal_weights_are_zero_where_they_are_flushed(flushed):
    model: Any = nn.Linear(10, 10, bias=False)
    denormal = torch.arange(1, 61, dtype=torch.int32).view(torch.float32)  # 1e-45 to 8e-44
    with torch.no_grad():
        model.weight.fill_(1.0).view(-1)[:60] = denormal
    if not flushed:
        assert ez.prune(model, nonzeros=50).nonzeros == 50
        return
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        with pytest.warns(UserWarning, match="only 40 are nonzero"):
            assert ez.prune(model, nonzeros=50).nonzeros == 40
    finally:
        torch.set_flush_denormal(False)
    assert int(model.weight.count_nonzero()) == 40


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "threshold", [0.0, 0.1, 0.3, 1 / 3, 0.30078125, 1e-30, 1e-9, 65_519.0, 1e30]
)
def test_a_threshold_is_compared_in_full_and_not_rounded_to_the_weights(dtype, threshold):
    model = nn.Linear(400, 30, bias=False)
    with torch.no_grad():
        torch.manual_seed(0)
        model.weight.uniform_(-0.6, 0.6)
        # numbers next to the threshold on either side, as far as the dtype has them
        near = torch.tensor([threshold], dtype=torch.float64).to(dtype)
        near = near.clamp(max=torch.finfo(dtype).max)
        model.weight[0, 0] = near.float()
    model.to(dtype)
    above = sum(abs(w) > threshold for w in model.weight.flatten().tolist())
    masks = ez.prune(model, threshold=threshold)
    assert masks.nonzeros == above


def test_numbers_that_round_up_to_the_threshold_stay_if_they_are_above_it():
    # the neighbours of 0.3 in bfloat16 are 0.298828125 and 0.30078125
    model = nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    fill(model.weight, [0.298828125, 0.30078125, -0.30078125, 0.5])
    assert ez.prune(model, threshold=0.3).nonzeros == 3


def test_a_threshold_may_be_any_number():
    model = nn.Linear(4, 1, bias=False)
    fill(model.weight, [0.09, 0.11, -0.5, 0.0])
    tenth: Any = Fraction(1, 10)
    assert ez.prune(model, threshold=tenth).nonzeros == 2


# Layers that would lose everything


def two_layers() -> tuple[Any, Any]:
    """A layer of large weights and one of small ones, which a global ranking empties."""
    model: Any = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    fill(model[0].weight, [[9, -8, 7], [6, 5, -4]])
    fill(model[1].weight, [[0.3, -0.1], [0.2, 0.4]])
    return model, model


def test_layers_of_which_nothing_is_left_are_named():
    model, _ = two_layers()
    with pytest.warns(ez.EllzeroWarning, match=r"1 of 2 layers have no weight left: 1\.weight;"):
        ez.prune(model, nonzeros=4)


@pytest.mark.parametrize(
    ("keep", "first", "second"),
    [
        (1, [9, -8, 7, 0, 0, 0], [0, 0, 0, 0.4]),
        (2, [9, -8, 0, 0, 0, 0], [0.3, 0, 0, 0.4]),
    ],
)
def test_of_each_layer_the_largest_stay_and_the_count_is_exact(keep, first, second):
    model, layers = two_layers()
    assert ez.prune(model, nonzeros=4, keep_per_layer=keep).nonzeros == 4
    assert layers[0].weight.flatten().tolist() == first
    torch.testing.assert_close(layers[1].weight.flatten(), torch.tensor(second))


def test_what_is_kept_of_layers_goes_with_every_way_to_prune():
    model, layers = two_layers()
    assert ez.prune(model, threshold=5.0, keep_per_layer=2).nonzeros == 4 + 2
    assert layers[1].weight.count_nonzero() == 2
    model, layers = two_layers()
    ez.prune(model, sparsity=0.9, scope="layer", keep_per_layer=2)
    assert [int(layer.weight.count_nonzero()) for layer in layers] == [2, 2]
    model, layers = two_layers()
    with torch.no_grad():
        layers[1].weight[0] = 0
    with pytest.warns(ez.EllzeroWarning, match="only 8 are nonzero"):  # all nonzeros of the small
        ez.prune(model, nonzeros=9, keep_per_layer=3)


@pytest.mark.parametrize("seed", range(20))
def test_with_least_counts_no_other_choice_has_larger_weights(seed):
    """The sum of what stays is the largest of all choices that keep enough of each layer."""
    torch.manual_seed(seed)
    tensors = [torch.randn(4) * scale for scale in (1.0, 0.2, 0.05)]
    count, least = 6, [seed % 3, (seed // 3) % 3, (seed // 9) % 3]
    masks = largest(tensors, count, least)
    assert sum(int(mask.sum()) for mask in masks) == count
    best = 0.0
    for numbers in itertools.product(range(5), repeat=3):
        if sum(numbers) == count and all(n >= m for n, m in zip(numbers, least, strict=True)):
            tops = (w.abs().topk(n).values.sum() for w, n in zip(tensors, numbers, strict=True))
            best = max(best, float(sum(tops)))
    kept = sum(float(w.abs()[mask].sum()) for w, mask in zip(tensors, masks, strict=True))
    assert kept == pytest.approx(best)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nonzeros": 3, "keep_per_layer": 2}, "3 weights are to stay, but 4 to be kept"),
        ({"nonzeros": 3, "keep_per_layer": -1}, "keep_per_layer is -1; expected a whole number"),
        ({"nonzeros": 3, "keep_per_layer": 1.0}, "keep_per_layer is 1.0; expected a whole number"),
    ],
)
def test_numbers_to_keep_that_make_no_sense(options, message):
    model, _ = two_layers()
    before = model[0].weight.clone()
    with pytest.raises(ez.InputError, match=message):
        ez.prune(model, **options)
    assert torch.equal(model[0].weight, before)
