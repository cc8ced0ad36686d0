"""Networks that change something in place: the output is the same, and state is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from c_programs import check_networks, needs_gcc


class Counting(nn.Module):
    """A layer that changes a buffer or a weight of itself; by `wiring` the output depends on it."""

    def __init__(self, wiring: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.wiring = wiring
        self.dense = nn.Linear(4, 2)
        self.register_buffer("count", torch.ones(1))
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


def counts(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.dense(x)


def counts_by_a_new_buffer(m: Any, x: Tensor) -> Tensor:
    m.count = m.count + x.shape[0]
    return m.dense(x)


def remembers_after_use(m: Any, x: Tensor) -> Tensor:
    m.last.copy_(x.sum(0))  # of what it was before, nothing is read
    return m.dense(x - m.last)


def multiplies_by_its_count(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.dense(x) * m.count


def subtracts_the_last_input(m: Any, x: Tensor) -> Tensor:
    y = m.dense(x - m.last)
    m.last.copy_(x[0])
    return y


def decays(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.dense.weight.mul_(0.5)
    return m.dense(x)


def adds_to_the_input(m: Any, x: Tensor) -> Tensor:
    x += 1
    return m.dense(x)


def adds_after_use(m: Any, x: Tensor) -> Tensor:
    y = m.dense(x)
    x.zero_()
    return y


STATELESS: dict[str, Callable[[], nn.Module]] = {
    "relu of the input": lambda: nn.Sequential(
        nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(4, 2)
    ),
    "relu of the input alone": lambda: nn.ReLU(inplace=True),
    "a sum": lambda: Counting(adds_to_the_input),
    "an input that is spoilt": lambda: Counting(adds_after_use),
    "a counter": lambda: Counting(counts),
    "a counter, replaced": lambda: Counting(counts_by_a_new_buffer),
    "a memory of this call": lambda: Counting(remembers_after_use),
}


def inputs() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def made(what: str) -> tuple[nn.Module, Tensor]:
    """The network, and its output for the inputs, which it computes on a copy."""
    torch.manual_seed(1)
    model = STATELESS[what]().eval()
    with torch.no_grad():
        return model, model(inputs())


@pytest.mark.parametrize("what", STATELESS)
def test_a_network_that_changes_things_is_traced_compacted_and_packed(what, tmp_path):
    model, expected = made(what)
    traced = ez.trace(model, inputs())
    torch.testing.assert_close(traced(inputs()), expected)
    torch.testing.assert_close(traced(inputs()), expected)  # nothing is left of the first call
    x = inputs()
    traced(x)
    assert torch.equal(x, inputs())
    torch.testing.assert_close(ez.compact(traced).model(inputs()), expected)
    if not traced.graph.opaque:
        assert ez.pack(traced, tmp_path / "net.ellz").self_contained
        assert torch.equal(ez.load(tmp_path / "net.ellz")(inputs()), traced(inputs()))


@needs_gcc
def test_and_is_written_in_c(tmp_path):
    model, _ = made("relu of the input")
    check_networks(tmp_path, {"net": ez.trace(model, inputs())}, "smallest")


def test_tracing_leaves_buffers_as_they_are():
    model, _ = made("a counter")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ez.trace(model, inputs())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("wiring", "name"),
    [
        (multiplies_by_its_count, "count"),
        (subtracts_the_last_input, "last"),
        (decays, r"dense\.weight"),
    ],
)
def test_state_from_call_to_call_is_refused_by_name(wiring, name):
    message = rf"the network changes {name} in each call and its output depends on it"
    with pytest.raises(ez.InputError, match=message):
        ez.trace(Counting(wiring).eval(), inputs())


# Weights that are no plain numbers


def with_weight(change: Callable[[Tensor], Tensor]) -> nn.Module:
    model: Any = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    model[0].weight = nn.Parameter(change(model[0].weight.detach()))
    return model


def complex_network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2, dtype=torch.complex64))


NOT_PLAIN: dict[str, tuple[Callable[[], nn.Module], torch.dtype, str]] = {
    "meta": (
        lambda: with_weight(lambda w: w.to("meta")),
        torch.float32,
        r"0\.weight \(2, 4\) is on the meta device",
    ),
    "sparse": (
        lambda: with_weight(lambda w: w.to_sparse()),
        torch.float32,
        r"0\.weight is sparse_coo",
    ),
    "complex": (complex_network, torch.complex64, r"0\.weight is complex64; expected real numbers"),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
@pytest.mark.parametrize("work", ["trace", "compact", "export_c", "export_onnx"])
def test_weights_that_are_no_plain_numbers_are_named(work, what, tmp_path: Path):
    make, dtype, message = NOT_PLAIN[what]
    model, x = make(), torch.zeros(1, 4, dtype=dtype)
    works: dict[str, Callable[[], object]] = {
        "trace": lambda: ez.trace(model, x),
        "compact": lambda: ez.compact(model, x),
        "export_c": lambda: ez.export_c(model, tmp_path / "c", example=x),
        "export_onnx": lambda: ez.export_onnx(model, tmp_path / "net.onnx", x),
    }
    with pytest.raises(ez.InputError, match=message):
        works[work]()


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")  # torch's own
def test_a_traced_network_that_was_made_complex_is_refused_too():
    traced = ez.trace(nn.Linear(4, 2), torch.zeros(1, 4)).to(torch.complex64)
    with pytest.raises(ez.InputError, match="weight is complex64"):
        ez.compact(traced)


def test_complex_weights_that_no_operation_of_ours_computes_with_stay():
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.randn(3, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=4)

    torch.manual_seed(0)
    model = Spectrum().eval()
    torch.testing.assert_close(ez.compact(model, inputs()).model(inputs()), model(inputs()))
