"""Multiply-adds by hand, bytes of real files, and ways that are missing."""

import sys
import time

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.graph import Network
from ellzero.measure.latency import time_calls
from ellzero.measure.macs import layer_costs
from ellzero.measure.measurement import Measurement, measure
from ellzero.measure.size import size_of
from ellzero.networks.lenet import lenet_5_caffe
from small import convnet


def test_multiply_adds_of_lenet_5_are_those_counted_by_hand():
    network = ez.trace(lenet_5_caffe(), torch.zeros(1, 1, 28, 28))
    found = {cost.name: cost.macs for cost in layer_costs(network)}
    # windows x kernel x channels in x channels out
    assert found == {
        "conv1": 24 * 24 * 25 * 1 * 20,
        "conv2": 8 * 8 * 25 * 20 * 50,
        "fc1": 800 * 500,
        "fc2": 500 * 10,
    }


def test_effective_multiply_adds_count_nonzeros_at_every_window():
    model = nn.Conv2d(2, 4, 3, stride=2, groups=2, bias=False)
    with torch.no_grad():
        model.weight.zero_()
        model.weight[0, 0, 1, 1] = 1.0
    (cost,) = layer_costs(ez.trace(model, torch.zeros(1, 2, 7, 7)))
    assert (cost.weights, cost.nonzeros) == (4 * 1 * 9, 1)
    assert (cost.macs, cost.effective_macs) == (36 * 9, 9)  # 3 x 3 windows


def test_multiply_adds_of_a_transposed_convolution_are_those_of_its_inputs():
    model = nn.ConvTranspose1d(2, 3, 4, stride=3)
    (cost,) = layer_costs(ez.trace(model, torch.zeros(1, 2, 5)))
    assert (cost.weights, cost.macs) == (24, 24 * 5)


def test_packed_bytes_are_those_of_a_file(tmp_path):
    network = ez.trace(convnet(), torch.zeros(1, 2, 6, 6))
    size = size_of(network, network)
    assert size.packed_bytes == ez.pack(network, tmp_path / "a.ellz").size_bytes
    assert size.packed_bytes == (tmp_path / "a.ellz").stat().st_size


def test_a_longer_call_takes_longer():
    found = time_calls(
        {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.005)},
        rounds=3,
        seconds=0.01,
    )
    assert found["short"].median_s >= 0.001
    assert found["long"].median_s >= 0.005
    assert found["long"].low_s <= found["long"].median_s <= found["long"].high_s


def test_calls_take_turns():
    order = []
    time_calls(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, seconds=0
    )
    assert "".join(order[2:]) == "ababab"


@pytest.fixture(scope="module")
def network() -> Network:
    """A convolutional network in double precision, with its preprocessing and its classes."""
    return ez.trace(
        convnet().double(),
        torch.zeros(1, 2, 6, 6, dtype=torch.float64),
        preprocess=ez.Preprocess(1 / 128, -1.0),
        classes=("a", "b"),
    )


@pytest.fixture(scope="module")
def measured(network: Network) -> Measurement:
    """Measured in every way; that writes two ONNX files and compiles C, so it is done once."""
    return measure(network, batches=[1], rounds=2)


def test_double_precision_is_measured_as_float32_and_the_way_that_cannot_be_says_why(measured):
    missing = {timing.way: timing.missing for timing in measured.timings if timing.missing}
    assert list(missing) == ["scipy CSR"]
    assert "conv" in missing["scipy CSR"]
    measurable = [timing for timing in measured.timings if timing.way != "scipy CSR"]
    assert len(measurable) == 7
    assert all(timing.latency is not None for timing in measurable)


def test_the_packed_size_is_that_of_what_ships(network, measured, tmp_path):
    packed = ez.pack(ez.compact(network).model, tmp_path / "a.ellz")
    assert measured.size.packed_bytes == packed.size_bytes


def test_without_a_compiler_and_an_extra_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    traced = ez.trace(model, torch.zeros(1, 4, dtype=torch.float64))
    timings = measure(traced, batches=[1], rounds=2).timings
    missing = {timing.way: timing.missing for timing in timings if timing.missing}
    assert {way for way, why in missing.items() if why == "needs ellzero[bench]"} == {
        "onnxruntime",
        "onnxruntime, compacted",
    }
    assert "no C compiler" in missing["compiled C"]
    by_way = {timing.way: timing.latency for timing in timings}
    for way in ("torch dense", "torch dense, compacted", "torch CSR", "scipy CSR"):
        assert by_way[way] is not None
