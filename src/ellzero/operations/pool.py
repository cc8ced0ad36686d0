"""The maximum or the average of windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ellzero.c.kernel import Context, indented
from ellzero.errors import InputError
from ellzero.operations.call import Call
from ellzero.operations.flatten import Flatten
from ellzero.operations.operation import CForm, Operation, Passing, Recognized, Recognizer
from ellzero.operations.shapes import Margin, Size, pair, sizes, windows
from ellzero.tensors import Shape

aten = torch.ops.aten


class Pool(Operation):
    """The maximum or the average of windows of each channel."""

    kind: Literal["pool"] = "pool"
    function: Literal["max", "average"]
    kernel: tuple[Size, Size]
    stride: tuple[Size, Size]
    padding: tuple[Margin, Margin] = (0, 0)
    dilation: tuple[Size, Size] = (1, 1)
    ceil: bool = False
    count_padding: bool = True
    PASSING: ClassVar[Passing] = "keep"
    C: ClassVar[CForm] = "body"
    FINISHES: ClassVar[bool] = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            aten.max_pool2d.default: _max_pool,
            aten.avg_pool2d.default: _average_pool,
            aten.adaptive_avg_pool2d.default: _adaptive_average,
            aten.mean.dim: _mean,
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        if self.function == "max":
            return F.max_pool2d(
                inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil
            )
        return F.avg_pool2d(
            inputs[0], self.kernel, self.stride, self.padding, self.ceil, self.count_padding
        )

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        channels, *size = sizes(inputs[0], 3, "the input")
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise InputError(f"padding {self.padding} is more than half the kernel {self.kernel}")
        if self.function == "average" and self.dilation != (1, 1):
            raise InputError("average pooling has no dilation")
        return (
            channels,
            *(
                windows(n, k, s, p, d, ceil=self.ceil)
                for n, k, s, p, d in zip(
                    size, self.kernel, self.stride, self.padding, self.dilation, strict=True
                )
            ),
        )

    def c_body(self, context: Context) -> str:
        (channels, height, width), (_, rows, columns) = context.inputs[0], context.shape
        fits = all(
            2 * p == 0 and (n - 1) * s + d * (k - 1) < size
            for p, n, s, d, k, size in zip(
                self.padding,
                (rows, columns),
                self.stride,
                self.dilation,
                self.kernel,
                (height, width),
                strict=True,
            )
        )
        inner = (_window if fits else _clipped_window)(context, self, height, width)
        return (
            f"for (int c = 0; c < {channels}; ++c) {{\n"
            f"    for (int oy = 0; oy < {rows}; ++oy) {{\n"
            f"        for (int ox = 0; ox < {columns}; ++ox) {{\n{indented(inner, 3)}\n        }}\n"
            f"    }}\n    x += {height * width};\n}}"
        )


def _max_pool(call: Call) -> Recognized | None:
    return _pooled(call, "max", dilation=pair(call["dilation"]))


def _average_pool(call: Call) -> Recognized | None:
    if call["divisor_override"] is not None:
        return None
    return _pooled(call, "average", count_padding=call["count_include_pad"])


def _pooled(call: Call, function: str, **settings: Any) -> Recognized | None:
    if len(call.shape_of("self")) != 3:
        return None
    common = {
        "function": function,
        "kernel": pair(call["kernel_size"]),
        "stride": pair(call["stride"] or call["kernel_size"]),
        "padding": pair(call["padding"]),
        "ceil": call["ceil_mode"],
    }
    return Recognized(Pool.model_validate(common | settings), [call["self"]])


def _adaptive_average(call: Call) -> Recognized | None:
    size, out = call.shape_of("self")[1:], call.shape[1:]
    if len(out) != 2 or any(n % m for n, m in zip(size, out, strict=True)):
        return None  # windows of unequal size
    kernel = (size[0] // out[0], size[1] // out[1])
    return Recognized(Pool(function="average", kernel=kernel, stride=kernel), [call["self"]])


def _mean(call: Call) -> Recognized | None:
    shape = call.shape_of("self")
    if len(shape) != 3 or sorted(d % 4 for d in call["dim"] or ()) != [2, 3] or call["dtype"]:
        return None
    _, *size = shape
    kernel = pair(size)
    mean = Recognized(Pool(function="average", kernel=kernel, stride=kernel), [call["self"]])
    return mean if call["keepdim"] else Recognized(Flatten(), [mean], name=f"{call.name}_flat")


def _window(context: Context, op: Pool, height: int, width: int) -> str:
    """C of a window that lies within the input."""
    area = op.kernel[0] * op.kernel[1]
    is_max = op.function == "max"
    begin = f"const float *p = x + oy * {op.stride[0] * width} + ox * {op.stride[1]};\n"
    step = "if ({0} > total) total = {0};" if is_max else "total += {0};"
    if area <= 16:
        places = [
            y * op.dilation[0] * width + x * op.dilation[1]
            for y in range(op.kernel[0])
            for x in range(op.kernel[1])
        ]
        sums = "\n".join(step.format(f"p[{place}]") for place in places[1:])
    else:
        sums = (
            f"for (int i = 1; i < {area}; ++i) {{\n"
            f"    const float q = p[i / {op.kernel[1]} * {op.dilation[0] * width} + "
            f"i % {op.kernel[1]} * {op.dilation[1]}];\n    {step.format('q')}\n}}"
        )
    total = "total" if is_max else f"total / {area}.0f"
    return f"{begin}float total = p[0];\n{sums}\n" + context.finish(total, "*y++", "c")


def _clipped_window(context: Context, op: Pool, height: int, width: int) -> str:
    """C of a window that may leave the input, so that it looks where it is."""
    is_max = op.function == "max"
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = op.kernel, op.stride, op.padding, op.dilation
    step = "if (q > total) total = q;" if is_max else "total += q;"
    inside = f"iy >= 0 && iy < {height} && ix >= 0 && ix < {width}"
    # the divisor counts the padding, but not what a last window of ceil mode reaches beyond it
    counted = f"iy < {height + ph} && ix < {width + pw}" if op.count_padding else inside
    count = "" if is_max else f"        if ({counted}) ++count;\n"
    loops = (
        f"for (int ky = 0; ky < {kh}; ++ky) {{\n"
        f"    for (int kx = 0; kx < {kw}; ++kx) {{\n"
        f"        const int iy = oy * {sh} - {ph} + ky * {dh};\n"
        f"        const int ix = ox * {sw} - {pw} + kx * {dw};\n{count}"
        f"        if ({inside}) {{\n"
        f"            const float q = x[iy * {width} + ix];\n            {step}\n"
        "        }\n    }\n}\n"
    )
    if is_max:
        return f"float total = -HUGE_VALF;\n{loops}" + context.finish("total", "*y++", "c")
    return f"float total = 0.0f;\nint count = 0;\n{loops}" + context.finish(
        "total / (float)count", "*y++", "c"
    )
