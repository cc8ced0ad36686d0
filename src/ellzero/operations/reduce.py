"""The mean, the sum, the maximum or the minimum over axes of an example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ellzero.c.kernel import Context, strides
from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.operations.reshape import Reshape
from ellzero.operations.shapes import Margin
from ellzero.tensors import Shape

FUNCTIONS = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}


class Reduce(Operation):
    """The mean, sum, maximum or minimum over axes of an example, which keep the size 1."""

    kind: Literal["reduce"] = "reduce"
    function: Literal["mean", "sum", "max", "min"]
    over: tuple[Margin, ...]
    ANY_LAYOUT = True
    FOLLOWS = True
    C = "body"
    FINISHES = True
    PER_VALUE = 2

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            aten.mean.dim: lambda call: _reduced(call, "mean", call["dim"]),
            aten.sum.dim_IntList: lambda call: _reduced(call, "sum", call["dim"]),
            aten.amax.default: lambda call: _reduced(call, "max", call["dim"]),
            aten.amin.default: lambda call: _reduced(call, "min", call["dim"]),
            aten.max.dim: lambda call: _reduced(call, "max", [call["dim"]]),
            aten.min.dim: lambda call: _reduced(call, "min", [call["dim"]]),
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        dims = [axis + 1 for axis in self.over]
        return FUNCTIONS[self.function](inputs[0], dim=dims, keepdim=True)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (shape,) = inputs
        if not self.over or max(self.over) >= len(shape) or len(set(self.over)) < len(self.over):
            raise InputError(f"a {self.function} over the axes {self.over} of {shape}")
        return tuple(1 if axis in self.over else size for axis, size in enumerate(shape))

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output)).split()
        result = ["1" if axis in self.over else name for axis, name in enumerate(names)]
        return Axes(
            (" ".join(names),), " ".join(result), whole=" ".join(names[a] for a in self.over)
        )

    def why_whole(self) -> str:
        return f"a {self.function} depends on all that it is over"

    def c_body(self, context: Context) -> str:
        shape = context.inputs[0]
        steps = strides(shape)
        count = math.prod(shape[axis] for axis in self.over)
        step = {
            "max": block("if (!(total >= q))", "total = q;"),
            "min": block("if (!(total <= q))", "total = q;"),
        }.get(self.function, "total += q;")
        start = {"max": "-HUGE_VALF", "min": "HUGE_VALF"}.get(self.function, "0.0f")
        total = f"total / {count}.0f" if self.function == "mean" else "total"
        inner = "const float q = p[{}];\n".format(
            " + ".join(f"r{axis} * {steps[axis]}" for axis in self.over)
        )
        body = inner + step
        for axis in reversed(self.over):
            body = loop(f"r{axis}", shape[axis], body)
        kept = [axis for axis in range(len(shape)) if axis not in self.over]
        place = " + ".join(f"i{axis} * {steps[axis]}" for axis in kept) or "0"
        first = "i0" if kept and kept[0] == 0 else "0"
        text = f"const float *p = x + {place};\nfloat total = {start};\n{body}\n" + context.finish(
            total, "*y++", first
        )
        for axis in reversed(kept):
            text = loop(f"i{axis}", shape[axis], text)
        return text


def _reduced(call: Call, function: str, dims: Sequence[int] | None) -> Recognized | None:
    layout = call.layout("self")
    if layout is None or not dims:
        return None
    axes = [layout.axis(dim) for dim in dims]
    over = sorted(axis for axis in axes if axis is not None)
    if len(over) < len(axes) or call.result.dtype != call["self"].meta["val"].dtype:
        return None
    kept = layout
    for dim in dims:
        kept = kept.resized(dim, 1)
    operation = Reduce.model_validate({"function": function, "over": tuple(over)})
    reduced = Recognized(operation, [call["self"]], layout=kept)
    if call["keepdim"]:
        return reduced
    for dim in sorted((dim % len(layout.dims) for dim in dims), reverse=True):
        kept = kept.without(dim)
    return Recognized(Reshape(size=kept.shape), [reduced], name=f"{call.name}_flat", layout=kept)
