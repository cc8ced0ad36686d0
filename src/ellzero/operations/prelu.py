"""PReLU: a slope per channel for what is negative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Elementwise, Recognized, Recognizer
from ellzero.operations.shapes import expect
from ellzero.tensors import Shape


class PReLU(Elementwise):
    """`x` where positive, `slope * x` elsewhere; a slope per channel."""

    kind: Literal["prelu"] = "prelu"
    REQUIRED = ("slope",)

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.prelu.default: _prelu}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.prelu(inputs[0], weights["slope"])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        expect(weights["slope"], (inputs[0][0],), "the slope")
        return inputs[0]

    def c_value(self, v: str, weights: Mapping[str, str]) -> str:
        return f"{v} < 0.0f ? {v} * {weights['slope']} : {v}"


def _prelu(call: Call) -> Recognized:
    slope, channels = call.weight("weight"), call.shape[0]
    # one slope for all channels becomes one for each
    each = call["weight"] if slope.numel() == channels else slope.detach().expand(channels)
    return Recognized(PReLU(), [call["self"]], {"slope": each})
