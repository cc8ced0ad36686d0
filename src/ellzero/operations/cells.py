"""What recurrent cells make of sums of products in one step: in torch, on unknown values, in C."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ellzero.operations.activation import FUNCTIONS
from ellzero.operations.call import aten

CellName = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]


@dataclass(frozen=True)
class Cell:
    """One kind of cell.

    Args:
        gates: rows of a unit in each weight, one behind the other for all units.
        states: values of a unit that go on to the next step: its output, and what an LSTM keeps.
        sums: sums of a unit; one more than its gates where the last gate takes that of the input
            and that of the state apart.
        layer: torch's call on whole sequences.
        alone: torch's call on one step.
        step: (sums of the input, sums of the state, each (gates, units), states (states, units))
            -> the next states. NaN stands for what is not known.
        c: (units) -> C that makes of `work`, (sums, units), the next of `state`, (states, units),
            for the unit `u`.
    """

    gates: int
    states: int
    sums: int
    layer: Any
    alone: Any
    step: Callable[[Tensor, Tensor, Tensor], Tensor]
    c: Callable[[int], str]


def _lstm_step(from_input: Tensor, from_state: Tensor, states: Tensor) -> Tensor:
    write, forget, new, output = from_input + from_state
    kept = _times(forget.sigmoid(), states[1]) + _times(write.sigmoid(), new.tanh())
    return torch.stack([_times(output.sigmoid(), kept.tanh()), kept])


def _gru_step(from_input: Tensor, from_state: Tensor, states: Tensor) -> Tensor:
    reset, update = (from_input[:2] + from_state[:2]).sigmoid()
    new = (from_input[2] + _times(reset, from_state[2])).tanh()
    return (_times(1 - update, new) + _times(update, states[0])).unsqueeze(0)


def _times(gate: Tensor, value: Tensor) -> Tensor:
    """A product that is 0 where the value is, also if the gate is unknown: it is never infinite."""
    return torch.where(value == 0, 0, gate * value)


_sigmoid = FUNCTIONS["sigmoid"].c


def _lstm_c(units: int) -> str:
    write, forget, new, output = (f"work[{n * units} + u]" for n in range(4))
    kept = f"state[{units} + u]"
    return (
        f"const float write = {_sigmoid(write)};\n"
        f"const float forget = {_sigmoid(forget)};\n"
        f"const float output = {_sigmoid(output)};\n"
        f"{kept} = forget * {kept} + write * tanhf({new});\n"
        f"state[u] = output * tanhf({kept});"
    )


def _gru_c(units: int) -> str:
    reset, update, new, from_state = (f"work[{n * units} + u]" for n in range(4))
    return (
        f"const float reset = {_sigmoid(reset)};\n"
        f"const float update = {_sigmoid(update)};\n"
        f"const float fresh = tanhf({new} + reset * {from_state});\n"
        "state[u] = fresh + update * (state[u] - fresh);"
    )


def _plain(function: str, layer: Any, alone: Any) -> Cell:
    """A cell that makes its state of the sums by one function."""
    formula = FUNCTIONS[function]
    return Cell(
        gates=1,
        states=1,
        sums=1,
        layer=layer,
        alone=alone,
        step=lambda from_input, from_state, _: formula.run(from_input + from_state),
        c=lambda units: f"state[u] = {formula.c('work[u]')};",
    )


CELLS: dict[CellName, Cell] = {
    "lstm": Cell(4, 2, 4, aten.lstm.input, aten.lstm_cell.default, _lstm_step, _lstm_c),
    "gru": Cell(3, 1, 4, aten.gru.input, aten.gru_cell.default, _gru_step, _gru_c),
    "rnn_tanh": _plain("tanh", aten.rnn_tanh.input, aten.rnn_tanh_cell.default),
    "rnn_relu": _plain("relu", aten.rnn_relu.input, aten.rnn_relu_cell.default),
}
"""Cells by name."""
