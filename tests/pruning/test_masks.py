import copy
import io
import pickle

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import anatomy, fill, small_network


def pruned_line() -> tuple[nn.Linear, ez.Masks]:
    """The weights 1, 0, -2, 0, with the zeros pruned."""
    model = nn.Linear(4, 1)
    fill(model.weight, [1.0, 0.25, -2.0, -0.5])
    return model, ez.prune(model, nonzeros=2)


def same(a: ez.Masks, b: ez.Masks) -> bool:
    return list(a) == list(b) and all(a[name].equal(b[name]) for name in a)


def test_is_a_mapping_with_counts():
    model, masks = pruned_line()
    assert list(masks) == ["weight"]
    assert len(masks) == 1
    assert masks["weight"].tolist() == [[True, False, True, False]]
    assert (masks.numel, masks.nonzeros, masks.sparsity) == (4, 2, 0.5)
    assert masks.weights["weight"] is model.weight


def test_apply_zeroes_what_is_pruned_and_only_that():
    model, masks = pruned_line()
    fill(model.weight, [5.0, -6.0, 0.0, torch.nan])
    masks.apply()
    assert model.weight.tolist() == [[5.0, 0.0, 0.0, 0.0]]
    assert not torch.signbit(model.weight).any()


class TestStateDict:
    def test_round_trip(self):
        model = small_network()
        masks = ez.prune(model, sparsity=0.7)
        file = io.BytesIO()
        torch.save(masks.state_dict(), file)
        file.seek(0)
        other = small_network(seed=1)
        restored = ez.prune(other, sparsity=0.0)
        assert not same(restored, masks)
        weights = {name: w.detach().clone() for name, w in restored.weights.items()}
        restored.load_state_dict(torch.load(file))
        assert same(restored, masks)
        assert all(w.equal(weights[name]) for name, w in restored.weights.items())
        restored.apply()
        zeros = {name: w == 0 for name, w in restored.weights.items()}
        assert all(zeros[name].equal(~mask) for name, mask in masks.items())

    @pytest.mark.parametrize(
        ("state", "message"),
        [
            ({}, "masks and weights differ in weight"),
            ({"weight": torch.ones(1, 4).bool(), "w2": torch.ones(1).bool()}, "differ in w2"),
            ({"weight": torch.ones(4).bool()}, r"mask of weight is torch.bool \(4,\)"),
            ({"weight": torch.ones(1, 4)}, r"is torch.float32 \(1, 4\); expected torch.bool"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, state, message):
        model, masks = pruned_line()
        before = masks["weight"].clone()
        with pytest.raises(ez.EllzeroError, match=message):
            masks.load_state_dict(state)
        assert masks["weight"].equal(before)
        with pytest.raises(ez.EllzeroError, match=message):
            ez.Masks(ez.select(model), state)


class TestRebuiltFromZeros:
    def test_the_zeros_are_the_masks(self):
        model = small_network()
        masks = ez.prune(model, sparsity=0.7)
        assert masks.kept_zeros == {}
        reloaded = small_network(seed=1)
        reloaded.load_state_dict(model.state_dict())
        assert same(ez.Masks.of(ez.select(reloaded)), masks)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("options", [{"sparsity": 0.7}, {"threshold": 0.1}], ids=str)
    def test_kept_zeros_are_told_apart_by_their_flat_index(self, options, memory_format):
        model = small_network().to(memory_format=memory_format)
        masks = ez.prune(model, **options)
        kernel, dense = model[0].weight, model[6].weight
        # the first and the last weight kept of the kernel, the first of the last layer
        kernel_kept = masks["0.weight"].flatten().nonzero().view(-1).tolist()
        dense_kept = masks["6.weight"].flatten().nonzero().view(-1).tolist()
        zeroed = {"0.weight": [kernel_kept[0], kernel_kept[-1]], "6.weight": [dense_kept[0]]}
        for w, name in ((kernel, "0.weight"), (dense, "6.weight")):
            values = w.detach().flatten().clone()
            values[zeroed[name]] = 0
            fill(w, values)
        assert masks.kept_zeros == zeroed
        assert ez.Masks.of(masks.weights).nonzeros == masks.nonzeros - 3
        assert same(ez.Masks.of(masks.weights, zeroed), masks)

    @pytest.mark.parametrize(
        ("kept", "message"),
        [
            ({"weigt": [0]}, "kept zeros of weigt; did you mean weight"),
            ({"weight": [4]}, "kept zeros of weight reach outside its 4"),
            ({"weight": [-1]}, "kept zeros of weight reach outside its 4"),
        ],
    )
    def test_kept_zeros_of_another_network(self, kept, message):
        model, _ = pruned_line()
        with pytest.raises(ez.EllzeroError, match=message):
            ez.Masks.of(ez.select(model), kept)


@pytest.mark.parametrize("hold", [False, True])
def test_nothing_of_the_network_changes(hold):
    model = small_network()
    before = anatomy(model)
    masks = ez.prune(model, sparsity=0.5)
    if hold:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with masks.hold(optimizer):
            assert anatomy(model) == before
            model(torch.randn(3, 2, 5, 5, dtype=torch.float64)).sum().backward()
            optimizer.step()
            assert anatomy(model) == before
    assert anatomy(model) == before


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_the_network_can_be_copied_and_pickled_under_a_hold(twin_of):
    model = small_network().eval()
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    masks = ez.prune(model, sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with masks.hold(optimizer):
        twin = twin_of(model)
        assert twin(x).equal(model(x))
        assert same(ez.Masks.of(ez.select(twin)), masks)
        # the copy is free: a step of its own optimizer revives its pruned weights
        twin(x).sum().backward()
        torch.optim.SGD(twin.parameters(), lr=0.1).step()
        assert ez.Masks.of(ez.select(twin)).nonzeros > masks.nonzeros
        assert same(ez.Masks.of(masks.weights), masks)


@pytest.mark.parametrize(
    "noted",
    [
        [],
        {"weights": ["weight"]},
        {"weights": "weight", "kept_zeros": {}},
        {"weights": ["weight"], "kept_zeros": [0]},
        {"weights": ["weight"], "kept_zeros": {"weight": [0.5]}},
        {"weights": ["weight"], "kept_zeros": {"weight": [True]}},
        {"weights": ["weight"], "kept_zeros": {"weight": [[0]]}},
        {"weights": ["weight"], "kept_zeros": {"weight": 0}},
        {"weights": [["weight"]], "kept_zeros": {}},
    ],
)
def test_masks_that_a_file_notes_in_another_kind(noted, tmp_path):
    model = nn.Linear(2, 2)
    ez.save(model, tmp_path / "a.safetensors", metadata={"masks": noted})
    with pytest.raises(ez.InputError, match=r"notes masks that make no sense: masks"):
        ez.Masks.read(tmp_path / "a.safetensors", model)
