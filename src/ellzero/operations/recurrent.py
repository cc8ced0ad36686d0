"""A recurrent layer in one direction: LSTM, GRU, or a plain one with tanh or ReLU."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, fx

from ellzero.c.arrays import floats
from ellzero.c.kernel import Context
from ellzero.c.layer import weighted
from ellzero.c.product import product
from ellzero.c.text import loop, scope
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call, result_of
from ellzero.operations.cells import CELLS, CellName
from ellzero.operations.concat import Concat
from ellzero.operations.layout import Layout
from ellzero.operations.operation import FUNCTION, Operation, Recognized, Recognizer
from ellzero.operations.reshape import Reshape
from ellzero.operations.shapes import expect, sizes
from ellzero.operations.slice import Slice
from ellzero.tensors import Shape

STEP = 1 << 16
"""Multiply-adds that take about as long as what torch does for a step, however small it is."""


class Recurrent(Operation):
    """One recurrent layer in one direction, on (N, time, in): a state of (N, units) at each step.

    As in `torch.nn.LSTM`, `GRU` and `RNN`: weight_ih (gates * units, in) multiplies the input,
    weight_hh (gates * units, units) the state before, bias_ih and bias_hh (gates * units,) are
    added. Further inputs are the first state (N, units), of an LSTM also what it keeps (N, units);
    without them it is zero. `reverse` begins at the last step. With `kept` what an LSTM keeps after
    all steps follows as one more.
    """

    kind: Literal["recurrent"] = "recurrent"
    cell: CellName
    reverse: bool = False
    kept: bool = False
    REQUIRED = ("weight_ih", "weight_hh")
    OPTIONAL = ("bias_ih", "bias_hh")
    ARITY: ClassVar[int | None] = None
    ANY_LAYOUT = True
    LAYER = "recurrent"
    FOLLOWS = True
    C = "body"
    FINISHES = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            **{cell.layer: _recurrent for cell in CELLS.values()},
            **{cell.alone: _cell for cell in CELLS.values()},
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        x, *first = inputs
        cell, units = CELLS[self.cell], weights["weight_hh"].shape[1]
        first = first or [x.new_zeros(1, units)] * cell.states
        # of what no input changes there is one example
        states = [state.expand(x.shape[0], units).contiguous().unsqueeze(0) for state in first]
        parameters = [weights["weight_ih"], weights["weight_hh"], *_both_biases(weights)]
        outputs, _, *kept = cell.layer(
            x.flip(1) if self.reverse else x,
            states if cell.states > 1 else states[0],
            parameters,
            len(parameters) > 2,
            1,  # layer
            0.0,  # dropout
            False,  # training
            False,  # bidirectional
            True,  # batch first
        )
        outputs = outputs.flip(1) if self.reverse else outputs
        return torch.cat([outputs, kept[0].transpose(0, 1)], 1) if self.kept else outputs

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        cell = CELLS[self.cell]
        if len(inputs) not in (1, 1 + cell.states):
            raise InputError(f"{len(inputs)} inputs; expected 1 or {1 + cell.states}")
        steps, features = sizes(inputs[0], 2, "the input")
        rows, units = sizes(weights["weight_hh"], 2, "weight_hh")
        if rows != cell.gates * units:
            raise InputError(
                f"weight_hh has {rows} rows for {units} units; expected {cell.gates * units}"
            )
        expect(weights["weight_ih"], (rows, features), "weight_ih")
        for role in self.OPTIONAL:
            expect(weights.get(role, (rows,)), (rows,), role)
        for state in inputs[1:]:
            expect(state, (units,), "the first state")
        if self.kept and cell.states == 1:
            raise InputError(f"a {self.cell} keeps nothing but what it gives")
        return (steps + self.kept, units)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        rows = {"weight_ih": "(k u) i", "weight_hh": "(k u) u", "bias_ih": "(k u)"}
        return Axes(
            ("t i", *["u"] * (len(inputs) - 1)),
            "s u",
            {**rows, "bias_hh": rows["bias_ih"]},
            whole="t k s",
            reads={"weight_ih": "i", "weight_hh": "u"},
            sizes={"k": CELLS[self.cell].gates},
        )

    def folds_constants(self) -> bool:
        return True

    def repeats(self, inputs: Sequence[Shape], output: Shape) -> int:
        return inputs[0][0]

    def work(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape) -> int:
        steps, (rows, _) = inputs[0][0], weights["weight_ih"]
        return super().work(inputs, weights, output) + steps * (STEP + FUNCTION * rows)

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        """What the inputs of all steps give each gate, and the outputs once more."""
        values = inputs[0][0] * weights["weight_ih"][0] + 2 * math.prod(output)
        return super().workspace(inputs, weights, output) + values

    def known(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        """Known is what a unit gives if it gives it at each step, however many there are.

        A weight of zero hides what is not known.
        """
        x, *first = (value[0] for value in inputs)
        cell, units = CELLS[self.cell], weights["weight_hh"].shape[1]
        low, high = x.aminmax(dim=0)
        steady = low.masked_fill(low != high, torch.nan)
        nothing = x.new_zeros(())
        from_input = _product(steady, weights["weight_ih"]) + weights.get("bias_ih", nothing)

        def after(states: Tensor) -> Tensor:
            from_state = _product(states[0], weights["weight_hh"]) + weights.get("bias_hh", nothing)
            return cell.step(from_input.view(-1, units), from_state.view(-1, units), states)

        states = after(torch.stack(first) if first else x.new_zeros(cell.states, units))
        while ((stays := (after(states) == states).all(0)) < ~states.isnan().any(0)).any():
            states = states.masked_fill(~stays, torch.nan)
        outputs = states[:1].expand(len(x), units)
        return (torch.cat([outputs, states[1:]]) if self.kept else outputs).unsqueeze(0)

    def c_state(self, output: Shape) -> int:
        return CELLS[self.cell].states * output[1]

    def c_work(self, output: Shape) -> int:
        return CELLS[self.cell].sums * output[1]

    def c_body(self, context: Context) -> str:
        """Step by step: sums of products, what the cell makes of them, the output stored."""
        (steps, features), (_, units) = context.inputs[0], context.shape
        cell, rows = CELLS[self.cell], np.arange(len(context.weights["weight_hh"]))
        last = (cell.gates - 1) * units  # where the rows begin whose sums may be apart
        apart = (cell.sums - cell.gates) * units
        places = np.where(rows < last, rows, rows + apart)

        def place(row: str) -> str:
            return f"{row} < {last} ? {row} : {row} + {apart}" if apart else row

        at = f"({steps - 1} - t)" if self.reverse else "t"
        step = (
            loop("i", cell.sums * units, f"work[i] = {self._biases(context, places)};"),
            f"const float *const now = x + {at} * {features};",
            self._sums(context, "weight_ih", "now", str),
            self._sums(context, "weight_hh", "state", place),
            loop("u", units, cell.c(units)),
            loop("u", units, context.finish("state[u]", f"y[{at} * {units} + u]", at)),
        )
        given = [f"state[{n * units} + u] = x{n + 2}[u];" for n in range(len(context.inputs) - 1)]
        begin = loop("u", units, "\n".join(given)) + "\n" if given else ""
        text = begin + loop("t", steps, "\n".join(step))
        if self.kept:
            row = f"y[{steps * units} + u]"
            last = context.finish(f"state[{units} + u]", row, str(steps))
            text += f"\n{loop('u', units, last)}"
        return text

    def _biases(self, context: Context, places: np.ndarray) -> str:
        """C expression of what sum `i` begins with."""
        total = np.zeros(places[-1] + 1, np.float32)
        for role, rows in (("bias_ih", np.arange(len(places))), ("bias_hh", places)):
            if role in context.weights:
                total[rows] += context.weights[role].numpy()
        if not total.any():
            return "0.0f"
        return f"{context.array(floats(f'{context.name}_bias', total))}[i]"

    def _sums(self, context: Context, role: str, x: str, place: Callable[[str], str]) -> str:
        """C that adds a weight's products to the sums."""
        offsets = np.arange(context.weights[role].shape[1])
        matrix, storage = weighted(context, offsets, lanes=True, role=role)

        def store(total: str, row: str) -> str:
            return f"work[{place(row)}] += {total};"

        return scope(product(matrix, storage, context.choice, x, store))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """A weight (out, in) times x (in,), unknown where one that is not zero meets NaN."""
    unknown = ((weight != 0) & x.isnan()).any(1)
    return (weight @ x.nan_to_num()).masked_fill(unknown, torch.nan)


def _both_biases(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The biases as torch takes them: both or none."""
    given = [weights.get(role) for role in ("bias_ih", "bias_hh")]
    if given == [None, None]:
        return []
    zeros = weights["weight_hh"].new_zeros(len(weights["weight_hh"]))
    return [zeros if bias is None else bias for bias in given]


_CELL_OF: dict[Any, CellName] = {
    call: name for name, cell in CELLS.items() for call in (cell.layer, cell.alone)
}

_ROLES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _recurrent(call: Call) -> Recognized | None:
    """A module of several layers and directions: each layer reads what the one before gives."""
    layout, batch = call.layout("input"), 0 if call["batch_first"] else 1
    directions = ("forward", "reverse") if call["bidirectional"] else ("",)
    roles = _ROLES[: 4 if call["has_biases"] else 2]
    count = call["num_layers"] * len(directions)
    if layout is None or len(layout.dims) != 3 or layout.dims[batch] != (None,):
        return None
    if len(call["params"]) != count * len(roles):
        return None  # it projects its outputs
    parameters, kept = iter(call["params"]), _is_used(call, 2)
    first, steps = _first_states(call, count), layout.shape[0]
    layers: list[Recognized] = []
    source: fx.Node | Recognized = call["input"]
    for number in range(call["num_layers"]):
        name = f"{call.path}.l{number}" if call["num_layers"] > 1 else call.path
        pair = [
            Recognized(
                Recurrent(
                    cell=_CELL_OF[call.fx_node.target], reverse=direction == "reverse", kept=kept
                ),
                [source, *first[len(layers) + place]],
                {role: next(parameters) for role in roles},
                name=f"{name}_{direction}" if direction else name,
            )
            for place, direction in enumerate(directions)
        ]
        layers += pair
        outputs = [_rows(layer, 0, steps, "outputs") if kept else layer for layer in pair]
        source = Recognized(Concat(axis=1), outputs, name=name) if len(pair) > 1 else outputs[0]
    assert isinstance(source, Recognized)
    if call.part:
        return _last_states(call, layers, steps)
    dims, units = layout.dims[1 - batch], (call.result.shape[2],)
    return replace(
        source, layout=Layout((dims, (None,), units) if batch else ((None,), dims, units))
    )


def _is_used(call: Call, part: int) -> bool:
    """Whether the network does anything with a part of the tuple that a call gives."""
    return any(
        user.target is operator.getitem and user.args[1] == part and user.users
        for user in call.fx_node.users
    )


def _first_states(call: Call, count: int) -> list[list[Recognized]]:
    """What each layer and direction begins with, of an LSTM two; nothing where all is zero."""
    states = _given_states(call)
    if not states:
        return [[]] * count
    units = result_of(states[0]).shape[2]
    return [
        [
            Recognized(Reshape(size=(units,)), [_row(state, number, name)], name=name)
            for role, state in zip(("state", "kept"), states, strict=False)
            for name in [f"{call.path}.{role}{number}"]
        ]
        for number in range(count)
    ]


def _row(states: fx.Node, index: int, name: str) -> Recognized:
    return Recognized(Slice(axis=0, start=index, stop=index + 1), [states], name=f"{name}_row")


def _rows(source: Recognized, start: int, stop: int, what: str) -> Recognized:
    """Some of the steps of a layer."""
    return Recognized(Slice(axis=0, start=start, stop=stop), [source], name=f"{source.name}_{what}")


def _last_states(call: Call, layers: Sequence[Recognized], steps: int) -> Recognized:
    """The state after all steps, of each layer and direction one behind the other."""
    what = ("last", "kept")[call.part - 1]
    rows = []
    for number, layer in enumerate(layers):
        is_reverse = bool(call["bidirectional"] and number % 2)
        at = steps if what == "kept" else 0 if is_reverse else steps - 1
        rows.append(_rows(layer, at, at + 1, what))
    name = f"{call.path}_{what}"
    whole = Recognized(Concat(axis=0), rows, name=name) if len(rows) > 1 else rows[0]
    _, _, units = call.result.shape
    return replace(whole, layout=Layout(((len(rows),), (None,), (units,))), part=call.part)


def _given_states(call: Call) -> list[fx.Node]:
    """What a call begins with, of an LSTM two; nothing where all is zero."""
    states = list(call["hx"]) if isinstance(call["hx"], list | tuple) else [call["hx"]]
    constants = [call.values.constants.get(state) for state in states]
    is_zero = all(constant is not None and not constant.any() for constant in constants)
    return [] if is_zero else states


def _cell(call: Call) -> Recognized | None:
    """One step alone: a sequence of one."""
    features, units = call.shape_of("input"), call.shape
    if len(units) != 1 or len(features) != 1:
        return None
    given, kept = (call["w_ih"], call["w_hh"], call["b_ih"], call["b_hh"]), _is_used(call, 1)
    sequence = Recognized(Reshape(size=(1, *features)), [call["input"]], name=f"{call.path}.step")
    layer = Recognized(
        Recurrent(cell=_CELL_OF[call.fx_node.target], kept=kept),
        [sequence, *_given_states(call)],
        dict(zip(_ROLES, given, strict=True)),
        name=call.path,
    )
    what = ("state", "kept")[call.part]
    row = _rows(layer, call.part, call.part + 1, what) if kept else layer
    return Recognized(Reshape(size=units), [row], name=f"{call.path}.{what}", part=call.part)
