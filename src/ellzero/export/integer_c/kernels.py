"""The kernels of integer C, each a function that all layers of its kind share.

`net_` stands for the network's name. Some have a form for processors of Arm's with DSP, which gives
the same integers. What C leaves to the compiler and is taken here: a right shift
of a negative number keeps its sign, and int8_t takes the low byte of a larger number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ellzero.c.text import indented

_ROUND = """/* {limits}(zero + sum * multiplier / 2^32), rounded once, halves up. */
static int8_t net_round(int32_t sum, int32_t multiplier, int32_t zero{parameters})
{{
#if defined(__ARM_FEATURE_DSP)
    int32_t q;
    __asm__("smmulr %0, %1, %2" : "=r"(q) : "r"(sum), "r"(multiplier));
    q += zero;
    __asm__("ssat %0, #8, %0" : "+r"(q));
#else
    int32_t q = (int32_t)(((int64_t)sum * multiplier + 0x80000000) >> 32);
    q += zero;
    if (q < -128) {{
        q = -128;
    }}
    if (q > 127) {{
        q = 127;
    }}
#endif
{more}    return (int8_t)q;
}}
"""

_LIMITS = """    if (q < low) {
        q = low;
    }
    if (q > high) {
        q = high;
    }
"""

ROUND = _ROUND.format(limits="-128..127", parameters="", more="")
ROUND_WITHIN = _ROUND.format(
    limits="low..high", parameters=", int32_t low, int32_t high", more=_LIMITS
)
"""For a network with layers whose activation limits them to less than int8 has."""


def without_limits(text: str) -> str:
    """A kernel for a network whose layers have no limits of their own."""
    return re.sub(r",\s+layer->low, layer->high\)", ")", text)


LINEAR = """typedef struct {
    const int8_t *weights; /* pairs of a gap, 0 to 255, and a weight; or every weight of a row */
    const uint16_t *counts; /* of each row's pairs */
    const int32_t *sums, *multipliers; /* of each row, where its sum begins, and its factor */
    int32_t rows, columns, zero, low, high;
} net_linear;
"""

LINEAR_GAPS = """/* A dense layer of few weights. */
static void net_linear_gaps(const net_linear *layer, const int8_t *x, int8_t *y)
{
    const int8_t *pair = layer->weights;
    for (int32_t r = 0; r < layer->rows; ++r) {
        const int8_t *p = x;
        int32_t sum = layer->sums[r];
        uint16_t left = layer->counts[r];
#if defined(__ARM_FEATURE_DSP)
        for (; left >= 4; left = (uint16_t)(left - 4)) {
            uint32_t pairs, weights; /* two at a time: gap, weight, gap, weight */
            memcpy(&pairs, pair, 4);
            __asm__("sxtb16 %0, %1, ror #8" : "=r"(weights) : "r"(pairs));
            __asm__("uxtab %0, %0, %1" : "+r"(p) : "r"(pairs));
            __asm__("smlabb %0, %1, %2, %0" : "+r"(sum) : "r"(weights), "r"((int32_t)*p));
            __asm__("uxtab %0, %0, %1, ror #16" : "+r"(p) : "r"(pairs));
            __asm__("smlatb %0, %1, %2, %0" : "+r"(sum) : "r"(weights), "r"((int32_t)*p));
            memcpy(&pairs, pair + 4, 4);
            __asm__("sxtb16 %0, %1, ror #8" : "=r"(weights) : "r"(pairs));
            __asm__("uxtab %0, %0, %1" : "+r"(p) : "r"(pairs));
            __asm__("smlabb %0, %1, %2, %0" : "+r"(sum) : "r"(weights), "r"((int32_t)*p));
            __asm__("uxtab %0, %0, %1, ror #16" : "+r"(p) : "r"(pairs));
            __asm__("smlatb %0, %1, %2, %0" : "+r"(sum) : "r"(weights), "r"((int32_t)*p));
            pair += 8;
        }
#endif
        for (; left >= 4; left = (uint16_t)(left - 4)) {
            p += (uint8_t)pair[0];
            sum += pair[1] * *p;
            p += (uint8_t)pair[2];
            sum += pair[3] * *p;
            p += (uint8_t)pair[4];
            sum += pair[5] * *p;
            p += (uint8_t)pair[6];
            sum += pair[7] * *p;
            pair += 8;
        }
        for (; left > 0; --left) {
            p += (uint8_t)pair[0];
            sum += pair[1] * *p;
            pair += 2;
        }
        y[r] = net_round(sum, layer->multipliers[r], layer->zero, layer->low, layer->high);
    }
}
"""

LINEAR_DENSE = """/* A dense layer. */
static void net_linear_dense(const net_linear *layer, const int8_t *x, int8_t *y)
{
    const int8_t *weight = layer->weights;
    for (int32_t r = 0; r < layer->rows; ++r) {
        int32_t sum = layer->sums[r], i = 0;
#if defined(__ARM_FEATURE_DSP)
        for (; i + 4 <= layer->columns; i += 4) {
            uint32_t w, v, weights, values; /* four bytes, of which every other one by itself */
            memcpy(&w, weight, 4);
            memcpy(&v, x + i, 4);
            __asm__("sxtb16 %0, %1" : "=r"(weights) : "r"(w));
            __asm__("sxtb16 %0, %1" : "=r"(values) : "r"(v));
            __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(weights), "r"(values));
            __asm__("sxtb16 %0, %1, ror #8" : "=r"(weights) : "r"(w));
            __asm__("sxtb16 %0, %1, ror #8" : "=r"(values) : "r"(v));
            __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(weights), "r"(values));
            weight += 4;
        }
#endif
        for (; i + 4 <= layer->columns; i += 4) {
            sum += weight[0] * x[i];
            sum += weight[1] * x[i + 1];
            sum += weight[2] * x[i + 2];
            sum += weight[3] * x[i + 3];
            weight += 4;
        }
        for (; i < layer->columns; ++i) {
            sum += *weight++ * x[i];
        }
        y[r] = net_round(sum, layer->multipliers[r], layer->zero, layer->low, layer->high);
    }
}
"""

CONV = """typedef struct {
    const int8_t *weights;
    const uint16_t *distances; /* of each weight's input from the one before */
    const net_start *starts; /* of each output's weights; 0 where all have `count`, at one place */
    const int32_t *sums, *multipliers; /* of each output, where its sum begins, and its factor */
    int32_t count, group_outputs, group_step; /* inputs of a group of outputs are a step apart */
    int32_t rows, columns, row_step, column_step;
    int32_t last; /* column of the last outputs that are computed together */
    int32_t zero, low, high;
} net_conv;
"""


@dataclass(frozen=True)
class Tile:
    """Outputs of a row that are computed together, each weight multiplied by their inputs.

    Args:
        width: how many.
        unit: whether their inputs lie side by side.
    """

    width: int
    unit: bool

    @property
    def name(self) -> str:
        """The kernel's name, without the network's."""
        return f"conv_{self.width}" + ("" if self.unit else "_apart")

    @property
    def source(self) -> str:
        """The kernel: the outputs of one channel."""
        lanes = range(self.width)
        step = "1" if self.unit else "step"
        places = [f"p[{lane}]" if self.unit else f"p[{lane} * step]" for lane in lanes]
        places = ["*p", *places[1:]]
        if not self.unit and self.width > 1:
            places[1] = "p[step]"
        totals = ", ".join(f"s{lane} = sum" for lane in lanes)
        added = "\n".join(f"s{lane} += w * {places[lane]};" for lane in lanes)
        if self.unit and self.width >= 4:
            added = _with_dsp(added, self.width)
        stored = "\n".join(
            f"y[{f'column + {lane}' if lane else 'column'}] = net_round(s{lane}, "
            "multiplier, layer->zero, layer->low, layer->high);"
            for lane in lanes
        )
        at = "column" if self.unit else "column * step"
        define = "" if self.unit else f"    const int32_t {step} = layer->column_step;\n"
        return f"""/* One output channel, {self.width} at a time. */
static void net_{self.name}(const net_conv *layer, int32_t r, const int8_t *x, int8_t *y)
{{
    const net_start *const starts = layer->starts;
    const int8_t *const weights = layer->weights + (starts ? (int32_t)starts[r] : r * layer->count);
    const int8_t *const end = weights + (starts ? starts[r + 1] - starts[r] : layer->count);
    const uint16_t *const distances = layer->distances + (starts ? (int32_t)starts[r] : 0);
    const int32_t sum = layer->sums[r], multiplier = layer->multipliers[r];
{define}    x += r / layer->group_outputs * layer->group_step;
    for (int32_t row = 0; row < layer->rows; ++row) {{
        int32_t column = 0;
        for (;;) {{
            const int8_t *p = x + {at}, *weight = weights;
            const uint16_t *distance = distances;
            int32_t {totals};
            while (weight != end) {{
                const int32_t w = *weight++;
                p += *distance++;
{indented(added, 4)}
            }}
{indented(stored, 3)}
            if (column == layer->last) {{
                break;
            }}
            column += {self.width};
            if (column > layer->last) {{
                column = layer->last; /* some outputs are computed twice, to the same */
            }}
        }}
        x += layer->row_step;
        y += layer->columns;
    }}
}}
"""


def _with_dsp(portable: str, width: int) -> str:
    """Sums of neighbours: with DSP four inputs in one load, two of them in each word."""
    lines = []
    for first in range(0, width - 3, 4):
        at = f"[%4, #{first}]" if first else "[%4]"
        sums = ", ".join(f'"+r"(s{first + lane})' for lane in range(4))
        lines.append(
            f"""__asm__("ldr %5, {at}\\n\\t"
        "sxtb16 %6, %5\\n\\t"
        "sxtb16 %5, %5, ror #8\\n\\t"
        "smlabb %0, %6, %7, %0\\n\\t"
        "smlatb %2, %6, %7, %2\\n\\t"
        "smlabb %1, %5, %7, %1\\n\\t"
        "smlatb %3, %5, %7, %3"
        : {sums}, "+r"(p), "=&r"(bytes), "=&r"(two)
        : "r"(w), "m"(*(const int8_t(*)[{width}])p));"""
        )
    lines += [f"s{lane} += w * p[{lane}];" for lane in range(width - width % 4, width)]
    fast = "\n".join(lines)
    return (
        f"#if defined(__ARM_FEATURE_DSP)\nuint32_t bytes, two;\n{fast}\n#else\n{portable}\n#endif"
    )


PAD = """/* Channels with a margin of one value around each. */
static void net_pad(const int8_t *x, int8_t *y, int32_t channels, int32_t height, int32_t width,
                    int32_t top, int32_t left, int32_t tall, int32_t wide, int8_t value)
{
    const int32_t between = wide - width, first = top * wide + left;
    for (int32_t c = 0; c < channels; ++c) {
        const int8_t *const next = y + tall * wide;
        for (int32_t i = 0; i < first; ++i) {
            *y++ = value;
        }
        for (int32_t row = 0; row < height; ++row) {
            for (int32_t i = 0; i < width; ++i) {
                *y++ = *x++;
            }
            for (int32_t i = 0; i < between && y != next; ++i) {
                *y++ = value;
            }
        }
        while (y != next) {
            *y++ = value;
        }
    }
}
"""

COPY = """/* Runs of a value, into places a step apart. */
static void net_copy(const int8_t *x, int8_t *y, int32_t runs, int32_t length, int32_t step)
{
    for (int32_t run = 0; run < runs; ++run) {
        for (int32_t i = 0; i < length; ++i) {
            y[i] = *x++;
        }
        y += step;
    }
}
"""

FILL = """/* One value again and again. */
static void net_fill(int8_t *y, int8_t value, int32_t count)
{
    for (int32_t i = 0; i < count; ++i) {
        y[i] = value;
    }
}
"""

LOOKUP = """/* A function of each value, by its table. */
static void net_lookup(const int8_t *table, const int8_t *x, int8_t *y, int32_t count)
{
    for (int32_t i = 0; i < count; ++i) {
        y[i] = table[x[i] + 128];
    }
}
"""

ADD = """typedef struct {
    int32_t zero1, factor1, zero2, factor2, shift, zero, low, high;
} net_sum;

/* The sum of two values, each with its own scale. */
static void net_add(const net_sum *sum, const int8_t *x, const int8_t *x2, int8_t *y, int32_t count)
{
    const int32_t half = (int32_t)1 << (sum->shift - 1);
    for (int32_t i = 0; i < count; ++i) {
        int32_t q = (x[i] - sum->zero1) * sum->factor1 + (x2[i] - sum->zero2) * sum->factor2;
        q = ((q + half) >> sum->shift) + sum->zero;
        if (q < sum->low) {
            q = sum->low;
        }
        if (q > sum->high) {
            q = sum->high;
        }
        y[i] = (int8_t)q;
    }
}
"""

AVERAGE = """typedef struct {
    const int32_t *multipliers; /* by how many values there are, less one */
    int32_t zero, output_zero, low, high;
} net_average;
"""
