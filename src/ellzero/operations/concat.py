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
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.operations.shapes import Margin
from ellzero.tensors import Shape


class Concat(Operation):
    """Two values or more, one behind the other along an axis of an example."""

    kind: Literal["concat"] = "concat"
    axis: Margin = 0
    ARITY: ClassVar[int | None] = None
    FOLLOWS = True
    C = "body"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.cat.default: _concat}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return torch.cat(list(inputs), self.axis + 1)

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
    if call["dim"] == 0 or not call.shape:
        return None
    return Recognized(Concat(axis=call["dim"] % (len(call.shape) + 1) - 1), call["tensors"])
