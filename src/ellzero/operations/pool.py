"""The maximum or the average of windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call, aten
from ellzero.operations.flatten import Flatten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.operations.shapes import Margin, Size, pair, sizes, windows
from ellzero.tensors import Shape


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
    FOLLOWS = True
    C = "body"
    FINISHES = True

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        return Axes(("c h w",), "c y x", whole="h w y x")

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
        settings = self.kernel, self.stride, self.padding, self.dilation
        return (channels, *windows(size, *settings, ceil=self.ceil))

    def c_body(self, context: Context) -> str:
        (channels, height, width), (_, rows, columns) = context.inputs[0], context.shape
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        down, right = (rows - 1) * sh + (kh - 1) * dh, (columns - 1) * sw + (kw - 1) * dw
        fits = not any(self.padding) and down < height and right < width
        inner = (_window if fits else _clipped_window)(context, self, height, width)
        each = loop("oy", rows, loop("ox", columns, inner))
        return loop("c", channels, f"{each}\nx += {height * width};")


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
    kernel = pair(shape[1:])
    mean = Recognized(Pool(function="average", kernel=kernel, stride=kernel), [call["self"]])
    return mean if call["keepdim"] else Recognized(Flatten(), [mean], name=f"{call.name}_flat")


def _window(context: Context, op: Pool, height: int, width: int) -> str:
    """C of a window that lies within the input."""
    area = op.kernel[0] * op.kernel[1]
    down, right = op.dilation[0] * width, op.dilation[1]
    is_max = op.function == "max"
    begin = f"const float *p = x + oy * {op.stride[0] * width} + ox * {op.stride[1]};\n"
    step = "if ({0} > total) total = {0};" if is_max else "total += {0};"
    if area <= 16:
        places = [y * down + x * right for y in range(op.kernel[0]) for x in range(op.kernel[1])]
        sums = "\n".join(step.format(f"p[{place}]") for place in places[1:])
    else:
        place = f"i / {op.kernel[1]} * {down} + i % {op.kernel[1]} * {right}"
        read = f"const float q = p[{place}];\n{step.format('q')}"
        sums = block(f"for (int i = 1; i < {area}; ++i)", read)
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
    count = "" if is_max else f"if ({counted}) ++count;\n"
    place = (
        f"const int iy = oy * {sh} - {ph} + ky * {dh};\n"
        f"const int ix = ox * {sw} - {pw} + kx * {dw};\n{count}"
    )
    read = block(f"if ({inside})", f"const float q = x[iy * {width} + ix];\n{step}")
    loops = loop("ky", kh, loop("kx", kw, place + read))
    begin = "float total = -HUGE_VALF;" if is_max else "float total = 0.0f;\nint count = 0;"
    total = "total" if is_max else "total / (float)count"
    return f"{begin}\n{loops}\n{context.finish(total, '*y++', 'c')}"
