"""Recurrent modules as they are used: traced into layers, with the values of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from ellzero import operations as ops

FRAMES, FIRST = (7, 5), (4,)


class Uses(nn.Module):
    """Recurrent layers, and what is done with them."""

    def __init__(self, use: Callable[..., Any], layers: nn.Module, **parts: Any) -> None:
        super().__init__()
        self.use, self.layers = use, layers
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.use(self, *inputs)


def all_results(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    outputs, (last, kept) = m.layers(x)
    return outputs, last.transpose(0, 1), kept.transpose(0, 1)


def twice(m: Any, x: Tensor) -> Tensor:
    outputs, last = m.layers(x)
    return torch.cat([outputs[:, -1], last[0]], 1)


def learned(m: Any, x: Tensor) -> Tensor:
    return m.layers(x, m.first.expand(-1, x.shape[0], -1).contiguous())[0]


USES: dict[str, tuple[Any, list[tuple[int, ...]], list[str]]] = {
    "outputs": (
        Uses(lambda m, x: m.layers(x)[0], nn.GRU(5, 4, 2, dropout=0.5, batch_first=True)),
        [FRAMES],
        ["layers.l0", "layers.l1"],
    ),
    "all that an LSTM gives": (
        Uses(all_results, nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True)),
        [FRAMES],
        [f"layers.l{n}_{direction}" for n in (0, 1) for direction in ("forward", "reverse")],
    ),
    "the last state, and the last output": (
        Uses(twice, nn.RNN(5, 4, batch_first=True, bias=False)),
        [FRAMES],
        ["layers"],
    ),
    "time first": (
        Uses(
            lambda m, x: m.layers(x.transpose(0, 1))[0].transpose(0, 1),
            nn.GRU(5, 4, bidirectional=True),
        ),
        [FRAMES],
        ["layers_forward", "layers_reverse"],
    ),
    "states that are given": (
        Uses(
            lambda m, x, h, c: m.layers(x, (h.unsqueeze(0), c.unsqueeze(0)))[0],
            nn.LSTM(5, 4, batch_first=True),
        ),
        [FRAMES, FIRST, FIRST],
        ["layers"],
    ),
    "states that are learned": (
        Uses(learned, nn.GRU(5, 4, 2, batch_first=True), first=nn.Parameter(torch.randn(2, 1, 4))),
        [FRAMES],
        ["layers.l0", "layers.l1"],
    ),
    "a state that is computed": (
        Uses(
            lambda m, x: m.layers(x, m.linear(x[:, 0]).unsqueeze(0))[0],
            nn.RNN(5, 4, batch_first=True, nonlinearity="relu"),
            linear=nn.Linear(5, 4),
        ),
        [FRAMES],
        ["layers"],
    ),
    "a GRU cell": (
        Uses(lambda m, x, h: m.layers(x, h), nn.GRUCell(5, 4)),
        [(5,), FIRST],
        ["layers"],
    ),
    "an RNN cell from zero": (Uses(lambda m, x: m.layers(x), nn.RNNCell(5, 4)), [(5,)], ["layers"]),
    "an LSTM cell": (
        Uses(lambda m, x, h, c: m.layers(x, (h, c)), nn.LSTMCell(5, 4, bias=False)),
        [(5,), FIRST, FIRST],
        ["layers"],
    ),
}


@pytest.mark.filterwarnings("ignore:weights of a kind that is not known.*first")
@pytest.mark.parametrize("what", USES)
def test_a_trace_has_the_layers_and_computes_what_the_module_does(what):
    model, shapes, layers = USES[what]
    model.eval()
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(3, *shape, generator=generator) for shape in shapes)
    network = ez.trace(model, inputs if len(shapes) > 1 else inputs[0])
    torch.testing.assert_close(network(*inputs), model(*inputs))
    assert [n.name for n in network.graph.nodes if isinstance(n.op, ops.Recurrent)] == layers
    assert not network.graph.opaque
    recurrent = {w.name for w in ez.select(network).weights if w.kind == "recurrent"}
    assert recurrent == {n for n in network.state_dict() if "weight_ih" in n or "weight_hh" in n}


def test_projections_run_and_are_refused_in_c(tmp_path):
    model = Uses(lambda m, x: m.layers(x)[0], nn.LSTM(5, 4, proj_size=2, batch_first=True)).eval()
    x = torch.randn(3, *FRAMES)
    network = ez.trace(model, x)
    torch.testing.assert_close(network(x), model(x))
    assert any("(aten.lstm.input" in node.named for node in network.graph.opaque)
    with pytest.raises(ez.InputError, match="there is no C for"):
        ez.export_c(network, tmp_path)


@pytest.mark.parametrize(
    ("shapes", "weights", "expected"),
    [
        ([(4,)], {}, "the input has 1 dimensions; expected 2"),
        ([(4, 3), (2,)], {}, "2 inputs; expected 1 or 3"),
        ([(4, 3), (2,), (3,)], {}, r"the first state has shape \(3,\); expected \(2,\)"),
        ([(4, 3)], {"weight_hh": (6, 2)}, "weight_hh has 6 rows for 2 units; expected 8"),
        ([(4, 3)], {"weight_ih": (8, 2)}, r"weight_ih has shape \(8, 2\); expected \(8, 3\)"),
        ([(4, 3)], {"bias_hh": (2,)}, r"bias_hh has shape \(2,\); expected \(8,\)"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused(shapes, weights, expected):
    sizes = {"weight_ih": (8, 3), "weight_hh": (8, 2), **weights}
    with pytest.raises(ez.InputError, match=expected):
        ops.Recurrent(cell="lstm").shape(shapes, sizes)


def test_what_a_cell_does_not_keep_is_refused():
    sizes = {"weight_ih": (6, 3), "weight_hh": (6, 2)}
    with pytest.raises(ez.InputError, match="a gru keeps nothing but what it gives"):
        ops.Recurrent(cell="gru", kept=True).shape([(4, 3)], sizes)
