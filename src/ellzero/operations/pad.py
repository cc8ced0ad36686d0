"""A margin of one value around an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from ellzero.c.arrays import c_float
from ellzero.c.kernel import Context, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.operations.shapes import Margin, Number
from ellzero.tensors import Shape


class Pad(Operation):
    """So many indices of one value before and after those of each axis, channels among them."""

    kind: Literal["pad"] = "pad"
    before: tuple[Margin, ...]
    after: tuple[Margin, ...]
    value: Number = 0.0
    FOLLOWS = True
    C = "body"
    FINISHES = True
    PER_VALUE = COPY

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.pad.default: _pad, aten.constant_pad_nd.default: _pad}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        sides = zip(reversed(self.before), reversed(self.after), strict=True)
        return F.pad(inputs[0], [side for pair in sides for side in pair], value=self.value)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if not len(inputs[0]) == len(self.before) == len(self.after):
            raise InputError(
                f"margins of {len(self.before)} and {len(self.after)} axes around {inputs[0]}"
            )
        return tuple(
            b + size + a for b, size, a in zip(self.before, inputs[0], self.after, strict=True)
        )

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        """New channels are known, so that they can leave; at other axes all stays."""
        places = range(1, len(output))
        read, result = ([f"{letter}{place}" for place in places] for letter in "pq")
        sizes = {"before": self.before[0], "after": self.after[0]}
        new = {name: size for name, size in sizes.items() if size}
        order = [name for name in ("before", "c", "after") if name == "c" or name in new]
        return Axes(
            (" ".join(["c", *read]),),
            " ".join(["+".join(order), *result]),
            whole=" ".join([*read, *result]),
            sizes=new,
        )

    def narrowed(self, kept: Mapping[str, int], output: Shape) -> Operation:
        before, after = kept.get("before", 0), kept.get("after", 0)
        changed = {"before": (before, *self.before[1:]), "after": (after, *self.after[1:])}
        return self.model_copy(update=changed)

    def c_body(self, context: Context) -> str:
        (shape,) = context.inputs
        sides = list(zip(self.before, shape, self.after, strict=True))

        def value(indices: Sequence[str]) -> str:
            inside = []
            for index, (before, size, after) in zip(indices, sides, strict=True):
                inside += [f"{index} >= {before}"] * (before > 0)
                inside += [f"{index} < {before + size}"] * (after > 0)
            place = " + ".join(
                f"({index} - {before}) * {stride}" if before else f"{index} * {stride}"
                for index, before, stride in zip(indices, self.before, strides(shape), strict=True)
            )
            if not inside:
                return f"x[{place}]"
            return f"{' && '.join(inside)} ? x[{place}] : {c_float(self.value)}"

        return context.each_place(value)


def _pad(call: Call) -> Recognized | None:
    shape = call.shape_of("self")
    if call.fx_node.target is aten.pad.default and call["mode"] != "constant":
        return None
    sides = list(call["pad"])
    if not shape or any(type(side) is not int or side < 0 for side in sides):
        return None
    if any(sides[2 * len(shape) :]):  # of the batch
        return None
    # torch counts axes from the last one
    margins = [*zip(sides[::2], sides[1::2], strict=True)][: len(shape)]
    margins = [*[(0, 0)] * (len(shape) - len(margins)), *reversed(margins)]
    before, after = zip(*margins, strict=True)
    value = call["value"] or 0.0
    return Recognized(Pad(before=before, after=after, value=value), [call["self"]])
