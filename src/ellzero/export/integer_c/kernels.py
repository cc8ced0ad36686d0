"""The kernels of integer C, each a function that all layers of its kind share.

`net_` stands for the network's name. Some have a form for processors of Arm's with DSP, which gives
the same integers. What C leaves to the compiler and is taken here: a right shift
of a negative number keeps its sign, and int8_t takes the low byte of a larger number.
"""

from __future__ import annotations

import re

_ROUND = """/* A value as int8; beyond {limits} it becomes the limit. */
static int8_t net_saturate(int32_t q{parameters})
{{
#if defined(__ARM_FEATURE_DSP)
    __asm__("ssat %0, #8, %0" : "+r"(q));
#else
    if (q < -128) {{
        q = -128;
    }}
    if (q > 127) {{
        q = 127;
    }}
#endif
{more}    return (int8_t)q;
}}

/* {limits}(zero + sum * multiplier / 2^32), rounded once, halves up. */
static int8_t net_round(int32_t sum, int32_t multiplier, int32_t zero{parameters})
{{
#if defined(__ARM_FEATURE_DSP)
    int32_t q;
    __asm__("smmulr %0, %1, %2" : "=r"(q) : "r"(sum), "r"(multiplier));
#else
    const int32_t q = (int32_t)(((int64_t)sum * multiplier + 0x80000000) >> 32);
#endif
    return net_saturate(q + zero{arguments});
}}
"""

_LIMITS = """    if (q < low) {
        q = low;
    }
    if (q > high) {
        q = high;
    }
"""

ROUND = _ROUND.format(limits="-128..127", parameters="", arguments="", more="")
ROUND_WITHIN = _ROUND.format(
    limits="low..high",
    parameters=", int32_t low, int32_t high",
    arguments=", low, high",
    more=_LIMITS,
)
"""For a network with layers whose activation limits them to less than int8 has."""


def without_limits(text: str) -> str:
    """A kernel or a constant for a network whose layers have no limits of their own."""
    text = re.sub(r",\s+(layer|sum)->low, (layer|sum)->high\)", ")", text)
    return re.sub(
        r", low, high;|, \.low = -128, \.high = 127", lambda m: ";" * (m[0][-1] == ";"), text
    )


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

COPY = """/* Runs of a value, into places a step apart. */
static void net_copy(const int8_t *x, int8_t *y, int32_t runs, int32_t length, int32_t step)
{
    for (int32_t run = 0; run < runs; ++run) {
        memcpy(y, x, (size_t)length);
        x += length;
        y += step;
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
    int32_t first, factor1, factor2, shift, zero, low, high;
} net_sum;

/* The sum of two values, each with its own scale. */
static void net_add(const net_sum *sum, const int8_t *x, const int8_t *x2, int8_t *y, int32_t count)
{
    const int32_t first = sum->first, factor1 = sum->factor1, factor2 = sum->factor2;
    const int32_t shift = sum->shift, zero = sum->zero;
    for (int32_t i = 0; i < count; ++i) {
        const int32_t q = first + x[i] * factor1 + x2[i] * factor2;
        y[i] = net_saturate((q >> shift) + zero, sum->low, sum->high);
    }
}
"""

AVERAGE = """typedef struct {
    const int32_t *multipliers; /* by how many values there are, less one */
    int32_t zero, output_zero, low, high;
} net_average;
"""
