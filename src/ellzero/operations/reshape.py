"""The same values, in the same order, as other axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.errors import InputError
from ellzero.operations.axes import Axes, regrouped
from ellzero.operations.call import Call, aten
from ellzero.operations.flatten import Flatten
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.operations.shapes import Size
from ellzero.tensors import Shape


class Reshape(Operation):
    """The values of an example, the last index fastest, as axes of these sizes."""

    kind: Literal["reshape"] = "reshape"
    size: tuple[Size, ...]
    ANY_LAYOUT = True
    C = "same"
    FOLLOWS = True
    PER_VALUE = COPY
    VIEW = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        calls = (
            aten.flatten.using_ints,
            aten.unflatten.int,
            aten.view.default,
            aten.reshape.default,
            aten._unsafe_view.default,
            aten.squeeze.default,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
        )
        return dict.fromkeys(calls, _reshape)

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].reshape(-1, *self.size)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if math.prod(inputs[0]) != math.prod(self.size):
            raise InputError(f"{self.size} of {inputs[0]}, which has another number of values")
        return self.size

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        return regrouped(inputs[0], output)

    def narrowed(self, kept: Mapping[str, int], output: Shape) -> Operation:
        return self.model_copy(update={"size": output})


def _reshape(call: Call) -> Recognized | None:
    layout, before = call.viewed("self"), call.layout("self")
    if layout is None or before is None:
        return None
    if layout.shape == before.shape:
        return Recognized(None, [call["self"]], layout=layout)
    is_flat = layout.is_plain and before.is_plain and len(layout.shape) == 1
    operation = Flatten() if is_flat else Reshape(size=layout.shape)
    return Recognized(operation, [call["self"]], layout=layout)
