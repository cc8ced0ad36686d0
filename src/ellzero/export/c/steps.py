"""The C of the other operations, and which emitter is whose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ellzero.export.c.arrays import unsigned
from ellzero.export.c.conv import conv
from ellzero.export.c.function import EXPRESSIONS, Aim, Context, Function, indented
from ellzero.export.c.layers import linear
from ellzero.export.c.step import Pad, Plan, Step
from ellzero.graph import ops


def pad(context: Context) -> Function:
    """A copy with zeros around each channel."""
    op, step = context.step.node.op, context.step
    assert isinstance(op, Pad)
    (_, height, width), (channels, _, wide) = step.inputs[0][1], step.shape
    top, left = op.padding
    lines = [f"for (int c = 0; c < {channels}; ++c) {{"]
    around = f"for (int i = 0; i < {top * wide + left}; ++i) *y++ = 0.0f;"
    lines += [
        f"    {around}",
        f"    for (int row = 0; row < {height}; ++row) {{",
        f"        for (int i = 0; i < {width}; ++i) *y++ = *x++;",
        f"        if (row < {height - 1}) for (int i = 0; i < {2 * left}; ++i) *y++ = 0.0f;",
        "    }",
        f"    {around}",
        "}",
    ]
    return context.done("\n".join(lines))


def pool(context: Context) -> Function:
    """The maximum or average of windows; windows that may leave the input look where they are."""
    op, step = context.step.node.op, context.step
    assert isinstance(op, ops.Pool)
    (channels, height, width), (_, rows, columns) = step.inputs[0][1], step.shape
    fits = all(
        2 * p == 0 and (n - 1) * s + d * (k - 1) < size
        for p, n, s, d, k, size in zip(
            op.padding,
            (rows, columns),
            op.stride,
            op.dilation,
            op.kernel,
            (height, width),
            strict=True,
        )
    )
    inner = (_window if fits else _clipped_window)(context, op, height, width)
    body = (
        f"for (int c = 0; c < {channels}; ++c) {{\n"
        f"    for (int oy = 0; oy < {rows}; ++oy) {{\n"
        f"        for (int ox = 0; ox < {columns}; ++ox) {{\n{indented(inner, 3)}\n        }}\n"
        f"    }}\n    x += {height * width};\n}}"
    )
    return context.done(body)


def _window(context: Context, op: ops.Pool, height: int, width: int) -> str:
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


def _clipped_window(context: Context, op: ops.Pool, height: int, width: int) -> str:
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


def select(context: Context) -> Function:
    """The channels that something reads."""
    indices = context.weight(context.step.node, "indices")
    assert indices is not None
    name = context.array(unsigned(f"{context.name}_indices", indices.cpu().numpy()))
    return _over(context, lambda at: f"x{at(f'{name}[c]')}")


def add(context: Context) -> Function:
    """The sum of two values."""
    return _over(context, lambda at: f"x{at('c')} + x2{at('c')}")


def elementwise(context: Context) -> Function:
    """A function of each value by itself."""
    return _over(context, lambda at: context.elementwise(context.step.node, f"x{at('c')}", "c", 0))


def _over(context: Context, value: Callable[[Callable[[str], str]], str]) -> Function:
    """A loop over channels and their values; `value` is given how to index by a channel."""
    channels, *rest = context.step.shape
    size = math.prod(rest)

    def at(channel: str) -> str:
        return f"[{channel}]" if size == 1 else f"[{channel} * {size} + i]"

    inner = context.finish(value(at), f"y{at('c')}", "c")
    if size > 1:
        inner = f"for (int i = 0; i < {size}; ++i) {{\n{indented(inner)}\n}}"
    return context.done(f"for (int c = 0; c < {channels}; ++c) {{\n{indented(inner)}\n}}")


def softmax(context: Context) -> Function:
    """Softmax over the channels, the largest value taken off first."""
    op, (channels, *rest) = context.step.node.op, context.step.shape
    assert isinstance(op, ops.Softmax)
    size = math.prod(rest)
    loop = f"for (int c = 0; c < {channels}; ++c)"
    at = f"[c * {size}]"
    last = (
        f"top += logf(total);\n{loop} y{at} = x{at} - top;"
        if op.log
        else f"{loop} y{at} = expf(x{at} - top) / total;"
    )
    return context.done(
        f"for (int i = 0; i < {size}; ++i, ++x, ++y) {{\n"
        + indented(
            "float top = x[0];\nfloat total = 0.0f;\n"
            f"{loop} if (x{at} > top) top = x{at};\n"
            f"{loop} total += expf(x{at} - top);\n{last}"
        )
        + "\n}"
    )


@dataclass(frozen=True)
class Emitter:
    """Who writes an operation as C, and what it promises.

    Args:
        write: makes the function.
        finishes: it stores every value by `Context.finish`, so that what comes after can be drawn
            in.
        in_place: it has read an input's value for the last time when it stores at its place.
    """

    write: Callable[[Context], Function]
    finishes: bool = False
    in_place: bool = False


EMITTERS: dict[type[ops.Op], Emitter] = {
    ops.Linear: Emitter(linear, finishes=True),
    ops.Conv: Emitter(conv, finishes=True),
    Pad: Emitter(pad),
    ops.Pool: Emitter(pool, finishes=True),
    ops.Select: Emitter(select, finishes=True),
    ops.Add: Emitter(add, finishes=True, in_place=True),
    **{op: Emitter(elementwise, finishes=True, in_place=True) for op in EXPRESSIONS},
    ops.Softmax: Emitter(softmax),
}
"""Every operation that there is C for; `plan` refuses others by their names."""


def emit(step: Step, plan: Plan, name: str, aim: Aim) -> Function:
    """The C of a step, in the storage that is best by the aim."""
    return EMITTERS[type(step.node.op)].write(Context(step, plan, name, aim))
