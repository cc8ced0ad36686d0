"""What can matter to a network's output, by hand and by gradients; warnings where little can."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from activation_cases import Own
from c_programs import predicted, random_network
from cases import fill
from ellzero.compaction.channels import Channels
from ellzero.compaction.folding import folded
from ellzero.compaction.living import Living, living, sentences
from ellzero.graph import Network


def dense(*rows: Any, bias: Any = None) -> nn.Linear:
    """A dense layer of these weights."""
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias is not None)
    fill(layer.weight, rows)
    if bias is not None:
        fill(layer.bias, bias)
    return layer


def of(model: nn.Module, *shape: int) -> Living:
    return living(folded(ez.trace(model.eval(), torch.zeros(1, *shape))))


def test_dead_rows_dead_columns_and_a_constant():
    # unit 1 always gives 2, unit 2 is not read; inputs 1 is read by unit 2 alone, 3 by none
    first = dense([1, 0, 2, 0], [0, 0, 0, 0], [5, 6, 7, 0], [-1, 0, 3, 0], bias=[0.5, 2, 1, -0.5])
    last = dense([1, 10, 0, 2], [3, -4, 0, 0], bias=[1, 1])
    found = of(nn.Sequential(first, nn.ReLU(), last), 4)
    # of 7 nonzeros the 3 of unit 2 are dead; of 5 those that multiply the constant 2
    assert found.nonzeros == {"0.weight": 4, "2.weight": 3}
    assert (found.inputs, found.inputs_left) == (4, (0, 2))
    assert (found.constant_outputs, found.empty) == ((), ())


def test_a_last_layer_of_zeros_leaves_nothing():
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    fill(model[2].weight, torch.zeros(3, 6))
    found = of(model, 4)
    assert found == Living({"0.weight": 0, "2.weight": 0}, 4, (), (0, 1, 2), ("2.weight",))


def test_a_layer_of_zeros_within_makes_all_outputs_constant_even_behind_a_softmax():
    model: Any = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softmax(1))
    fill(model[0].weight, torch.zeros(6, 4))
    found = of(model, 4)
    assert found.nonzeros == {"0.weight": 0, "2.weight": 0}
    assert (found.inputs_left, found.constant_outputs) == ((), (0, 1, 2))
    assert found.empty == ("0.weight",)


def test_one_output_is_constant():
    model = nn.Sequential(dense([1, 2], [0, 0], [3, 0], bias=[0, 5, 0]), nn.ReLU())
    found = of(model, 2)
    assert (found.constant_outputs, found.inputs_left, found.empty) == ((1,), (0, 1), ())


def test_a_scale_of_zero_kills():
    model: Any = nn.Sequential(dense([1, 2], [3, 4]), nn.BatchNorm1d(2), dense([1, 1]))
    model[1].weight.data[0] = 0
    found = of(model, 2)
    assert found.nonzeros == {"0.weight": 2, "2.weight": 1}
    assert found.empty == ()


def test_inputs_are_values_where_they_are_flattened_first_else_channels():
    flat: Any = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    flat[1].weight.data[:, [0, 5]] = 0
    found = of(flat, 2, 2, 2)
    assert (found.inputs, found.inputs_left) == (8, (1, 2, 3, 4, 6, 7))
    conv: Any = nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(2, 1))
    conv[0].weight.data[:, 1] = 0
    found = of(conv, 3, 2, 2)
    assert (found.inputs, found.inputs_left) == (3, (0, 2))


def test_a_compacted_network_still_says_which_inputs_are_left():
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    model[1].weight.data[:, [0, 5]] = 0
    small = ez.compact(model, torch.zeros(1, 2, 2, 2)).model
    assert living(folded(small)).inputs_left == (1, 2, 3, 4, 6, 7)
    small.weight("1.weight").data[:, 0] = 0  # the first that is left, input 1
    assert living(folded(small)).inputs_left == (2, 3, 4, 6, 7)


def test_what_cannot_be_seen_through_lives():
    model: Any = nn.Sequential(nn.Linear(3, 4), Own(lambda x: x.cumsum(1)), nn.Linear(4, 2))
    model[2].weight.data[:, 1] = 0
    found = of(model, 3)
    assert found.nonzeros == {"0.weight": 12, "2.weight": 6}
    assert found.inputs_left == (0, 1, 2)


def test_padding_keeps_what_reads_a_constant():
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 3, padding=1))
    fill(model[0].weight, [1, 0])
    fill(model[0].bias, [0.0, 2.0])
    assert of(model, 1, 4, 4).nonzeros == {"0.weight": 1, "1.weight": 18}
    fill(model[0].bias, [0.0, 0.0])  # of zeros nothing can be seen at the margin
    assert of(model, 1, 4, 4).nonzeros == {"0.weight": 1, "1.weight": 9}


@pytest.mark.parametrize("seed", range(5))
def test_what_lives_is_what_the_output_has_a_gradient_of(seed):
    """Without biases, dead channels are zero: a gradient says which weights can matter."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1, bias=False),
        nn.Tanh(),
        nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False),
        nn.AvgPool2d(2),
        nn.Conv2d(5, 4, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 6, bias=False),
        nn.Tanh(),
        nn.Linear(6, 3, bias=False),
    ).double()
    for w in model.parameters():
        w.data *= torch.rand(w.shape) < 0.3
        w.data *= torch.rand(len(w)).view(-1, *[1] * (w.ndim - 1)) < 0.7
    x = torch.randn(4, 2, 6, 6).double()
    found = living(folded(ez.trace(model, x)))
    model(x).sin().sum().backward()
    assert found.nonzeros == {
        name: 0 if w.grad is None else int((w.grad != 0)[w != 0].sum())
        for name, w in model.named_parameters()
    }


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
@pytest.mark.parametrize("seed", range(12))
def test_compaction_leaves_what_lives(seed):
    """Layers where nothing lives can be emptied; the others keep at least what lives."""
    network = random_network(seed)
    found, small = living(folded(network)), ez.compact(network).model
    weights = {name: small.weight(name).detach().clone() for name in small.graph.weight_names()}
    for name, count in found.nonzeros.items():
        assert int(weights[name].count_nonzero()) >= count
        weights[name] *= count > 0
    emptied = Network(small.graph, weights).eval()
    x = torch.randn(5, *network.graph.input_shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(predicted(emptied, x), predicted(network, x), rtol=1e-4, atol=1e-3)


# Warnings


def emptied(*layers: int) -> Any:
    """Three dense layers, some of them without a weight."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)
    )
    for index in layers:
        fill(model[index].weight, torch.zeros_like(model[index].weight))
    return model


WORKS: dict[str, Callable[[nn.Module, Path], object]] = {
    "compact": lambda model, folder: ez.compact(model, torch.zeros(1, 6)),
    "pack": lambda model, folder: ez.pack(model, folder / "net.ellz", torch.zeros(1, 6)),
    "export_c": lambda model, folder: ez.export_c(model, folder, example=torch.zeros(1, 6)),
    "dense C": lambda model, folder: ez.export_c(
        model, folder, example=torch.zeros(1, 6), storage="dense"
    ),
    "export_onnx": lambda model, folder: ez.export_onnx(
        model, folder / "net.onnx", torch.zeros(1, 6)
    ),
}


def warned(work: Callable[[], object]) -> list[tuple[str, str]]:
    """What is said, and in which file."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        work()
    return [
        (str(w.message), w.filename) for w in found if issubclass(w.category, ez.EllzeroWarning)
    ]


@pytest.mark.parametrize("work", WORKS)
def test_a_layer_without_a_weight_is_said_once_and_the_channels_are_looked_into_once(
    work, tmp_path, monkeypatch
):
    looked_into = []
    look = Channels.__init__

    def counting(self, network):
        looked_into.append(network)
        look(self, network)

    monkeypatch.setattr(Channels, "__init__", counting)
    said = warned(lambda: WORKS[work](emptied(4), tmp_path))
    text = "4.weight has 0 of 24 weights left, so the output is the same for every input"
    assert said == [(text, __file__)]
    assert len(looked_into) == 1


@pytest.mark.parametrize("work", ["compact", "pack", "export_c", "dense C"])
def test_nothing_is_said_where_every_layer_has_weights(work, tmp_path):
    assert warned(lambda: WORKS[work](emptied(), tmp_path)) == []


def test_every_such_layer_and_output_is_named(tmp_path):
    ((text, _),) = warned(lambda: ez.compact(emptied(0, 2), torch.zeros(1, 6)))
    assert text == (
        "0.weight has 0 of 48 weights left; 2.weight has 0 of 48 weights left, so the output is "
        "the same for every input"
    )
    model = emptied()
    model[4].weight.data[[1, 3]] = 0
    ((text, _),) = warned(lambda: ez.compact(model, torch.zeros(1, 6)))
    assert text == "2 of 4 outputs are the same for every input: 1, 3"


def test_weights_that_are_packed_alone_are_named_too(tmp_path):
    ((text, file),) = warned(lambda: ez.pack(emptied(0, 4), tmp_path / "net.ellz"))
    assert text == "0.weight has 0 of 48 weights left; 4.weight has 0 of 24 weights left"
    assert file == __file__


def test_a_packed_meta_weight_is_named(tmp_path):
    with pytest.raises(ez.InputError, match=r"^weight \(2, 3\) is on the meta device"):
        ez.pack(nn.Linear(3, 2, device="meta"), tmp_path / "net.ellz")


def test_a_constant_that_stays_for_another_reader_is_taken_up_here(tmp_path):
    """The constant 2 is read by a layer without padding and by one that needs it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 3, 1)
            self.plain, self.padded = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.plain(y) + self.padded(y)

    torch.manual_seed(0)
    model: Any = Two().eval()
    fill(model.first.weight, [1, 2, 0])
    fill(model.first.bias, [0, 1, 2])
    x = torch.randn(3, 1, 4, 4)
    traced = ez.trace(model, x)
    small = ez.compact(traced).model
    torch.testing.assert_close(small(x), model(x))
    assert living(folded(traced)).nonzeros == {
        "first.weight": 2,
        "plain.weight": 4,
        "padded.weight": 54,
    }
    assert int(small.weight("plain.weight").count_nonzero()) == 4


def test_what_is_said():
    assert sentences({}, (), 3) == []
    assert sentences({"a": 1048}) == ["a has 0 of 1,048 weights left"]
    assert sentences({}, (1,), 3) == ["1 of 3 outputs is the same for every input: 1"]
    (text,) = sentences({"a": 6, "b": 2}, tuple(range(5, 20)), 30)
    assert text.startswith("a has 0 of 6 weights left; b has 0 of 2 weights left; 15 of 30 outputs")
    assert text.endswith(": 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ...")
    assert sentences({}, range(3), 3) == ["the output is the same for every input"]
