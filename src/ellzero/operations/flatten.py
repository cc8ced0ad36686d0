"""All values of an example in one dimension."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, fx

from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.tensors import Shape


class Flatten(Operation):
    """All values of an example in one dimension, the last index fastest."""

    kind: Literal["flatten"] = "flatten"
    C = "same"
    FOLLOWS = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        calls = (
            aten.flatten.using_ints,
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
        )
        return dict.fromkeys(calls, _reshaped)

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].flatten(1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return (math.prod(inputs[0]),)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        if math.prod(inputs[0][1:]) == 1:
            return Axes((" ".join("a" + "1" * (len(inputs[0]) - 1)),), "a")
        names = letters(len(inputs[0]))
        places = " ".join(names.split()[1:])
        return Axes((names,), f"({names})", whole=places)


def _reshaped(call: Call) -> Recognized | fx.Node | None:
    before, after = call.shape_of("self"), call.shape
    if before == after:
        return call["self"]
    return Recognized(Flatten(), [call["self"]]) if before and len(after) == 1 else None
