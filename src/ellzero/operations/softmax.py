"""Softmax over an axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import FUNCTION, Operation, Recognized, Recognizer
from ellzero.operations.shapes import Margin
from ellzero.tensors import Shape


class Softmax(Operation):
    """Softmax over an axis of an example, or its logarithm."""

    kind: Literal["softmax"] = "softmax"
    log: bool = False
    axis: Margin = 0
    ANY_LAYOUT = True
    C = "body"
    PER_VALUE = FUNCTION

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.softmax.int: _softmax, aten.log_softmax.int: _softmax}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        function = F.log_softmax if self.log else F.softmax
        return function(inputs[0], self.axis + 1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if self.axis >= len(inputs[0]):
            raise InputError(f"a softmax over axis {self.axis} of {inputs[0]}")
        return inputs[0]

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        return Axes((names,), names, whole=names.split()[self.axis])

    def why_whole(self) -> str:
        return "a softmax depends on all that it is over"

    def c_body(self, context: Context) -> str:
        """The largest value is taken off first, so that no exponential overflows."""
        count = context.shape[self.axis]
        before, after = context.shape[: self.axis], math.prod(context.shape[self.axis + 1 :])
        at = f"[c * {after}]"
        share = f"x{at} - top" if self.log else f"expf(x{at} - top) / total"
        steps = (
            "float top = x[0];",
            "float total = 0.0f;",
            loop("c", count, block(f"if (x{at} > top)", f"top = x{at};")),
            loop("c", count, f"total += expf(x{at} - top);"),
            *["top += logf(total);"] * self.log,
            loop("c", count, f"y{at} = {share};"),
            "++x;",
            "++y;",
        )
        body = loop("i", after, "\n".join(steps))
        if math.prod(before) == 1:
            return body
        skip = (count - 1) * after
        return loop("row", math.prod(before), f"{body}\nx += {skip};\ny += {skip};")


def _softmax(call: Call) -> Recognized | None:
    layout = call.layout("self")
    axis = None if layout is None else layout.axis(call["dim"])
    if axis is None or call["dtype"] not in (None, call.result.dtype):
        return None
    log = call.fx_node.target is aten.log_softmax.int
    return Recognized(Softmax(log=log, axis=axis), [call["self"]])
