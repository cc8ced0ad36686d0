"""Some of the indices of an axis: compaction puts it where inputs are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from ellzero.c.arrays import unsigned
from ellzero.c.kernel import Context, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.operation import COPY, Operation
from ellzero.operations.shapes import Margin, sizes
from ellzero.tensors import Shape


class Select(Operation):
    """Some indices of one axis, in ascending order of `indices`, an int64 tensor."""

    kind: Literal["select"] = "select"
    axis: Margin = 0
    REQUIRED = ("indices",)
    FOLLOWS = True
    C = "body"
    FINISHES = True
    PER_VALUE = COPY

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].index_select(self.axis + 1, weights["indices"])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (count,) = sizes(weights["indices"], 1, "indices")
        shape = inputs[0]
        if self.axis >= len(shape) or count > shape[self.axis]:
            raise InputError(f"{count} indices into axis {self.axis} of {shape}")
        return (*shape[: self.axis], count, *shape[self.axis + 1 :])

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        read, result = letters(len(output)).split(), letters(len(output)).split()
        read[self.axis], result[self.axis] = "from", "taken"
        return Axes((" ".join(read),), " ".join(result), {"indices": "taken"}, picks="indices")

    def c_body(self, context: Context) -> str:
        indices = context.weights["indices"].cpu().numpy()
        name = context.array(unsigned(f"{context.name}_indices", indices))
        steps = strides(context.inputs[0])

        def value(counters: Sequence[str]) -> str:
            at = [f"{name}[{i}]" if axis == self.axis else i for axis, i in enumerate(counters)]
            return f"x[{' + '.join(f'{i} * {step}' for i, step in zip(at, steps, strict=True))}]"

        return context.each_place(value)
