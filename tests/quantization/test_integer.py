"""Integer networks in PyTorch: what they compute, from which ranges, and what they refuse."""

import math
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import ellzero as ez
from ellzero.graph import Network
from ellzero.operations.integer import (
    IntegerAdd,
    IntegerConv,
    IntegerLinear,
    IntegerPool,
    Lookup,
    Quantize,
)
from ellzero.operations.integer.fixed_point import fixed_point
from small import images, residual


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def rounded(total: int, multiplier: int, zero: int, low: int = -128, high: int = 127) -> int:
    """One rounding of the exact product, then the limits."""
    return max(low, min(high, half_up(Fraction(total * multiplier, 2**32)) + zero))


def test_layers_are_exact_sums_rounded_once():
    """Against whole numbers of any size, at both ends of the zero points."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (2, 7), generator=generator).to(torch.int8)
    weight = torch.randint(-127, 128, (5, 7), generator=generator).to(torch.int8)
    bias = torch.tensor([0, 2**30, -(2**30), 12345, -54321], dtype=torch.int32)
    multiplier = torch.tensor([2**31 - 1, 1, 2**30, 2**20 + 1, 2**24 - 1], dtype=torch.int32)
    weights = {"weight": weight, "bias": bias, "multiplier": multiplier}
    for zero, output_zero in product((-128, 0, 127), repeat=2):
        op = IntegerLinear(zero=zero, output_zero=output_zero, low=-100, high=90)
        y = op.run([x], weights)
        for n, row in product(range(2), range(5)):
            values = zip(weight[row].tolist(), x[n].tolist(), strict=True)
            total = int(bias[row]) + sum(w * (v - zero) for w, v in values)
            expected = rounded(total, int(multiplier[row]), output_zero, -100, 90)
            assert y[n, row] == expected, (zero, output_zero, row)


def test_halves_are_rounded_up():
    weights = {
        "weight": torch.ones(1, 1, dtype=torch.int8),
        "bias": torch.zeros(1, dtype=torch.int32),
        "multiplier": torch.tensor([fixed_point(0.25)], dtype=torch.int32),
    }
    x = torch.tensor([[2], [-2], [6], [-6], [1], [-3]], dtype=torch.int8)
    y = IntegerLinear(zero=0, output_zero=0).run([x], weights)
    assert y.flatten().tolist() == [1, 0, 2, -1, 0, -1]


@pytest.mark.parametrize("padded", [(0, 0), (1, 2)])
def test_convolutions_are_exact_sums(padded):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-128, 128, (1, 4, 9), generator=generator).to(torch.int8)
    weight = torch.randint(-127, 128, (6, 2, 3), generator=generator).to(torch.int8)
    bias = torch.randint(-999, 999, (6,), generator=generator).to(torch.int32)
    multiplier = torch.full((6,), 2**23, dtype=torch.int32)
    op = IntegerConv(
        zero=-128,
        output_zero=3,
        stride=(2,),
        before=padded[:1],
        after=padded[1:],
        dilation=(2,),
        groups=2,
    )
    weights = {"weight": weight, "bias": bias, "multiplier": multiplier}
    y = op.run([x], weights)
    places = (9 + sum(padded) - 5) // 2 + 1
    assert (
        y.shape
        == (1, 6, places)
        == (1, *op.shape([(4, 9)], {n: w.shape for n, w in weights.items()}))
    )
    for out, place in product(range(6), range(places)):
        total = int(bias[out])
        for channel, k in product(range(2), range(3)):
            at = place * 2 + k * 2 - padded[0]
            value = int(x[0, out // 3 * 2 + channel, at]) if 0 <= at < 9 else -128
            total += int(weight[out, channel, k]) * (value + 128)
        assert y[0, out, place] == rounded(total, 2**23, 3)


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("ceil", [True, False])
def test_averages_are_of_as_many_values_as_pytorch_says(ceil, count_padding):
    op = IntegerPool(
        function="average",
        kernel=(3, 2),
        stride=(2, 2),
        padding=(1, 1),
        dilation=(1, 1),
        ceil=ceil,
        count_padding=count_padding,
    )
    x = torch.randint(-128, 128, (2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    expected = nn.functional.avg_pool2d(x.double(), (3, 2), 2, 1, ceil, count_padding)
    torch.testing.assert_close(op.sums(x.double()) / op.counts((6, 6)).double(), expected)


def test_sums_of_two_scales():
    op = IntegerAdd(zeros=(-128, 127), factors=(3, 2**21), shift=2, output_zero=-5)
    x, y = torch.tensor([[-128, 0, 127]] * 2, dtype=torch.int8)[:, None], None
    y = op.run([x[0], torch.tensor([[127, 127, 126]], dtype=torch.int8)], {})
    # 0; 128 * 3 / 4; and far below
    assert y.tolist() == [[-5, 91, -128]]


def test_a_table_is_looked_up():
    table = torch.arange(127, -129, -1).to(torch.int8)
    assert Lookup().run(
        [torch.tensor([[-128, 0, 127]]).to(torch.int8)], {"table": table}
    ).tolist() == [[127, -1, -128]]


def test_floats_become_the_nearest_integer_and_saturate():
    op = Quantize(scale=0.5, zero=-3)
    x = torch.tensor([[0.0, 0.24, 0.25, -0.25, -0.26, 1e30, -math.inf, math.nan]])
    assert op.run([x], {}).tolist() == [[-3, -3, -2, -3, -4, 127, -128, -128]]


@pytest.mark.parametrize("ranges", ["mse", "minmax", "percentile"])
def test_an_integer_network_is_near_the_one_it_was_made_of(ranges):
    model, x = residual(), torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    form = ez.quantize(model, activations=8, data=x, ranges=ranges)
    expected = model(x)
    error = form.model(x).softmax(1) - expected
    assert error.square().mean().sqrt() < 0.03 * expected.std()
    assert form.left_out == ("softmax is left out: the output is what the softmax would read",)
    kinds = [node.op.kind for node in form.model.graph.nodes]
    assert {"integer_conv", "integer_linear", "integer_pool", "integer_add", "lookup"} <= set(kinds)
    floats = [name for name, value in form.model.state_dict().items() if value.is_floating_point()]
    assert floats == []


def same(left: Network, right: Network) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return left.graph == right.graph and all(torch.equal(one[n], other[n]) for n in one)


def test_folded_and_compacted_before_or_after_is_the_same():
    model, x = residual(), torch.randn(32, 2, 8, 8)
    first = ez.quantize(model, activations=8, data=x).model
    assert same(first, ez.quantize(ez.compact(model, x).model, activations=8, data=x).model)
    assert same(first, ez.compact(first).model)


def test_inputs_that_nobody_reads_behind_an_activation():
    """Compaction would select the others in front of it, of which there is no integer form."""
    torch.manual_seed(0)
    last = nn.Conv1d(4, 2, 3)
    model, x = nn.Sequential(nn.Tanh(), last), torch.randn(64, 4, 9)
    with torch.no_grad():
        last.weight[:, 0] = 0
    error = ez.quantize(model, activations=8, data=x).model(x) - model(x)
    assert error.square().mean().sqrt() < 0.03 * model(x).std()
    with pytest.raises(ez.InputError, match="a selection as compaction makes them"):
        ez.quantize(ez.compact(model, x).model, activations=8, data=x)


def test_zeros_stay_zeros():
    model, x = residual(), torch.randn(32, 2, 8, 8)
    ez.prune(model, sparsity=0.6)
    weight = ez.quantize(model, activations=8, data=x).model.state_dict()["second.weight"]
    assert not weight[ez.compact(model, x).model.state_dict()["second.weight"] == 0].any()
    assert weight.any()


def test_saves_and_loads(tmp_path):
    model, x = residual(), torch.randn(32, 2, 8, 8)
    network = ez.quantize(model, activations=8, data=x).model
    packed = ez.pack(network, tmp_path / "net.ellz")
    assert packed.self_contained
    loaded = ez.load(packed.path)
    assert isinstance(loaded, Network)
    assert same(network, loaded)
    assert torch.equal(loaded(x), network(x))


def test_data_give_ranges_and_preprocessing():
    data = images(classes=list("ab"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    network = ez.quantize(model, activations=8, data=data).model
    assert network.graph.preprocess == data.preprocess
    assert network.graph.classes == tuple("ab")
    assert abs(ez.evaluate(network, data).loss - ez.evaluate(model, data).loss) < 0.05


def test_data_in_order_of_their_classes_show_the_ranges_of_all():
    x = torch.cat([torch.zeros(600, 3), torch.linspace(0, 51, 600)[:, None].expand(-1, 3)])
    pair = x, torch.arange(1200) // 600
    for train in (pair, TensorDataset(*pair)):
        data = ez.Data(train, pair)
        form = ez.quantize(nn.Linear(3, 2), activations=8, data=data, ranges="minmax")
        assert form.scales["input"][0] == pytest.approx(51 / 255)


def test_tiny_values():
    """A scale below float32's numbers has no reciprocal that inputs could be multiplied by."""
    with pytest.warns(ez.EllzeroWarning, match="gives the same for all calibration data"):
        form = ez.quantize(nn.Linear(3, 2), activations=8, data=torch.randn(8, 3) * 1e-42)
    assert form.scales["input"][0] == 2.0**-126
    assert form.model(torch.randn(8, 3)).isfinite().all()


def test_scales_and_shifts_of_features():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3).eval()  # in front of the first layer, so that it is not folded
    nn.init.uniform_(norm.weight, -2.0, 2.0)
    nn.init.normal_(norm.bias)
    model, x = nn.Sequential(norm, nn.Linear(3, 2)), torch.randn(64, 3)
    network = ez.quantize(model, activations=8, data=x).model
    assert [node.op.kind for node in network.graph.nodes].count("integer_linear") == 2
    assert (network(x) - model(x)).square().mean().sqrt() < 0.03 * model(x).std()


def test_a_bias_far_outside_of_its_range_is_a_limit():
    first = nn.Linear(3, 4)
    with torch.no_grad():
        first.bias[:2] = torch.tensor([-1e12, -1e9])
    model, x = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2)), torch.randn(64, 3)
    error = ez.quantize(model, activations=8, data=x).model(x) - model(x)
    assert error.square().mean().sqrt() < 0.03 * model(x).std()


def test_outliers():
    """A few values are ten times as large: only the extremes follow them all the way."""
    x = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))
    x[::5000, 0] = 10
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    scales = {}
    for ranges in ("mse", "minmax"):
        few = r"input \(input\): few values set the range, 0 to [\d.]+, 10 times as wide as 99.9%"
        with pytest.warns(ez.EllzeroWarning, match=few):
            form = ez.quantize(model, activations=8, data=x, ranges=ranges)
        scales[ranges] = form.scales["input"]
    form = ez.quantize(model, activations=8, data=x, ranges="percentile")
    scales["percentile"] = form.scales["input"]
    assert scales["minmax"] == (10 / 255, -128)
    assert scales["percentile"][0] < 0.01
    assert scales["mse"][0] < scales["minmax"][0]


def planted(what: str) -> torch.Tensor:
    """Values of 4 channels between 0 and 1, and what is wrong with them."""
    x = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    match what:
        case "one outlier":
            x[7, 2] = 1e4
        case "a scale of nine":
            x[:20, 2] = 9
        case "a channel of zeros":
            x[:, 2] = 0
        case "mostly zeros":
            x *= torch.rand(2000, 4, generator=torch.Generator().manual_seed(1)) < 0.002
        case "a constant channel":
            x[:, 2] = -9
        case "a channel about as large":
            x[:, 2] = 6
    return x


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("one outlier", r"few values set the range, 0 to 1e\+04, \d{4} times"),
        ("a constant channel", r"channel 2 is constant at -9 .* sets the range, 10 times as wide"),
        # 20 of 8,000 are more than one in 1,000; nothing is lost by zeros, nor by a factor of 6
        ("a scale of nine", None),
        ("a channel of zeros", None),
        ("mostly zeros", None),
        ("a channel about as large", None),
    ],
)
def test_what_sets_a_range_for_the_others_is_named(what, expected):
    model, x = nn.Linear(4, 3), planted(what)
    with torch.no_grad():
        model.weight[:, 2] = 0.01  # the layer's own values are ordinary
    if expected is None:
        ez.quantize(model, activations=8, data=x, ranges="minmax")
    else:
        with pytest.warns(ez.EllzeroWarning, match=rf"input \(input\): {expected}"):
            ez.quantize(model, activations=8, data=x, ranges="minmax")


def test_of_one_example_nothing_is_told():
    ez.quantize(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), activations=8, data=torch.ones(1, 3))


def test_a_layer_that_is_dead_on_the_data_is_named_once():
    """Its weights alone do not tell: for larger inputs it would work."""
    torch.manual_seed(0)
    first = nn.Linear(3, 4)
    nn.init.constant_(first.bias, -100)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    match = r"^1 \(activation\): gives the same for all calibration data; it is dead on them$"
    with pytest.warns(ez.EllzeroWarning, match=match):
        ez.quantize(model, activations=8, data=torch.randn(50, 3))


def test_constant_and_dead_layers():
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    model = nn.Sequential(first, nn.ReLU(), last)
    with torch.no_grad():
        first.weight[:2].zero_()  # constant channels
        first.bias[:2] = torch.tensor([5.0, -5.0])
        last.weight[0].zero_()
        last.bias[0] = 1e6  # beside a row a million times smaller
    x = torch.randn(50, 3)
    sets = (
        r"2 \(linear\): channel 0 is constant at 1e\+06 on the calibration data and sets the range"
    )
    with (
        pytest.warns(ez.EllzeroWarning, match="outputs is the same"),
        pytest.warns(ez.EllzeroWarning, match=sets),
    ):
        form = ez.quantize(model, activations=8, data=x)
    torch.testing.assert_close(form.model(x)[:, 0], torch.full((50,), 1e6), rtol=0.01, atol=0)
    dead = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    for parameter in dead.parameters():
        nn.init.zeros_(parameter)
    with pytest.warns(ez.EllzeroWarning, match="the same for every input"):
        assert not ez.quantize(dead, activations=8, data=x).model(x).any()


def test_a_sum_beyond_int32_is_refused_by_name():
    model = nn.Sequential(ones := nn.Linear(140_000, 1, bias=False))
    with torch.no_grad():
        ones.weight.copy_(torch.tensor([1.0, -1.0]).repeat(70_000))  # of which the sum is small
    with pytest.raises(ez.InputError, match=r"0 \(linear\): the sum of output 0 can reach 2\d{9}"):
        ez.quantize(model, activations=8, data=torch.rand(4, 140_000))


class Both(nn.Module):
    """What it reads, and beside it what it makes of that."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.made = nn.Linear(3, 3)
        nn.init.constant_(self.made.weight, factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.made(x)], 1)


def test_what_is_joined_shares_a_scale():
    x = torch.randn(32, 3)
    form = ez.quantize(Both(2.0), activations=8, data=x)
    assert len({form.scales[name] for name in ("x", "made", "cat")}) == 1
    with pytest.raises(ez.InputError, match="share its scale with what it is made of"):
        ez.quantize(Both(1000.0), activations=8, data=x)


class Frames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.recurrent(x)[0]


class Cumulated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


@pytest.mark.parametrize(
    ("model", "shape", "match"),
    [
        (Frames(), (5, 3), "there is no integer form of .*recurrent"),
        (nn.LayerNorm(3), (3,), "there is no integer form of .*layer_norm"),
        (nn.Conv3d(1, 1, 1), (1, 2, 2, 2), "of 3 dimensions"),
        (Cumulated(), (3,), "there is no integer form of .*cumsum"),
    ],
)
def test_what_has_no_integer_form_is_named(model, shape, match):
    with pytest.raises(ez.InputError, match=match):
        ez.quantize(model, activations=8, data=torch.randn(8, *shape))


def test_settings_that_do_not_go_together():
    model, x = nn.Linear(3, 2), torch.randn(8, 3)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"activations": 4, "data": x}, "activations is 4; expected 8"),
        ({"activations": 8}, "ranges of values from data"),
        ({"activations": 8, "data": x, "bits": 4}, "leave bits"),
        ({"activations": 8, "data": x, "ranges": "max"}, "ranges is 'max'"),
        ({"activations": 8, "data": [1.0]}, "are list; expected an ez.Data, or a batch"),
        ({"activations": 8, "data": x.to(torch.uint8)}, r"\(8, 3\) of uint8; .* preprocessed"),
        ({"activations": 8, "data": torch.full((2, 3), math.nan)}, "NaN or inf"),
        ({"data": x}, "a batch of inputs judges no budget"),
    ]
    for options, match in wrong:
        with pytest.raises(ez.InputError, match=match):
            ez.quantize(model, **options)
    form = ez.quantize(model, activations=8, data=x)
    with pytest.raises(ez.InputError, match="of integers already"):
        ez.quantize(form.model, activations=8, data=x)
    with pytest.raises(ez.InputError, match="no weights selected"):
        ez.quantize(form.model)
