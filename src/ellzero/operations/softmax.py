"""Softmax over the channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.text import block
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.tensors import Shape


class Softmax(Operation):
    """Softmax over the channels, or its logarithm."""

    kind: Literal["softmax"] = "softmax"
    log: bool = False
    C = "body"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.softmax.int: _softmax, aten.log_softmax.int: _softmax}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.log_softmax(inputs[0], 1) if self.log else F.softmax(inputs[0], 1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return inputs[0]

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        return Axes((names,), names, whole=names[:1])

    def why_whole(self) -> str:
        return "a softmax depends on every channel"

    def c_body(self, context: Context) -> str:
        """The largest value is taken off first, so that no exponential overflows."""
        channels, *rest = context.shape
        size = math.prod(rest)
        loop = f"for (int c = 0; c < {channels}; ++c)"
        at = f"[c * {size}]"
        last = (
            f"top += logf(total);\n{loop} y{at} = x{at} - top;"
            if self.log
            else f"{loop} y{at} = expf(x{at} - top) / total;"
        )
        return block(
            f"for (int i = 0; i < {size}; ++i, ++x, ++y)",
            "float top = x[0];\nfloat total = 0.0f;\n"
            f"{loop} if (x{at} > top) top = x{at};\n"
            f"{loop} total += expf(x{at} - top);\n{last}",
        )


def _softmax(call: Call) -> Recognized | None:
    if call["dim"] % (len(call.shape) + 1) != 1 or call["dtype"] is not None:
        return None
    log = call.fx_node.target is aten.log_softmax.int
    return Recognized(Softmax(log=log), [call["self"]])
