"""Compaction of recurrent layers: units, features and constants, over stacks and directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from c_programs import predicted
from ellzero import operations as ops
from ellzero.compaction.channels import Channels
from ellzero.compaction.compact import Removed
from ellzero.graph import Graph, Network, Node
from recurrent_networks import random_recurrent

pytestmark = pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")


class Last(nn.Module):
    """A recurrent layer or stack, and a linear layer on its last output."""

    def __init__(self, layers: Any, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = layers
        for parameter in layers.parameters():
            nn.init.uniform_(parameter, -1, 1)
        self.fc = nn.Linear(outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x)[0][:, -1])


def rows(parameter: Tensor, units: int) -> Tensor:
    """A view (gates, units, ...)."""
    return parameter.data.view(-1, units, *parameter.shape[1:])


def kill(layers: Any, suffix: str, *units: int) -> None:
    """Units that read nothing and add nothing: they stay at 0."""
    for role in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        rows(getattr(layers, f"{role}_{suffix}"), layers.hidden_size)[:, list(units)] = 0


def compacted(model: nn.Module, *shape: int) -> ez.Compacted:
    """What compaction gives; the output is as before."""
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    network = ez.trace(model.eval(), x)
    result = ez.compact(network)
    torch.testing.assert_close(predicted(result.model, x), predicted(network, x))
    return result


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_dead_units_leave_the_middle_of_a_stack(cls):
    layers = cls(4, 6, 2, batch_first=True)
    model = Last(layers, 6)
    kill(layers, "l0", 1, 3, 5)
    kill(layers, "l1", 0)
    model.fc.weight.data[:, 2] = 0  # unit 2 of the second layer is read by its own state alone
    rows(layers.weight_hh_l1, 6)[:, [0, 1, 3, 4, 5], 2] = 0
    result = compacted(model, 5, 4)
    assert set(result.removed) == {
        Removed("layers.l0", "outputs", 6, 3),
        Removed("layers.l1", "inputs", 6, 3),
        Removed("layers.l1", "outputs", 6, 4),
        Removed("fc", "inputs", 6, 4),
    }
    assert result.kept == ()
    gates = len(layers.weight_hh_l1) // 6
    assert tuple(result.model.weight("layers.weight_ih_l1").shape) == (gates * 4, 3)
    assert tuple(result.model.weight("layers.weight_hh_l1").shape) == (gates * 4, 4)
    assert tuple(result.model.weight("layers.bias_hh_l1").shape) == (gates * 4,)


def test_dead_units_leave_both_directions():
    layers: Any = nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True)
    model = Last(layers, 6)
    kill(layers, "l0", 2)
    kill(layers, "l0_reverse", 0, 1)
    model.fc.weight.data[:, 3:] = 0  # so that the second layer's reverse is read by nobody
    result = compacted(model, 5, 4)
    sizes = {r.layer: r.after for r in result.removed if r.what == "outputs"}
    # of what nobody reads a unit stays, for a shape has one
    expected = {"layers.l0_forward": 2, "layers.l0_reverse": 1, "layers.l1_reverse": 1}
    assert sizes == expected


def test_a_unit_without_what_is_new_is_dead_whatever_its_gates_read():
    layers: Any = nn.GRU(4, 3, batch_first=True)
    model = Last(layers, 3)
    for role in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        rows(getattr(layers, f"{role}_l0"), 3)[2, 1] = 0
    removed = compacted(model, 5, 4).removed
    assert Removed("layers", "outputs", 3, 2) in removed


def test_features_that_no_unit_reads_are_left_out_of_the_frames():
    layers: Any = nn.GRU(5, 3, batch_first=True)
    layers.weight_ih_l0.data[:, [0, 3]] = 0
    model = Last(layers, 3)
    layers.weight_ih_l0.data[:, [0, 3]] = 0
    result = compacted(model, 4, 5)
    assert result.removed == (Removed("layers", "inputs", 5, 3),)
    assert result.model.graph.nodes[1].op == ops.Select(axis=1)
    assert result.model.weight(f"{result.model.graph.nodes[1].name}.indices").tolist() == [1, 2, 4]


@pytest.mark.parametrize("bias", [True, False])
def test_constant_inputs_become_part_of_the_bias(bias):
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2, batch_first=True, bias=bias))
    model[0].weight.data[1] = 0
    model.append(Own())
    result = compacted(model, 5, 4)
    assert Removed("1", "inputs", 3, 2) in result.removed
    column = model[1].weight_ih_l0[:, 1] * model[0].bias[1]
    expected = column + model[1].bias_ih_l0 if bias else column
    torch.testing.assert_close(result.model.weight("1.bias_ih_l0"), expected)
    assert ("bias_hh" in result.model.graph.nodes[2].weights) == bias


class Own(nn.Module):
    """The outputs of a recurrent layer."""

    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0]


def test_a_unit_that_is_a_constant_stays_while_the_state_reads_it():
    """It gives one number at each step, but the first step reads 0 of it."""
    layers: Any = nn.RNN(4, 3, batch_first=True)
    model = Last(layers, 3)
    rows(layers.weight_ih_l0, 3)[:, 1] = 0
    rows(layers.weight_hh_l0, 3)[:, 1] = 0
    result = compacted(model, 5, 4)
    assert result.removed == ()
    assert result.kept == (
        "1 constant channels of layers stay: layers begins at other values, so no bias can stand "
        "for them",
    )
    rows(layers.weight_hh_l0, 3)[:, :, 1] = 0  # now the linear layer alone reads it
    removed = compacted(model, 5, 4).removed
    assert removed == (Removed("layers", "outputs", 3, 2), Removed("fc", "inputs", 3, 2))


def test_a_unit_that_goes_a_way_of_its_own_stays_while_something_reads_it():
    layers: Any = nn.LSTM(4, 3, batch_first=True)
    model = nn.Sequential(layers, Own(), nn.Linear(3, 2))
    rows(layers.weight_ih_l0, 3)[:, 1] = 0
    rows(layers.weight_hh_l0, 3)[:, 1] = 0
    rows(layers.weight_hh_l0, 3)[:, :, 1] = 0
    assert compacted(model, 5, 4).removed == ()


def test_a_dead_unit_stays_where_the_first_state_is_given():
    weights = {"weight_ih": torch.randn(3, 2), "weight_hh": torch.randn(3, 3)}
    weights["weight_ih"][1], weights["weight_hh"][1] = 0, 0
    nodes = (
        Node(name="x", op=ops.Input(size=(4, 2))),
        Node(name="h", op=ops.Input(size=(3,))),
        Node(
            name="layer",
            op=ops.Recurrent(cell="rnn_tanh"),
            inputs=("x", "h"),
            weights={role: role for role in weights},
        ),
    )
    network = Network(Graph(nodes=nodes), weights).eval()
    x, h = torch.randn(5, 4, 2), torch.randn(5, 3)
    torch.testing.assert_close(ez.compact(network).model(x, h), network(x, h))
    read = Channels(network)._read(nodes[2], "weight_hh")
    assert read.tolist() == [True, True, True]


def seeds(count: int, slow: int) -> list[Any]:
    return [*range(count), *(pytest.param(n, marks=pytest.mark.slow) for n in range(count, slow))]


@pytest.mark.parametrize("seed", seeds(20, 200))
def test_random_networks_keep_their_output_and_lose_all_at_once(seed):
    network = random_recurrent(seed)
    small = ez.compact(network).model
    x = torch.randn(4, *network.graph.input_shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(predicted(small, x), predicted(network, x), rtol=1e-6, atol=1e-6)
    assert ez.compact(small).removed == ()


def test_random_networks_have_something_to_lose():
    removed = [r for seed in range(20) for r in ez.compact(random_recurrent(seed)).removed]
    outputs = [r for r in removed if r.what == "outputs"]
    assert len(outputs) > 20
