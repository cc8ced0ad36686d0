"""Some of the channels: compaction puts it where inputs are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from ellzero.c.arrays import unsigned
from ellzero.c.kernel import Context
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.operation import Operation
from ellzero.operations.shapes import sizes
from ellzero.tensors import Shape


class Select(Operation):
    """Some of the channels, in ascending order of `indices`, an int64 tensor."""

    kind: Literal["select"] = "select"
    REQUIRED = ("indices",)
    FOLLOWS = True
    C = "body"
    FINISHES = True

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].index_select(1, weights["indices"])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (count,) = sizes(weights["indices"], 1, "indices")
        if count > inputs[0][0]:
            raise InputError(f"{count} indices into {inputs[0][0]} channels")
        return (count, *inputs[0][1:])

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        return Axes((f"i{names[1:]}",), names, {"indices": names[:1]}, picks="indices")

    def c_body(self, context: Context) -> str:
        indices = context.weights["indices"].cpu().numpy()
        name = context.array(unsigned(f"{context.name}_indices", indices))
        return context.each_value(lambda at: f"x{at(f'{name}[c]')}")
