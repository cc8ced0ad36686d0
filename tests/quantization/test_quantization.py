"""Quantization: few values a layer, zeros kept, bits by a budget, values trained."""

import copy
import io
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ellzero as ez
from cases import anatomy, fill
from ellzero.codebook import find_codebook, round_half
from ellzero.quantization.kmeans import kmeans
from small import classification, convnet, images, mlp, regression, tensors_equal, trained


def linear(values: Any, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """A dense layer without bias that holds these weights."""
    w = torch.tensor(values, dtype=dtype)
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=dtype)
    fill(layer.weight, w)
    return layer


def has_16_bits(values: Tensor) -> bool:
    """Whether float16 times one power of two holds every value exactly."""
    x = values.detach().double().numpy()
    _, exponent = np.frexp(np.abs(x).max(initial=0))
    scaled = np.ldexp(x, 15 - int(exponent))
    return bool((scaled.astype(np.float16).astype(np.float64) == scaled).all())


# k-means


def least_error(values: np.ndarray, count: int) -> float:
    """The squared error of the best clusters of all, by dynamic programming over their ends."""
    x = np.sort(values)
    n = len(x)
    cost = np.full((n + 1, n + 1), math.inf)
    for i in range(n):
        for j in range(i + 1, n + 1):
            cost[i, j] = ((x[i:j] - x[i:j].mean()) ** 2).sum()
    best = cost[0]
    for _ in range(count - 1):
        best = np.minimum(best, (best[:, None] + cost).min(0))
    return float(best[n])


@pytest.mark.parametrize("count", [2, 4, 8, 16])
@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform", "exponential"])
def test_clusters_are_nearly_the_best_there_are(draw, count):
    values = getattr(np.random.default_rng(count), draw)(size=90)
    error = float(((kmeans(torch.tensor(values), count).numpy() - values) ** 2).sum())
    best = least_error(values, count)
    assert best <= error * (1 + 1e-9)
    assert error <= 1.3 * best


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60), st.integers(1, 12))
def test_every_value_becomes_the_nearest_mean_of_its_cluster(values, count):
    x = torch.tensor(values, dtype=torch.float64)
    found = kmeans(x, count)
    centres = found.unique()
    assert len(centres) == min(count, len(x.unique()))
    for centre in centres:
        assert torch.isclose(x[found == centre].mean(), centre, atol=1e-9)
    nearest = (x[:, None] - centres).abs().min(1).values
    # Lloyd's algorithm stops early only where a cluster would become empty; none is here
    assert torch.all((x - found).abs() <= nearest + 1e-6)


def test_equal_values_are_one_point_however_many_they_are():
    x = torch.tensor([0.1] * 1000 + [0.7, 0.9])
    assert kmeans(x, 2).unique().tolist() == pytest.approx([0.1, 0.8])
    assert kmeans(x, 3).float().equal(x)


def test_tiny_values_beside_a_huge_one_are_told_apart():
    # in sums of everything before them they are lost, so that their mean is 0 there
    x = torch.tensor([-1e8, 1e-12, 2e-12, 3e-12], dtype=torch.float64)
    assert len(kmeans(x, 3).unique()) == 3


# codebooks of k-means


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_a_layer_has_few_values_of_16_bits_and_its_zeros(bits, dtype):
    torch.manual_seed(bits)
    layer = nn.Linear(60, 40, bias=False, dtype=dtype)
    ez.prune(layer, sparsity=0.5)
    original = layer.weight.detach().clone()
    quantized = ez.quantize(layer, bits=bits)
    w = layer.weight.detach()
    assert torch.equal(w == 0, original == 0)
    assert len(w[w != 0].unique()) == 2**bits
    assert quantized.bits == {"weight": bits}
    assert has_16_bits(w)
    error = float(((w - original) ** 2).sum() / (original**2).sum())
    assert quantized.errors["weight"] == pytest.approx(error, rel=1e-4)
    # n values cost about (range / n)^2 / 12 each, and k-means is no worse than even steps are
    step = 2 * float(original.abs().max()) / 2**bits
    assert error < step**2 / 12 * original.count_nonzero() / (original**2).sum() + 1e-6


def test_values_that_cancel_stay_nonzero():
    layer = linear([[-1e-9, 1e-9, 1.0, 2.0, -3.0, 0.0]])
    ez.quantize(layer, bits=2)
    w = layer.weight.detach()[0]
    assert w[2:].tolist() == [1.0, 2.0, -3.0, 0.0]
    assert w[0] == w[1] != 0
    assert abs(float(w[0])) < 1e-9
    assert has_16_bits(w)


def test_few_values_take_fewer_bits_than_asked_for():
    layer = linear([[0.5, -0.25, 0.0], [0.5, 0.5, 1.0]])
    quantized = ez.quantize(layer, bits=6)
    assert layer.weight.tolist() == [[0.5, -0.25, 0.0], [0.5, 0.5, 1.0]]
    assert quantized.bits == {"weight": 2}
    assert quantized.errors == {"weight": 0}


def test_a_layer_of_zeros_stays_one():
    for method in ("kmeans", "uniform", "int8"):
        layer = linear([[0.0, 0.0]])
        assert ez.quantize(layer, method=method).bits == {"weight": 0}
        assert layer.weight.tolist() == [[0, 0]]


@pytest.mark.parametrize("options", [{"bits": 3}, {"method": "int8"}], ids=str)
def test_quantizing_twice_is_quantizing_once(options):
    model = mlp()
    ez.quantize(model, **options)
    once = copy.deepcopy(model)
    ez.quantize(model, **options)
    assert tensors_equal(model, once)


def test_layers_have_bits_of_their_own():
    model: Any = mlp()
    quantized = ez.quantize(model, bits={"0.weight": 5, "2.weight": 2})
    assert quantized.bits == {"0.weight": 5, "2.weight": 2}
    assert len(model[2].weight.unique()) == 4


def test_only_the_weights_given_are_quantized():
    model: Any = mlp()
    other = model[0].weight.detach().clone()
    assert list(ez.quantize(model, weights=ez.select(model, include=["2.weight"]))) == ["2.weight"]
    assert torch.equal(model[0].weight, other)
    assert len(model[2].weight.unique()) == 16


# int8


def test_int8_is_whole_multiples_of_one_scale():
    torch.manual_seed(0)
    layer = nn.Linear(50, 30, bias=False)
    fill(layer.weight, torch.randn(30, 50) * torch.rand(30, 50).round())
    original = layer.weight.detach().double().numpy()
    quantized = ez.quantize(layer, method="int8")
    w = layer.weight.detach().double().numpy()
    scale = np.abs(w).max() / 127
    assert scale == pytest.approx(np.abs(original).max() / 127, rel=2**-11)
    assert has_16_bits(torch.tensor([scale]))
    assert np.array_equal(w / scale, np.round(w / scale))
    assert np.abs(w - original).max() <= scale / 2 + 127 * scale * 2**-11
    assert (w[original == 0] == 0).all()
    book = quantized["weight"]
    assert book.scale == scale
    assert book.integers is not None
    assert int(book.integers.abs().max()) == 127


def test_int8_by_hand():
    # the scale is 1/64: 0.0077 is just under half of it, 0.0079 just over
    layer = linear([[127 / 64, -1.0, 0.0077, 0.0079, 0.0]])
    ez.quantize(layer, method="int8")
    assert layer.weight.tolist() == [[127 / 64, -1.0, 0.0, 1 / 64, 0.0]]


# uniform values


def test_uniform_values_have_the_coarsest_step_that_errs_no_more_than_k_means():
    # four clusters of 1 ... 5 err by 1/2: two neighbours become their mean. Steps of 5/1, 5/2, 5/3
    # and 5/4 err by more: 10.0, 2.5, 0.78, 0.625; a step of 1 by nothing
    layer = linear([[1.0, -2.0, 3.0, 4.0, 5.0, 0.0]])
    quantized = ez.quantize(layer, bits=2, method="uniform")
    assert quantized["weight"].scale == 1.0
    # eight err by nothing, and so does a step of 2 where all are even
    layer = linear([[2.0, -4.0, 6.0, 10.0, 14.0, 0.0]])
    assert ez.quantize(layer, bits=3, method="uniform")["weight"].scale == 2.0


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_uniform_values_are_as_exact_as_a_codebook_and_take_fewer_bytes(bits, tmp_path):
    """Their values are told by one step, and frequent ones take fewer bits."""
    torch.manual_seed(0)
    model = nn.Linear(200, 50, bias=False)
    fill(model.weight, torch.randn(50, 200) * (torch.rand(50, 200) < 0.3))
    original = model.weight.detach().double().numpy()
    other = copy.deepcopy(model)
    uniform = ez.quantize(model, bits=bits, method="uniform")
    kmeans = ez.quantize(other, bits=bits)
    assert 0.6 < uniform.errors["weight"] / kmeans.errors["weight"] <= 1
    scale, w = uniform["weight"].scale, model.weight.detach().double().numpy()
    assert scale is not None
    assert np.array_equal(w, np.round(original / scale) * scale)
    sizes = [ez.pack(net, tmp_path / "net.ellz").size_bytes for net in (model, other)]
    assert sizes[0] < sizes[1]
    assert tensors_equal(ez.load(tmp_path / "net.ellz", copy.deepcopy(other)), other)


def test_where_k_means_is_more_exact_than_int8_uniform_values_are_int8():
    torch.manual_seed(0)
    layer: Any = nn.Linear(100, 10, bias=False)
    other = copy.deepcopy(layer)
    ez.quantize(layer, bits=8, method="uniform")
    ez.quantize(other, method="int8")
    assert torch.equal(layer.weight, other.weight)


# what is stored beside the weights


def test_biases_are_rounded_to_16_bits():
    model: Any = mlp()
    bias = model[0].bias.detach().clone()
    ez.quantize(model)
    assert has_16_bits(model[0].bias)
    assert not torch.equal(model[0].bias, bias)
    assert torch.allclose(model[0].bias, bias, rtol=2**-11, atol=0)


def test_batch_normalizations_are_rounded_only_once_they_are_traced():
    model = trained(images(), convnet(), steps=3)
    before = copy.deepcopy(model[1].state_dict())
    traced = ez.trace(model, torch.zeros(1, 2, 6, 6))
    ez.quantize(model)
    assert all(torch.equal(before[name], now) for name, now in model[1].state_dict().items())
    scale = traced.weight("1.scale").clone()
    assert not has_16_bits(scale)
    ez.quantize(traced)
    assert has_16_bits(traced.weight("1.scale"))
    assert torch.allclose(traced.weight("1.scale"), scale, rtol=2**-10)


@pytest.mark.parametrize("options", [{"bits": 4}, {"method": "int8"}])
def test_what_was_quantized_before_it_was_folded_stays_so(tmp_path, options):
    """Rows of 16 values, each scaled by its normalization, would be hundreds of values."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(12).eval()
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    model, x = nn.Sequential(nn.Conv2d(4, 12, 3), norm, nn.ReLU()).eval(), torch.randn(2, 4, 6, 6)
    book = ez.quantize(model, **options)["0.weight"]
    compacted = ez.compact(model, x)
    assert compacted.kept[0].startswith("1 stays a scale and a shift: 0 before it was quantized")
    after = find_codebook(compacted.model.weight("0.weight"))
    assert after is not None
    assert torch.equal(after.values, book.values)
    torch.testing.assert_close(compacted.model(x), model(x))
    (layer,) = ez.export_c(model, tmp_path / "net", x).layers
    assert layer.values == ("codebook" if "bits" in options else "int8")
    # a network of integers has scales of its own: there it is folded, in either order
    one, other = (ez.quantize(m, activations=8, data=x).model for m in (model, compacted.model))
    assert one.graph == other.graph
    assert [node.op.kind for node in one.graph.nodes].count("integer_conv") == 1


def test_a_traced_network_gets_the_weights_that_its_original_gets():
    model: Any = convnet()
    traced = ez.trace(model, torch.zeros(1, 2, 6, 6))
    quantized, expected = ez.quantize(traced, bits=3), ez.quantize(model, bits=3)
    assert list(quantized) == ["0.weight", "3.weight", "6.weight"]
    assert quantized.bits == expected.bits == dict.fromkeys(quantized, 3)
    for name in quantized:
        assert torch.equal(traced.weight(name), model.get_parameter(name))


def test_nothing_is_added_to_the_network():
    model: Any = mlp()
    before = anatomy(model)
    ez.quantize(model).finetune(classification(), epochs=1)
    assert anatomy(model) == before


@given(st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=5))
def test_rounding_to_16_bits_twice_is_rounding_once(values):
    once = round_half(torch.tensor(values))
    assert torch.equal(round_half(once), once)


def test_a_largest_value_that_rounds_up_to_a_power_of_two():
    # float16 of 0.99999 is 1; the small one lies on a grid that is twice as wide under 1
    once = round_half(torch.tensor([0.99999, 5 * 2.0**-39]))
    assert once[0] == 1
    assert torch.equal(round_half(once), once)


# a budget


def errors_by_width(data: ez.Data, model: nn.Module) -> dict[int, float]:
    found = {}
    for bits in range(2, 9):
        tried = copy.deepcopy(model)
        ez.quantize(tried, bits=bits)
        found[bits] = ez.evaluate(tried, data, "validation").loss
    return found


def test_a_budget_finds_the_fewest_bits_then_fewer_for_each_layer():
    data = classification()
    model = trained(data, mlp(seed=3))
    dense = ez.evaluate(model, data, "validation").loss
    by_width = errors_by_width(data, model)
    limit = 1.025
    common = next(bits for bits, loss in by_width.items() if loss <= limit * dense)
    assert 2 < common < 8, "else the test says nothing"
    original = copy.deepcopy(model)
    quantized = ez.quantize(model, data=data, budget=ez.Budget(max_loss_increase=limit - 1))
    assert ez.evaluate(model, data, "validation").loss <= limit * dense
    # the expected bits, by quantizing copies: the first layer has more nonzeros
    expected = {"0.weight": common, "2.weight": common}  # the order matters here
    for name in expected:
        while expected[name] > 2:
            tried = copy.deepcopy(original)
            fewer = {**expected, name: expected[name] - 1}
            ez.quantize(tried, bits=fewer)
            if ez.evaluate(tried, data, "validation").loss > limit * dense:
                break
            expected = fewer
    assert quantized.bits == expected == {"0.weight": 5, "2.weight": 3}
    again = copy.deepcopy(original)
    ez.quantize(again, bits=expected)
    assert tensors_equal(again, model)


def test_a_wide_budget_takes_two_bits_everywhere():
    data = classification()
    model = trained(data, mlp())
    quantized = ez.quantize(model, data=data, budget=ez.Budget(max_accuracy_drop=100))
    assert set(quantized.bits.values()) == {2}


def test_a_missed_budget_leaves_the_network_and_names_the_best_found():
    model = mlp()
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    own = (x, model(x).detach())  # any other answers than its own are worse

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return 1 + 1000 * (outputs - y).square().mean()

    data = ez.Data(own, own, loss=loss, score="loss")
    before = copy.deepcopy(model)
    # 96 and 48 weights have at most 128 values, so that 8 bits are no better than 7
    with pytest.raises(ez.BudgetError, match=r"the best found, 7 bits, lost \S+\. Allow more"):
        ez.quantize(model, data=data, budget=ez.Budget(max_loss_increase=0.0))
    assert tensors_equal(model, before)


def test_an_interrupt_leaves_the_network_as_it_was():
    calls = []

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return outputs.mean() * 0

    data = classification(score=score)
    model: Any = mlp()
    before = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        ez.quantize(model, data=data, budget=ez.Budget(max_loss_increase=0.0))
    assert tensors_equal(model, before)


# training the values


@pytest.mark.parametrize(
    "options",
    [{"bits": 2}, {"bits": 3}, {"method": "int8"}, {"method": "uniform", "bits": 3}],
    ids=str,
)
def test_finetuning_trains_the_values_and_nothing_else(options):
    data = classification()
    model = trained(data, mlp(seed=4))
    quantized = ez.quantize(model, **options)
    before = copy.deepcopy(model)
    codes = {name: book.codes for name, book in quantized.items()}
    start = ez.evaluate(model, data, "validation")
    # a pass is only two steps, so the rate is high
    reached = quantized.finetune(data, epochs=10, learning_rate=0.03, batch_size=32)
    assert reached == ez.evaluate(model, data, "validation")
    assert reached.better_than(start)
    for name, book in quantized.items():
        assert torch.equal(book.codes, codes[name]), "zeros and codes stay"
        assert not torch.equal(model.get_parameter(name), before.get_parameter(name))
        if "method" in options:
            assert book.scale is not None
            assert has_16_bits(torch.tensor([book.scale]))
        else:
            assert has_16_bits(book.values)
    assert torch.equal(model[0].bias, before[0].bias)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_first_step_follows_the_sum_of_the_weights_gradients():
    # one example, loss (x.w - y)^2: Adam's first step moves each factor by the learning rate
    data = ez.Data(*[(torch.tensor([[1.0, 2.0, -1.0]]), torch.tensor([[2.0]]))] * 2)
    layer = linear([[0.5, 0.5, 1.0]])
    # gradients of the weights: 2 (0.5 - 2) (1, 2, -1) = (-3, -6, 3): 0.5 rises and 1 falls
    ez.quantize(layer).finetune(data, epochs=1, learning_rate=0.25)
    assert layer.weight.tolist() == [[0.625, 0.625, 0.75]]
    book = find_codebook(layer.weight)
    assert book is not None
    values = book.values.clone().requires_grad_()
    book.expand(values).backward(torch.tensor([[-3.0, -6.0, 3.0]]))
    assert values.grad is not None
    assert values.grad.tolist() == [-9.0, 3.0]


def test_finetuning_never_ends_worse_than_it_began():
    data = classification()
    model = trained(data, mlp())
    quantized = ez.quantize(model, bits=4)
    before = copy.deepcopy(model)
    start = ez.evaluate(model, data, "validation")
    assert quantized.finetune(data, epochs=2, learning_rate=1e4) == start
    assert tensors_equal(model, before)


def test_an_interrupted_finetuning_leaves_the_best_so_far():
    evaluations = []

    def score(outputs: Tensor, targets: Tensor) -> Tensor:
        evaluations.append(1)
        if len(evaluations) == 2:
            raise KeyboardInterrupt
        return outputs.mean() * 0

    data = classification(score=score)
    model = trained(data, mlp())
    quantized = ez.quantize(model, bits=3)
    before = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        quantized.finetune(data)
    assert tensors_equal(model, before)


@pytest.mark.parametrize(
    ("progress", "is_terminal", "is_shown"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_a_bar_is_shown_on_a_terminal_where_it_is_not_unwanted(
    progress, is_terminal, is_shown, monkeypatch
):
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    def written(call: Callable[[], object]) -> str:
        stream = Stream()
        with monkeypatch.context() as patch:
            patch.setenv("TERM", "xterm")
            patch.setattr(sys, "stderr", stream)
            call()
        return stream.getvalue()

    model, data, budget = mlp(), classification(), ez.Budget(max_accuracy_drop=100)
    found = written(lambda: ez.quantize(model, data=data, budget=budget, progress=progress))
    assert ("bits are enough" in found) == is_shown
    quantized = ez.quantize(model)
    found = written(lambda: quantized.finetune(data, epochs=1, progress=progress))
    assert ("score" in found) == is_shown


def test_finetuning_is_deterministic_and_leaves_the_generators_alone():
    data = images()
    models = [trained(images(), convnet()) for _ in range(2)]
    state = torch.get_rng_state()
    for model in models:
        normalization = copy.deepcopy(model[1].state_dict())
        ez.quantize(model, bits=2).finetune(data, epochs=2, seed=3)
        after = model[1].state_dict()
        assert all(torch.equal(after[name], normalization[name]) for name in after)
        assert model.training
    assert tensors_equal(*models)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_traced_network_is_finetuned_too():
    data = classification()
    model = trained(data, mlp(seed=4))
    traced = ez.trace(model, torch.zeros(1, 6))
    for network in (model, traced):
        ez.quantize(network, bits=2).finetune(data, epochs=5, learning_rate=0.03, batch_size=32)
    assert torch.allclose(traced.weight("0.weight"), model[0].weight, rtol=1e-2)


def test_a_traced_network_of_one_layer_is_finetuned_too():
    # its weight is named as a method of the traced network
    traced = ez.trace(nn.Linear(6, 3), torch.zeros(1, 6))
    data = classification()
    quantized = ez.quantize(traced, bits=3)
    start = ez.evaluate(traced, data, "validation")
    assert quantized.finetune(data, epochs=3, learning_rate=0.03).better_than(start)
    assert quantized.bits == {"weight": 3}


def test_weights_that_were_frozen_are_not_trained():
    model = mlp()
    quantized = ez.quantize(model)
    model.requires_grad_(False)
    with pytest.raises(ez.InputError, match="all are frozen"):
        quantized.finetune(classification())


# mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, r"0\.weight: bits is 1; expected a whole number from 2 to 8"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": 4.0}, r"bits is 4\.0"),
        ({"bits": True}, "bits is True"),
        ({"bits": {"0.weight": 4}}, r"bits lacks 2\.weight"),
        ({"bits": {"0.weight": 4, "2.weight": 4, "1.weight": 4}}, r"names '1\.weight'; did you"),
        ({"method": "grid"}, "method is 'grid'; expected 'kmeans', 'uniform' or 'int8'"),
        ({"method": "int8", "bits": 4}, "int8 has 8"),
        ({"budget": ez.Budget(max_accuracy_drop=1.0)}, "data and a budget go together"),
        ({"data": classification()}, "data and a budget go together"),
        (
            {"data": classification(), "activations": 8, "method": "uniform"},
            "all weights are int8; leave bits, method",
        ),
        (
            {"data": classification(), "budget": ez.Budget(max_accuracy_drop=1.0), "bits": 4},
            "without bits or method",
        ),
        (
            {"data": regression(), "budget": ez.Budget(max_accuracy_drop=1.0)},
            "use max_loss_increase",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_mistakes_are_named(options, message):
    model: Any = mlp()
    before = copy.deepcopy(model)
    with pytest.raises(ez.InputError, match=message):
        ez.quantize(model, **options)
    assert tensors_equal(model, before)


@pytest.mark.parametrize("name", ["2.weight", "2.bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_and_nothing_changes(name, value):
    model: Any = mlp()
    model.get_parameter(name).data.view(-1)[1] = value
    first = model[0].weight.detach().clone()
    with pytest.raises(ez.InputError, match=rf"{name} \(3.*\) holds NaN or inf"):
        ez.quantize(model)
    assert torch.equal(model[0].weight, first)


def test_a_network_that_was_changed_afterwards():
    model: Any = mlp(outputs=20)
    quantized = ez.quantize(model)
    fill(model[2].weight, torch.randn(20, 16))
    assert quantized["0.weight"].bits == 4
    with pytest.raises(ez.InputError, match=r"2\.weight has more than 256 distinct values"):
        quantized.finetune(classification())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected a whole number >= 1"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0; expected a finite number > 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
    ],
    ids=str,
)
def test_settings_of_the_finetuning_are_checked(options, message):
    quantized = ez.quantize(mlp())
    with pytest.raises(ez.InputError, match=message):
        quantized.finetune(classification(), **options)


def test_data_of_another_network():
    with pytest.raises(ez.InputError, match="do not go with targets"):
        ez.quantize(mlp()).finetune(images())


def test_weights_of_another_network_are_refused():
    with pytest.raises(ez.InputError, match="of another network"):
        ez.quantize(mlp(), weights=ez.select(mlp(seed=1)))


# biases


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_biases_become_few_multiples_of_a_step(bits):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    before = {name: model.get_parameter(name).clone() for name in ("0.bias", "2.bias")}
    ez.quantize(model, bits=4, biases=bits)
    top = 2 ** (bits - 1) - 1
    for name, original in before.items():
        bias = model.get_parameter(name).double()
        step = original.double().abs().max() / top
        assert len(bias.unique()) <= 2 * top + 1
        assert (bias - original).abs().max() <= 0.501 * step  # the step has 11 bits itself
        used = bias[bias != 0].abs().min()
        assert torch.equal((bias / used).round() * used, bias) or bits > 2


def test_vectors_that_are_no_biases_keep_16_bits():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 40), torch.nn.PReLU(40), torch.nn.Linear(40, 3))
    torch.nn.init.normal_(model.get_parameter("1.weight"))
    ez.quantize(model, bits=4, biases=2)
    assert len(model.get_parameter("1.weight").unique()) > 30


@pytest.mark.parametrize("biases", [1, 9, 6.0, True, "6"])
def test_bits_of_biases_that_make_no_sense_are_refused(biases):
    with pytest.raises(ez.InputError, match=r"biases is .*whole number of bits from 2 to 8"):
        ez.quantize(torch.nn.Linear(3, 3), biases=biases)
    with pytest.raises(ez.InputError, match=r"biases \(--biases\) is"):
        ez.Quantization(bits=4, biases=biases)


def test_biases_of_few_bits_make_a_packed_file_smaller(tmp_path):
    torch.manual_seed(0)
    sizes = []
    for biases in (None, 6):
        model = torch.nn.Linear(4, 200)
        ez.quantize(model, bits=4, biases=biases)
        sizes.append(ez.pack(model, tmp_path / "x.ellz", torch.zeros(1, 4)).size_bytes)
        assert torch.equal(ez.load(tmp_path / "x.ellz").get_parameter("bias"), model.bias)
    assert 200 < sizes[0] - sizes[1] < 250  # 200 times 16 bits less than 6 to 8
