"""Packed files: exact bytes, exact weights, and a second reader that knows the page alone."""

import math
import re
import runpy
import struct
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ellz_reader
import ellzero as ez
from ellzero.codebook import round_half
from ellzero.graph import Network
from ellzero.networks.lenet import lenet_5_caffe, lenet_300_100
from ellzero.packed import choosing, reader
from ellzero.packed.entropy import Decoder, Encoder, code_adaptive, code_counted, frequencies
from ellzero.packed.forms import bits_learned
from ellzero.packed.layouts import Layout
from ellzero.packed.lines import EXP, LOG, Geometry
from ellzero.packed.pack import to_bytes
from ellzero.packed.reader import DICTIONARY, read_packed
from ellzero.packed.tensor_fields import DTYPES, Announced
from packed_cases import check_by_the_page, image_weights, odd_weights, packed_network, same_bits
from small import convnet, mlp, tensors_equal

# The example of docs/format.md, which explains each byte.
NETWORK_BYTES = bytes.fromhex(
    "454c4c5a02 29c06d58 55 01 f202 32"
    "232372cd50a2b58284d0adc019b415f8c2151432448404dc2538c3c2104b581822a773eac5632c4a859408b211889381"
    "3200"
    "95 01 04 02"
    "03 02 03 04 05 02 01 01 0b 00f4 0870"
    "01 01 03 01 09 00 0801 e0ec"
    "5a6a67a1"
)

# Weights only, of types and forms that the example lacks.
WEIGHTS_BYTES = bytes.fromhex(
    "454c4c5a02 8418f3a6 f501 00 52 40"
    "8b06a6bb5460cad651504acd2d28a9043172138bb3417446624e1a882e061650c5a920564e2650750a889594092c320b"
    "40acc4f4c4cc3c102333175440c40200"
    "90 00 00 00 0700000000000000"  # steps: int64, no dimension, no zero, raw, no byte in the codes
    "00 02 00 03 00 00"  # empty: float32, 0 x 3
    "40 01 03 01 00 0101"  # mask: bool, 3, of which one is false
    "20 01 02 00 00 0801 b8c0"  # half: float16, 2, each bit one place up
    "10 01 28 26 00 3401 3300 3300 3300 3300 3380 73a6 7f80"  # sparse: float64, 40, 38 of them zero
    "04 01 04 01 02 0020803f 05 7f"  # listed: -1 to -5 and 1 to 127 times 1025 / 1024
    "04 01 28 00 00 0000803e 00 7f"  # bitmap: 1 to 127 times 1 / 4
    "f0 03"  # again: as half
    "0b 04 06 01 08 08 c001 00 08 08 00 07095e40 01 01 0b 08f0 0074"  # image: in lines of 8 x 8
    "83f9fd871b7201ab69cd8a00944efce8308842980234df1c8edce93c1f285adc859f2e170d27a9f3f99d5ae2766f06b5"
    "0380b40cfdf3da6f0720a0b80e0f7b84e3ca2d449608e5a99709fd46"  # codes
)


def written(tensors: dict[str, Tensor], folder: Path) -> Path:
    """A file of these weights."""
    path = folder / "weights.ellz"
    path.write_bytes(to_bytes(None, tensors)[0])
    return path


# the format


def test_the_example_is_written_and_read_byte_by_byte(tmp_path):
    network = packed_network()
    packed = ez.pack(network, tmp_path / "x.ellz")
    assert (tmp_path / "x.ellz").read_bytes() == NETWORK_BYTES
    assert packed.size_bytes == sum(packed.parts.values()) == len(NETWORK_BYTES) == 95
    assert packed.parts["codes"] == 4
    assert packed.self_contained
    loaded = ez.load(tmp_path / "x.ellz")
    assert isinstance(loaded, Network)
    assert loaded.graph == network.graph
    assert tensors_equal(loaded, network)


def test_the_other_types_are_written_and_read_byte_by_byte(tmp_path):
    assert to_bytes(None, odd_weights())[0] == WEIGHTS_BYTES
    (tmp_path / "x.ellz").write_bytes(WEIGHTS_BYTES)
    graph, found = read_packed(tmp_path / "x.ellz")
    assert graph is None
    assert list(found) == list(odd_weights())
    assert all(same_bits(found[name], tensor) for name, tensor in odd_weights().items())


def test_the_page_shows_the_example_and_the_dictionary():
    page = ellz_reader.PAGE.read_text()
    rows = page[page.index("The file has 95 bytes") :]
    shown = [re.match(r"\|((?: `[0-9a-f ]+`)+) \|", line) for line in rows.splitlines()]
    text = "".join(found[1] for found in shown if found)
    assert bytes.fromhex(text.replace("`", "")) == NETWORK_BYTES
    assert ellz_reader.dictionary() == DICTIONARY


@pytest.mark.parametrize("content", [NETWORK_BYTES, WEIGHTS_BYTES], ids=["network", "weights"])
def test_a_reader_written_from_the_page_reads_the_examples(content, tmp_path):
    (tmp_path / "x.ellz").write_bytes(content)
    check_by_the_page(tmp_path / "x.ellz")


@pytest.mark.parametrize("make", [lenet_300_100, lenet_5_caffe])
def test_a_lenet_is_small_and_exact(make, tmp_path):
    torch.manual_seed(0)
    model = make()
    ez.prune(model, sparsity=0.95, scope="layer")
    quantize_roughly(model, levels=16)
    example = torch.rand(3, 1, 28, 28)
    packed = ez.pack(model, tmp_path / "x.ellz", example)
    loaded = ez.load(packed.path)
    assert torch.equal(loaded(example), model.eval()(example))
    assert tensors_equal(loaded, model)
    assert packed.size_bytes == packed.path.stat().st_size <= size_allowed(model)


def quantize_roughly(model: nn.Module, levels: int) -> None:
    """Weights take some quantiles of their values; all numbers have 16 bits."""
    with torch.no_grad():
        for w in model.parameters():
            if w.ndim > 1:
                places = (torch.arange(levels) + 0.5) / levels
                centres = torch.quantile(w[w != 0].flatten(), places)
                nearest = (w[..., None] - centres).abs().argmin(-1)
                w.copy_(torch.where(w != 0, centres[nearest], 0))
            w.copy_(round_half(w))


def size_allowed(model: nn.Module) -> float:
    """5 % over the entropy of zeros and values per layer, plus biases of 16 bits, plus 400."""
    entropy, biases = 0.0, 0
    for w in model.parameters():
        if w.ndim == 1:
            biases += 2 * w.numel()
            continue
        _, counts = np.unique(w.detach().numpy(), return_counts=True)
        entropy -= float((counts * np.log2(counts / counts.sum())).sum()) / 8
    return 1.05 * entropy + biases + 400


def small_lenet_300_100() -> nn.Module:
    """LeNet-300-100 with a third of its units."""
    layers = [nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 33), nn.ReLU(), nn.Linear(33, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def small_lenet_5() -> nn.Module:
    """LeNet-5 with a part of its channels and units."""
    images = [nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2)]
    return nn.Sequential(*images, nn.Flatten(), nn.Linear(320, 100), nn.ReLU(), nn.Linear(100, 10))


@pytest.fixture(scope="module")
def ideal_bytes() -> Callable[[bytes, Mapping[str, Tensor]], float]:
    """What the codes of a file take at least by their own models."""
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "ideal.py"))["ideal_bytes"]


def test_the_codes_take_what_their_models_say(ideal_bytes):
    tensor = odd_weights()["image"].repeat(9, 1, 1, 1)
    tensor = tensor * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).abs()
    tensor = round_half((tensor * 8).round() / 8)
    content, parts = to_bytes(None, {"w": tensor})
    ideal = ideal_bytes(content, {"w": tensor})
    assert ideal <= parts["codes"] <= ideal + 8


@pytest.mark.parametrize("make", [small_lenet_300_100, small_lenet_5])
def test_a_quantized_network_takes_what_its_models_say(make, ideal_bytes, tmp_path):
    torch.manual_seed(0)
    model, example = make(), torch.zeros(1, 1, 28, 28)
    ez.prune(model, sparsity=0.9)
    compacted = ez.compact(model, example).model
    ez.quantize(compacted, bits=4)
    packed = ez.pack(compacted, tmp_path / "x.ellz")
    _, weights = read_packed(packed.path)
    ideal = ideal_bytes(packed.path.read_bytes(), weights)
    assert ideal <= packed.parts["codes"] <= 1.03 * ideal


def test_the_examples_do_not_hang_on_the_last_bits_of_a_fit(monkeypatch):
    fit, rng = choosing._newton, np.random.default_rng(0)

    def fit_elsewhere(measures, weights):
        return fit(measures * (1 + 1e-5 * rng.normal(size=measures.shape)), weights)

    monkeypatch.setattr(choosing, "_newton", fit_elsewhere)
    assert to_bytes(None, odd_weights())[0] == WEIGHTS_BYTES


@pytest.mark.parametrize(
    ("longest", "are_rows"), [(64, [False, True]), (63, [False]), (6, [False]), (5, [])]
)
def test_no_line_is_longer_than_a_reader_takes(longest, are_rows, monkeypatch):
    # a row of image_weights has 64 elements, a column 6
    monkeypatch.setattr(choosing, "MAX_UNITS", longest)
    ways = choosing._geometries(image_weights(), Layout(), 4096)
    assert [way.rows for way in ways] == are_rows


def test_the_tables_of_logarithms_are_those_of_whole_numbers():
    for index, (log, power) in enumerate(zip(LOG.tolist(), EXP.tolist(), strict=True)):
        assert 2**log <= Fraction(256 + index, 256) ** 256 < 2 ** (log + 1)
        assert power**256 <= 2 ** (16 * 256 + index) < (power + 1) ** 256


# any tensor


@st.composite
def any_tensor(draw) -> Tensor:
    """Any type and shape, any density, from one value to more than a codebook has."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(
        st.sampled_from([(), (0,), (1,), (3, 0, 2), (1, 1, 1), (7,), (5, 4), (2, 3, 5, 5)])
    )
    if draw(st.booleans()):
        shape = (draw(st.integers(1, 700)),)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    distinct = draw(st.sampled_from([1, 2, 3, 15, 31, 32, 255, 256, 257, 5000]))
    scale = draw(st.sampled_from([1.0, 1e-3, 0.25, 1e6, 2.0**-130, 2.0**100]))
    kind = draw(st.sampled_from(["normal", "whole", "half", "uniform"]))
    values = rng.normal(size=distinct) if kind == "normal" else rng.integers(-130, 130, distinct)
    if kind == "half":
        values = values.astype(np.float16).astype(np.float64) / 8
    if kind == "uniform":
        values = np.clip(values, -127, 127) * 1.0009765625
    flat = rng.choice(values * (scale if dtype.is_floating_point else 1), math.prod(shape))
    flat = flat * (rng.random(flat.shape) < draw(st.sampled_from([0, 0.02, 0.5, 0.98, 1])))
    tensor = torch.from_numpy(np.asarray(flat, np.float64)).to(dtype).reshape(shape)
    if dtype == torch.int64 and draw(st.booleans()):
        tensor = torch.unique(tensor.abs())  # ascending, as indices are
    return tensor.nan_to_num(0, 0, 0)


@st.composite
def in_lines(draw) -> Tensor:
    """A weight of zeros in some rows, columns or places: one that is coded line by line."""
    shape = draw(st.sampled_from([(16, 20), (8, 2, 5, 5), (6, 1, 6, 7), (300,), (5, 2, 20)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    density = np.ones(shape)
    for axis, size in enumerate(shape):
        each = rng.choice([0.02, 1.0], size)
        density = density * each.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    levels = draw(st.sampled_from([1, 3, 20, 5000]))
    values = rng.normal(size=levels) * draw(st.sampled_from([1, 0.25]))
    if draw(st.booleans()):
        values = np.abs(values) * draw(st.sampled_from([1, -1]))
    flat = rng.choice(values, shape) * (rng.random(shape) < density)
    return torch.from_numpy(np.asarray(flat)).to(draw(st.sampled_from(DTYPES[:4])))


@given(st.lists(st.one_of(any_tensor(), in_lines()), max_size=2), st.booleans())
def test_any_weights_come_back_bit_by_bit(tmp_path_factory, tensors, tied):
    given_ = {f"w{index}": tensor for index, tensor in enumerate(tensors)}
    if tied and tensors:
        given_["tied"] = tensors[0]
    path = written(given_, tmp_path_factory.getbasetemp())
    _, found = read_packed(path)
    for name, tensor in given_.items():
        expected = tensor + 0 if tensor.is_floating_point() else tensor  # zeros have no sign
        assert same_bits(found[name], expected), (name, tensor.dtype, tensor.shape)
    # neither bigger than plain numbers would be, but for names and a few bytes each
    plain = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert path.stat().st_size <= plain + 60 + 20 * len(tensors)
    check_by_the_page(path)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("density", [0.1, 1.0])
@pytest.mark.parametrize("uniform", [False, True])
def test_all_bit_widths_cost_little_more_than_their_entropy(bits, density, uniform, tmp_path):
    rng = np.random.default_rng(bits)
    top = 2 ** (bits - 1) - 1
    levels = np.arange(-top, top + 1) * 127 / top if uniform else rng.normal(size=2**bits - 1)
    levels = round_half(torch.tensor(levels[levels != 0])).numpy()
    values = np.where(rng.random(20_000) < density, rng.choice(levels, 20_000), 0.0)
    tensor = torch.tensor(values, dtype=torch.float32).reshape(100, 200)
    path = written({"w": tensor}, tmp_path)
    assert same_bits(read_packed(path)[1]["w"], tensor)
    _, counts = np.unique(values, return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    values_bytes = 0 if uniform else 2 * len(levels)
    assert entropy <= path.stat().st_size <= 1.05 * entropy + values_bytes + 400


@pytest.mark.parametrize("count", [1, 31, 32, 33, 254])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_codebooks_of_int8_come_back(count, dtype, tmp_path):
    levels = torch.cat([torch.arange(127, 0, -1), -torch.arange(1, 128)])[:count]
    scale = 1.0 if dtype == torch.bfloat16 else 1025 / 1024  # whose multiples are no halves
    tensor = (levels.repeat(4) * scale).to(dtype)
    path = written({"w": tensor}, tmp_path)
    assert same_bits(read_packed(path)[1]["w"], tensor)
    check_by_the_page(path)


def test_tensors_that_are_not_contiguous_come_back(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"t": base.t(), "strided": base[:, ::2], "expanded": torch.ones(1).expand(5)}
    _, found = read_packed(written(tensors, tmp_path))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


# the coder


@given(st.lists(st.one_of(st.integers(1, 5), st.integers(1, 10**12)), min_size=2, max_size=257))
def test_frequencies_are_the_pages_and_never_zero(counts):
    if sum(counts) >= 2**39:
        counts = [count % 1000 + 1 for count in counts]
    coded = frequencies(np.array(counts))
    k, n = len(counts), sum(counts)
    left = [i + math.floor(Fraction(sum(counts[:i])) * (2**24 - k) / n) for i in range(k + 1)]
    assert coded.tolist() == [b - a for a, b in pairwise(left)] == ellz_reader.frequencies(counts)
    assert coded.min() >= 1
    assert coded.sum() == 2**24


@given(st.data())
def test_constriction_codes_as_the_page_says(data):
    encoder, parts = Encoder(), []
    for _ in range(data.draw(st.integers(1, 3))):
        weights = data.draw(st.lists(st.integers(0, 40), min_size=2, max_size=60))
        counts = np.array([1 + weight**3 for weight in weights])  # frequent ones, and rare ones
        counts = np.maximum(counts * 300 // counts.sum(), 1)
        symbols = np.repeat(np.arange(len(counts)), counts)
        np.random.default_rng(0).shuffle(symbols)
        parts.append((symbols, counts))
        code_counted(encoder, counts, symbols)
        code_adaptive(encoder, len(counts), len(symbols), symbols)
    stream = encoder.finish()
    coder = ellz_reader.Coder(struct.unpack(f"<{len(stream) // 4}I", stream))
    decoder = Decoder(stream)
    for symbols, counts in parts:
        assert coder.counted(counts.tolist()) == symbols.tolist()
        assert coder.learned(len(counts), len(symbols)) == symbols.tolist()
        assert code_counted(decoder, counts, None).tolist() == symbols.tolist()
        again = code_adaptive(decoder, len(counts), len(symbols), None)
        assert again.tolist() == symbols.tolist()
    decoder.finish()


@given(st.lists(st.integers(1, 2**24 - 1), min_size=1, max_size=60), st.randoms())
def test_symbols_of_frequencies_of_their_own_are_coded_as_the_page_says(ones, random):
    model = np.array([[2**24 - one, one] for one in ones])
    symbols = np.array([random.randrange(2) for _ in ones])
    encoder = Encoder()
    encoder.code(model, len(ones), symbols)
    stream = encoder.finish()
    coder = ellz_reader.Coder(struct.unpack(f"<{len(stream) // 4}I", stream))
    assert [coder.symbol(each) for each in model.tolist()] == symbols.tolist()
    assert Decoder(stream).code(model, len(ones)).tolist() == symbols.tolist()


def test_long_parts_are_decoded_in_pieces():
    symbols = np.random.default_rng(0).integers(0, 2, 2_500_000)
    counts, few = np.bincount(symbols), np.bincount(symbols[:5])
    encoder = Encoder()
    code_counted(encoder, counts, symbols)
    code_counted(encoder, few, symbols[:5])
    decoder = Decoder(encoder.finish())
    assert np.array_equal(code_counted(decoder, counts, None), symbols)
    assert code_counted(decoder, few, None).tolist() == symbols[:5].tolist()


def test_what_is_learned_costs_no_more_than_a_dirichlet_multinomial_and_a_little():
    symbols = np.random.default_rng(0).geometric(0.3, 5000).clip(1, 30) - 1
    encoder = Encoder()
    code_adaptive(encoder, 30, len(symbols), symbols)
    counts, bits = np.full(30, 0.5), 0.0
    for symbol in symbols:  # the exact sequence of an update after every symbol
        bits -= math.log2(counts[symbol] / counts.sum())
        counts[symbol] += 1
    assert bits / 8 < len(encoder.finish()) < bits / 8 + 12
    assert bits_learned(symbols, 30) == pytest.approx(bits)


# networks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.slope = nn.PReLU(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.norm(self.conv(x)))
        y = torch.relu(y + self.norm(y))
        return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1)).log_softmax(1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(mlp, (6,)), (convnet, (2, 6, 6)), (Residual, (2, 6, 6))],
    ids=["mlp", "convnet", "residual"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_comes_back_whole(make, shape, dtype, tmp_path):
    torch.manual_seed(0)
    model = make().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(5, *shape, dtype=dtype)
    preprocess = ez.Preprocess((0.5,) * shape[0], 0.1)
    network = ez.trace(model, x, preprocess=preprocess, classes=["a", "b", "ü"])
    ez.pack(network, tmp_path / "x.ellz")
    loaded = ez.load(tmp_path / "x.ellz")
    assert isinstance(loaded, Network)
    assert not loaded.training
    assert torch.equal(loaded(x), network(x))
    assert loaded.graph == network.graph
    assert loaded.graph.preprocess == preprocess
    assert loaded.graph.classes == ("a", "b", "ü")
    # the plain network with an example gives the same weights, and stays as it is
    ez.pack(model.train(), tmp_path / "y.ellz", x)
    again = ez.load(tmp_path / "y.ellz")
    assert tensors_equal(again, loaded)
    assert model.training
    assert all(same_bits(before[name], tensor) for name, tensor in model.state_dict().items())
    check_by_the_page(tmp_path / "x.ellz")


def test_a_packed_network_can_be_packed_again(tmp_path):
    ez.pack(packed_network(), tmp_path / "x.ellz")
    ez.pack(ez.load(tmp_path / "x.ellz"), tmp_path / "y.ellz")
    assert (tmp_path / "y.ellz").read_bytes() == NETWORK_BYTES


def test_a_self_contained_file_can_be_loaded_into_a_model(tmp_path):
    ez.pack(mlp(), tmp_path / "x.ellz", torch.zeros(1, 6))
    model = mlp(seed=1)
    assert ez.load(tmp_path / "x.ellz", model) is model
    assert tensors_equal(model, mlp())
    with pytest.raises(ez.InputError, match=r"of another network than Sequential: 2.weight is \(3"):
        ez.load(tmp_path / "x.ellz", mlp(outputs=5))


def test_the_first_bytes_say_what_a_file_is(tmp_path):
    ez.pack(mlp(), tmp_path / "x.safetensors", torch.zeros(1, 6))
    ez.save(mlp(), tmp_path / "y.ellz")
    assert tensors_equal(ez.load(tmp_path / "x.safetensors"), mlp())
    assert tensors_equal(ez.load(tmp_path / "y.ellz", mlp(seed=1)), mlp())
    with pytest.raises(ez.InputError, match=r"weights only; give it the network: ez.load\(path, m"):
        ez.load(tmp_path / "y.ellz")
    with pytest.raises(ez.InputError, match="no model file at"):
        ez.load(tmp_path / "z.ellz")


def test_inputs_left_out_of_an_image_keep_their_places(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 8 * 8, 30), nn.ReLU(), nn.Linear(30, 3))
    with torch.no_grad():
        image = model.get_parameter("1.weight").unflatten(1, (2, 8, 8))
        image[:, :, ::3] = 0  # rows that nothing reads
        image[:20, :, :4] = image[20:, :, :, :5] = 0
    compacted = ez.compact(model, torch.zeros(1, 2, 8, 8)).model
    ez.pack(compacted, tmp_path / "x.ellz")
    file = reader.announcement((tmp_path / "x.ellz").read_bytes())
    weight = file.tensors["1.weight"]
    assert isinstance(weight, Announced)
    lines = weight.lines
    assert lines is not None
    assert (lines.places, lines.geometry) == (0, Geometry(rows=False, height=8, width=8))
    assert tensors_equal(ez.load(tmp_path / "x.ellz"), compacted)
    check_by_the_page(tmp_path / "x.ellz")


class Counting(nn.Module):
    """What no graph says: a branch on a buffer's value, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        if int(self.get_buffer("steps")) > 2:
            x = x.flip(0)
        return self.two(self.one(x))


class Rolling(nn.Sequential):
    """A network with an operation that is no data."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(torch.roll(x, 1, 1))


@pytest.mark.parametrize("make", [lambda: Rolling(nn.Linear(4, 4)), Counting])
def test_what_is_no_data_is_packed_without_its_architecture(make, tmp_path):
    torch.manual_seed(0)
    model, other = make(), make()
    with pytest.warns(UserWarning, match=f"only the weights of {type(model).__name__} are packed"):
        packed = ez.pack(model, tmp_path / "x.ellz", torch.zeros(1, 4))
    assert not packed.self_contained
    with pytest.raises(ez.InputError, match="weights only; give it the network"):
        ez.load(tmp_path / "x.ellz")
    assert ez.load(tmp_path / "x.ellz", other) is other
    assert tensors_equal(other, model)


def test_without_an_example_the_state_dict_is_packed(tmp_path):
    model = convnet()
    packed = ez.pack(model, tmp_path / "x.ellz")
    assert not packed.self_contained
    graph, tensors = read_packed(tmp_path / "x.ellz")
    assert graph is None
    assert list(tensors) == list(model.state_dict())
    assert tensors_equal(ez.load(tmp_path / "x.ellz", convnet()), model)


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
def test_zeros_lose_their_sign_in_the_file_alone(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 3), nn.Linear(3, 999, dtype=torch.float16))
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(0.0)  # nothing else
        model.get_parameter("1.weight")[0, 0] = -0.0  # among so many values that it has no mask
    ez.pack(model, tmp_path / "x.ellz")
    _, found = read_packed(tmp_path / "x.ellz")
    for name in ("0.weight", "1.weight"):
        weight = model.get_parameter(name)
        assert torch.equal(found[name], weight)
        assert torch.signbit(weight[weight == 0]).any()
        assert not torch.signbit(found[name][weight == 0]).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad, tmp_path):
    model = mlp()
    with torch.no_grad():
        model.get_parameter("2.bias")[1] = bad
    for example in (None, torch.zeros(1, 6)):
        with pytest.raises(ez.InputError, match=r"2.bias \(3,\) holds NaN or inf"):
            ez.pack(model, tmp_path / "x.ellz", example)
    assert list(tmp_path.iterdir()) == []


def test_types_that_cannot_be_written_are_refused_by_name(tmp_path):
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(
        ez.InputError, match=r"weight is torch\.complex64; a packed file holds float32"
    ):
        ez.pack(model, tmp_path / "x.ellz")


@pytest.mark.filterwarnings("ignore:weight has 0 of")
def test_much_memory_from_a_small_file_must_be_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "FREE_BYTES", 10_000)
    model = nn.Linear(500, 1000, bias=False)
    nn.init.zeros_(model.weight)
    path = tmp_path / "x.ellz"
    with pytest.warns(UserWarning, match="ez.load refuses .* it takes 2000000 bytes of memory"):
        packed = ez.pack(model, path)
    assert packed.size_bytes < 100
    with pytest.raises(ez.InputError, match=r"ez.load\(path, max_bytes=2000000\)"):
        ez.load(path, model)
    ez.load(path, model, max_bytes=2_000_000)
    with pytest.raises(ez.InputError, match="more than 1999999"):
        ez.load(path, model, max_bytes=1_999_999)


def test_constriction_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    ez.pack(packed_network(), tmp_path / "x.ellz")
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ez.InputError, match=r"pip install 'ellzero\[export\]'"):
        ez.pack(packed_network(), tmp_path / "y.ellz")
    with pytest.raises(ez.InputError, match=r"pip install 'ellzero\[export\]'"):
        ez.load(tmp_path / "x.ellz")
