"""The kernel of a pooling: one for each window, which all layers of that window share."""

from __future__ import annotations

from ellzero.c.layer import plane
from ellzero.c.text import block, indented, loop
from ellzero.operations.integer import IntegerPool


def pooling_name(op: IntegerPool) -> str:
    """The kernel's name, without the network's; those of other windows have others."""
    numbers = [*plane(op.kernel), *plane(op.stride), *plane(op.padding, 0), *plane(op.dilation)]
    counted = "" if op.function == "max" or op.count_padding else "_inner"
    return f"{op.function}_" + "_".join(map(str, numbers)) + counted


def pooling(op: IntegerPool) -> str:
    """C of the pooling of one channel; a signal is an image of one row."""
    is_max = op.function == "max"
    if _is_by_halves(op):
        return _HALVES.format(name=pooling_name(op))
    more = "" if is_max else "const net_average *layer, "
    body = _inside(op) if not any(op.padding) and not op.ceil else _clipped(op)
    if is_max:
        end = "*y++ = (int8_t)total;"
    else:
        end = (
            "*y++ = net_round(total - count * layer->zero, layer->multipliers[count - 1],\n"
            "                 layer->output_zero, layer->low, layer->high);"
        )
    each = loop("oy", 1, loop("ox", 1, f"{body}\n{end}"))
    each = each.replace("oy < 1", "oy < rows").replace("ox < 1", "ox < columns")
    unused = "" if not _is_inside(op) else "(void)height;\n"
    return (
        f"/* The {op.function} of windows of one channel. */\n"
        f"static void net_{pooling_name(op)}({more}const int8_t *x, int8_t *y, int32_t height,\n"
        f"    int32_t width, int32_t rows, int32_t columns)\n"
        f"{{\n{indented(unused + each.replace('for (int ', 'for (int32_t '))}\n}}\n"
    )


def _is_by_halves(op: IntegerPool) -> bool:
    """Whether it is the maximum of windows of 2 x 2 side by side, as after most convolutions."""
    sizes = plane(op.kernel), plane(op.stride), plane(op.dilation)
    return op.function == "max" and _is_inside(op) and sizes == ((2, 2), (2, 2), (1, 1))


_HALVES = """/* The maximum of windows of 2 x 2 of one channel. */
static void net_{name}(const int8_t *x, int8_t *y, int32_t height,
    int32_t width, int32_t rows, int32_t columns)
{{
    (void)height;
    for (int32_t oy = 0; oy < rows; ++oy) {{
        const int8_t *p = x + oy * 2 * width;
        int32_t left = columns;
#if defined(__ARM_FEATURE_DSP)
        for (; left >= 2; left -= 2) {{
            uint32_t upper, lower, difference;
            memcpy(&upper, p, 4);
            memcpy(&lower, p + width, 4);
            /* the larger of each two bytes, below each other and then side by side */
            __asm__("ssub8 %2, %0, %1\\n\\t"
                    "sel %0, %0, %1\\n\\t"
                    "ror %1, %0, #8\\n\\t"
                    "ssub8 %2, %0, %1\\n\\t"
                    "sel %0, %0, %1"
                    : "+r"(upper), "+r"(lower), "=&r"(difference) : : "cc");
            *y++ = (int8_t)upper;
            *y++ = (int8_t)(upper >> 16);
            p += 4;
        }}
#endif
        for (; left > 0; --left) {{
            int32_t total = *p;
            if (p[1] > total) {{
                total = p[1];
            }}
            if (p[width] > total) {{
                total = p[width];
            }}
            if (p[width + 1] > total) {{
                total = p[width + 1];
            }}
            *y++ = (int8_t)total;
            p += 2;
        }}
    }}
}}
"""


def _is_inside(op: IntegerPool) -> bool:
    return not any(op.padding) and not op.ceil


def _inside(op: IntegerPool) -> str:
    """A window that lies within the input."""
    (kh, kw), (sh, sw), (dh, dw) = plane(op.kernel), plane(op.stride), plane(op.dilation)
    is_max = op.function == "max"
    step = "if ({0} > total) {{\n    total = {0};\n}}" if is_max else "total += {0};"
    begin = f"const int8_t *p = x + oy * {sh} * width + ox * {sw};\n"
    count = "" if is_max else f"const int32_t count = {kh * kw};\n"
    if kh * kw <= 9:
        places = [f"p[{y * dh} * width + {x * dw}]" for y in range(kh) for x in range(kw)]
        lines = "\n".join(step.format(place) for place in places[1:])
        return f"{begin}{count}int32_t total = p[0];\n{lines}"
    inner = loop("kx", kw, step.format(f"p[kx * {dw}]"))
    first = "p[0]" if is_max else "0"
    return f"{begin}{count}int32_t total = {first};\n" + loop(
        "ky", kh, f"{inner}\np += {dh} * width;"
    )


def _clipped(op: IntegerPool) -> str:
    """A window that may leave the input, so that it looks where it is."""
    is_max = op.function == "max"
    (kh, kw), (sh, sw), (dh, dw) = plane(op.kernel), plane(op.stride), plane(op.dilation)
    ph, pw = plane(op.padding, 0)
    inside = "iy >= 0 && iy < height && ix >= 0 && ix < width"
    place = (
        f"const int32_t iy = oy * {sh} - {ph} + ky * {dh};\n"
        f"const int32_t ix = ox * {sw} - {pw} + kx * {dw};\n"
    )
    value = "x[iy * width + ix]"
    if is_max:
        read = block(f"if ({inside} && {value} > total)", f"total = {value};")
        start = "int32_t total = -128;"
    else:
        read = block(f"if ({inside})", f"total += {value};\n++count;")
        if op.count_padding:
            # but not what a last window reaches beyond it
            padded = f"iy < height + {ph} && ix < width + {pw}"
            read += block(f" else if ({padded})", "total += layer->zero;\n++count;")
        start = "int32_t total = 0, count = 0;"
    return f"{start}\n" + loop("ky", kh, loop("kx", kw, place + read))
