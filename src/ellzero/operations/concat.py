"""Values one behind the other along an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ellzero.c.kernel import Context, input_names
from ellzero.c.text import loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call, aten
from ellzero.operations.layout import Layout
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.operations.reshape import Reshape
from ellzero.operations.shapes import Margin
from ellzero.tensors import Shape


class Concat(Operation):
    """Two values or more, one behind the other along an axis of an example."""

    kind: Literal["concat"] = "concat"
    axis: Margin = 0
    ANY_LAYOUT = True
    ARITY: ClassVar[int | None] = None
    FOLLOWS = True
    C = "body"
    PER_VALUE = COPY

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.cat.default: _concat, aten.stack.default: _stack}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        # a constant is one example, which goes with each of the batch
        count = next((x.shape[0] for x in inputs if x.shape[0] != 1), 1)
        alike = [x.expand(count, *x.shape[1:]) if x.shape[0] == 1 else x for x in inputs]
        return torch.cat(alike, self.axis + 1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if not inputs or self.axis >= len(inputs[0]):
            raise InputError(f"{len(inputs)} values along axis {self.axis}")
        rest = {(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in inputs}
        if len(rest) > 1:
            raise InputError(f"values of {inputs} do not go together along axis {self.axis}")
        total = sum(shape[self.axis] for shape in inputs)
        return (*inputs[0][: self.axis], total, *inputs[0][self.axis + 1 :])

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = [f"a{axis}" for axis in range(len(output))]
        parts = [f"part{number}" for number in range(len(inputs))]
        *read, result = (
            " ".join([*names[: self.axis], part, *names[self.axis + 1 :]])
            for part in (*parts, "+".join(parts))
        )
        return Axes(tuple(read), result)

    def c_body(self, context: Context) -> str:
        """Run after run of what lies together, of each input in turn."""
        copies = ""
        for x, shape in zip(input_names(len(context.inputs)), context.inputs, strict=True):
            copies += loop("i", math.prod(shape[self.axis :]), f"*y++ = *{x}++;")
        return loop("run", math.prod(context.shape[: self.axis]), copies)


def _concat(call: Call) -> Recognized | None:
    layouts = _layouts(call)
    axis = layouts[0].axis(call["dim"]) if layouts else None
    if axis is None:
        return None
    sizes = [layout.shape[axis] for layout in layouts]
    if len({layout.resized(call["dim"], 1) for layout in layouts}) > 1:
        return None
    after = layouts[0].resized(call["dim"], sum(sizes))
    return Recognized(Concat(axis=axis), call["tensors"], layout=after)


def _stack(call: Call) -> Recognized | None:
    """Each value gets an axis of size 1, along which they follow each other."""
    layouts = _layouts(call)
    if not layouts or len(set(layouts)) > 1:
        return None
    one = layouts[0].inserted(call["dim"])
    axis = one.axis(call["dim"] % len(one.dims))
    if axis is None:
        return None
    parts = [Recognized(Reshape(size=one.shape), [source]) for source in call["tensors"]]
    after = one.resized(call["dim"] % len(one.dims), len(parts))
    return Recognized(Concat(axis=axis), parts, layout=after)


def _layouts(call: Call) -> list[Layout]:
    """How each value lies; empty where an operation cannot read one of them."""
    layouts = [call.values.layouts.get(source) for source in call["tensors"]]
    known = [layout for layout in layouts if layout is not None and layout.shape]
    return known if len(known) == len(layouts) else []
