"""The sum of two values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.c.kernel import Context
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.tensors import Shape


class Add(Operation):
    """The sum of two values of one shape: a residual connection."""

    kind: Literal["add"] = "add"
    ARITY = 2
    ELEMENTWISE = True
    FOLLOWS = True
    C = "body"
    FINISHES = True
    IN_PLACE = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.add.Tensor: _add}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0] + inputs[1]

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if inputs[0] != inputs[1]:
            raise InputError(f"a sum of {inputs[0]} and {inputs[1]}")
        return inputs[0]

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        return Axes((names, names), names)

    def c_body(self, context: Context) -> str:
        return context.each_value(lambda at: f"x{at('c')} + x2{at('c')}")


def _add(call: Call) -> Recognized | None:
    if call["alpha"] != 1 or call.shape_of("other") != call.shape_of("self"):
        return None
    return Recognized(Add(), [call["self"], call["other"]])
