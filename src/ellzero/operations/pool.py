"""The maximum or the average of windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.layer import plane
from ellzero.c.text import block, loop, scope
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, places
from ellzero.operations.call import Call, aten
from ellzero.operations.flatten import Flatten
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.operations.shapes import Margins, Sizes, dimensions_of, each, sizes, windows
from ellzero.tensors import Shape


class Pool(Operation):
    """The maximum or the average of windows of each channel, in one to three dimensions."""

    kind: Literal["pool"] = "pool"
    function: Literal["max", "average"]
    kernel: Sizes
    stride: Sizes
    padding: Margins = (0, 0)
    dilation: Sizes = (1, 1)
    ceil: bool = False
    count_padding: bool = True
    FOLLOWS = True
    C = "body"
    FINISHES = True

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        read, result = (places(len(self.kernel), letter) for letter in "ry")
        return Axes((f"c {read}",), f"c {result}", whole=f"{read} {result}")

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return RECOGNIZERS

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        which, settings = len(self.kernel) - 1, (self.kernel, self.stride, self.padding)
        if self.function == "max":
            pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[which]
            return pool(inputs[0], *settings, self.dilation, self.ceil)
        pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[which]
        return pool(inputs[0], *settings, self.ceil, self.count_padding)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        count = dimensions_of(
            kernel=self.kernel, stride=self.stride, padding=self.padding, dilation=self.dilation
        )
        channels, *size = sizes(inputs[0], 1 + count, "the input")
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise InputError(f"padding {self.padding} is more than half the kernel {self.kernel}")
        if self.function == "average" and any(d > 1 for d in self.dilation):
            raise InputError("average pooling has no dilation")
        settings = self.kernel, self.stride, self.padding, self.dilation
        return (channels, *windows(size, *settings, ceil=self.ceil))

    def work(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape) -> int:
        return math.prod(inputs[0]) + COPY * math.prod(output) * (1 + math.prod(self.kernel))

    def c_lacks(self) -> str:
        return " in 3 dimensions" if len(self.kernel) > 2 else ""

    def c_body(self, context: Context) -> str:
        """A signal is an image of one row."""
        (channels, *size), (_, *result) = context.inputs[0], context.shape
        (height, width), (rows, columns) = plane(size), plane(result)
        op = Pool(
            function=self.function,
            kernel=plane(self.kernel),
            stride=plane(self.stride),
            padding=plane(self.padding, 0),
            dilation=plane(self.dilation),
            count_padding=self.count_padding,
        )
        (kh, kw), (sh, sw), (dh, dw) = op.kernel, op.stride, op.dilation
        down, right = (rows - 1) * sh + (kh - 1) * dh, (columns - 1) * sw + (kw - 1) * dw
        fits = not any(op.padding) and down < height and right < width
        inner = (_window if fits else _clipped_window)(context, op, height, width)
        each = loop("oy", rows, loop("ox", columns, inner))
        return loop("c", channels, f"{each}\nx += {height * width};")


def _maximum(call: Call) -> Recognized | None:
    return _pooled(call, "max", dilation=call["dilation"])


def _average(call: Call) -> Recognized | None:
    return _pooled(call, "average", count_padding=call["count_include_pad"])


def _average_of_any(call: Call) -> Recognized | None:
    return _average(call) if call["divisor_override"] is None else None


def _pooled(
    call: Call, function: str, *, dilation: Any = 1, count_padding: bool = True
) -> Recognized | None:
    count = len(call.shape_of("self")) - 1
    if count < 1:
        return None
    pool = Pool.model_validate(
        {
            "function": function,
            "kernel": each(call["kernel_size"], count),
            "stride": each(call["stride"] or call["kernel_size"], count),
            "padding": each(call["padding"], count),
            "dilation": each(dilation, count),
            "ceil": call["ceil_mode"],
            "count_padding": count_padding,
        }
    )
    return Recognized(pool, [call["self"]])


def _adaptive(call: Call, function: Literal["max", "average"]) -> Recognized | None:
    size, out = call.shape_of("self")[1:], call.shape[1:]
    if not size or any(n % m for n, m in zip(size, out, strict=True)):
        return None  # windows of unequal size
    kernel = tuple(n // m for n, m in zip(size, out, strict=True))
    return Recognized(_of_all(function, kernel), [call["self"]])


def _mean(call: Call) -> Recognized | None:
    """The average of all places of each channel."""
    shape = call.shape_of("self")
    dimensions = sorted(d % (len(shape) + 1) for d in call["dim"] or ())
    if not 2 <= len(shape) <= 4 or dimensions != [*range(2, len(shape) + 1)] or call["dtype"]:
        return None
    mean = Recognized(_of_all("average", shape[1:]), [call["self"]])
    return mean if call["keepdim"] else Recognized(Flatten(), [mean], name=f"{call.name}_flat")


def _of_all(function: Literal["max", "average"], kernel: Shape) -> Pool:
    """Windows beside each other, without padding."""
    none, ones = (0,) * len(kernel), (1,) * len(kernel)
    return Pool(function=function, kernel=kernel, stride=kernel, padding=none, dilation=ones)


RECOGNIZERS: dict[Any, Recognizer] = {
    aten.max_pool1d.default: _maximum,
    aten.max_pool2d.default: _maximum,
    aten.max_pool3d.default: _maximum,
    # where the indices are asked for, but not used
    aten.max_pool1d_with_indices.default: _maximum,
    aten.max_pool2d_with_indices.default: _maximum,
    aten.max_pool3d_with_indices.default: _maximum,
    aten.avg_pool1d.default: _average,
    aten.avg_pool2d.default: _average_of_any,
    aten.avg_pool3d.default: _average_of_any,
    aten.adaptive_avg_pool1d.default: lambda call: _adaptive(call, "average"),
    aten.adaptive_avg_pool2d.default: lambda call: _adaptive(call, "average"),
    aten.adaptive_avg_pool3d.default: lambda call: _adaptive(call, "average"),
    aten.adaptive_max_pool1d.default: lambda call: _adaptive(call, "max"),
    aten.adaptive_max_pool2d.default: lambda call: _adaptive(call, "max"),
    aten.adaptive_max_pool3d.default: lambda call: _adaptive(call, "max"),
    aten.mean.dim: _mean,
}


def _within(places: Mapping[str, tuple[int, int, int]], body: str) -> str:
    """C that does something where each place is from 0 on and before an end.

    Args:
        places: by their C variables, the first place, the last place, and the end.
        body: it is done.
    """
    conditions = [
        condition
        for name, (first, last, end) in places.items()
        for condition in [f"{name} >= 0"] * (first < 0) + [f"{name} < {end}"] * (last >= end)
    ]
    return block(f"if ({' && '.join(conditions)})", body) if conditions else scope(body)


def _taken(value: str, op: Pool) -> str:
    """C that takes one more value of a window."""
    if op.function == "max":
        return block(f"if ({value} > total)", f"total = {value};")
    return f"total += {value};"


def _window(context: Context, op: Pool, height: int, width: int) -> str:
    """C of a window that lies within the input."""
    area = op.kernel[0] * op.kernel[1]
    down, right = op.dilation[0] * width, op.dilation[1]
    is_max = op.function == "max"
    begin = f"const float *p = x + oy * {op.stride[0] * width} + ox * {op.stride[1]};\n"
    if area <= 16:
        offsets = [y * down + x * right for y in range(op.kernel[0]) for x in range(op.kernel[1])]
        sums = "\n".join(_taken(f"p[{offset}]", op) for offset in offsets[1:])
    else:
        place = f"i / {op.kernel[1]} * {down} + i % {op.kernel[1]} * {right}"
        read = f"const float q = p[{place}];\n{_taken('q', op)}"
        sums = block(f"for (int i = 1; i < {area}; ++i)", read)
    total = "total" if is_max else f"total / {area}.0f"
    return f"{begin}float total = p[0];\n{sums}\n" + context.finish(total, "*y++", "c")


def _clipped_window(context: Context, op: Pool, height: int, width: int) -> str:
    """C of a window that may leave the input, so that it looks where it is."""
    is_max = op.function == "max"
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = op.kernel, op.stride, op.padding, op.dilation
    rows, columns = plane(context.shape[1:])
    ends = (rows - 1) * sh - ph + (kh - 1) * dh, (columns - 1) * sw - pw + (kw - 1) * dw
    place = (
        f"const int iy = oy * {sh} - {ph} + ky * {dh};\n"
        f"const int ix = ox * {sw} - {pw} + kx * {dw};\n"
    )
    take = f"const float q = x[iy * {width} + ix];\n{_taken('q', op)}"
    if not is_max and op.count_padding:
        # but not what a last window of ceil mode reaches beyond it
        counted = {"iy": (0, ends[0], height + ph), "ix": (0, ends[1], width + pw)}
        place += _within(counted, "++count;") + "\n"
    elif not is_max:
        take += "\n++count;"
    read = _within({"iy": (-ph, ends[0], height), "ix": (-pw, ends[1], width)}, take)
    loops = loop("ky", kh, loop("kx", kw, place + read))
    begin = "float total = -HUGE_VALF;" if is_max else "float total = 0.0f;\nint count = 0;"
    total = "total" if is_max else "total / (float)count"
    return f"{begin}\n{loops}\n{context.finish(total, '*y++', 'c')}"
