"""The kernels of convolutions of integers: some outputs of a row of one channel at a time.

Of few weights each lies with its distance, and is multiplied by the inputs of all outputs of a
tile. Of all weights those of a kernel's row lie side by side; with DSP an instruction adds the
products of two of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ellzero.c.text import indented

CONV = """/* A kernel that is called once stays a function: within the caller its sums would not fit
   into registers. */
#if defined(__GNUC__)
#define NET_APART __attribute__((noinline))
#else
#define NET_APART
#endif

typedef struct {
    const int8_t *weights; /* each with its distance, in three bytes; or rows of a kernel */
    const net_start *starts; /* of each output's weights, where they lie with distances */
    const uint16_t *distances; /* of each row's inputs from those of the one before */
    int32_t row_count, weight_count; /* rows, and weights, of an output */
    const int32_t *sums, *multipliers; /* of each output, where its sum begins, and its factor */
    int32_t group_outputs, group_step; /* inputs of a group of outputs are a step apart */
    int32_t rows, columns, row_step;
    int32_t last; /* column of the last outputs that are computed together */
    int32_t zero, low, high;
} net_conv;
"""

DISTANCE = """/* From the input of the weight before to that of this one. */
static int32_t net_distance(const int8_t *weight)
{
#if defined(__ARM_FEATURE_DSP)
    uint16_t distance;
    memcpy(&distance, weight + 1, 2);
    return distance;
#else
    return (uint8_t)weight[1] + (int32_t)(uint8_t)weight[2] * 256;
#endif
}
"""

MOST_TAPS = 8
"""Weights of a kernel's row that are written out in a kernel; a longer row is several."""

WIDEST = {True: 8, False: 6}
"""Outputs that are computed together at the most, as registers hold: of few weights, of all."""

TILE_COST = 35
"""Instructions for a tile besides those for its weights and its outputs, about."""

REGISTERS = 14
"""What a Cortex-M has; a value that finds no room is stored and loaded each time."""

OUTPUT_COST = 6
"""Instructions for an output: its sum begins, is rounded and stored."""


def taps_of(row: int) -> int:
    """How many weights of a kernel's row are written out: all, or an equal part.

    Example:
        >>> [taps_of(n) for n in (3, 5, 10, 80, 11)]
        [3, 5, 5, 8, 1]
    """
    return next(taps for taps in range(MOST_TAPS, 0, -1) if row % taps == 0)


@dataclass(frozen=True)
class Tile:
    """Outputs of a row that are computed together.

    Args:
        width: how many.
        stride: from the inputs of one to those of the next.
        taps: weights of a kernel's row; 0 where each has its distance.
    """

    width: int
    stride: int
    taps: int

    @property
    def name(self) -> str:
        """The kernel's name, without the network's."""
        kind = f"rows_{self.taps}" if self.taps else "sparse"
        return f"conv_{kind}_{self.width}" + (f"_{self.stride}" if self.stride > 1 else "")

    @property
    def walk_cost(self) -> int:
        """Instructions for a weight with its distance, or for a kernel's row."""
        _, count = self._fast()
        return count + (5 if self.taps == 0 else 4)

    def cost(self, columns: int, weights: float) -> float:
        """Instructions for a row of outputs.

        Args:
            columns: outputs of the row.
            weights: of an output.
        """
        steps = weights / max(self.taps, 1)
        each = TILE_COST + OUTPUT_COST * self.width + steps * self.walk_cost
        return math.ceil(columns / self.width) * each

    @property
    def source(self) -> str:
        """The kernel: the outputs of one channel."""
        lanes = range(self.width)
        totals = ", ".join(f"s{lane} = sum" for lane in lanes)
        stored = "\n".join(
            f"y[{f'column + {lane}' if lane else 'column'}] = "
            f"net_round(s{lane}, multiplier, zero, layer->low, layer->high);"
            for lane in lanes
        )
        place = "column" if self.stride == 1 else f"column * {self.stride}"
        if self.taps:
            found = """const int8_t *const weights = layer->weights + r * layer->weight_count;
const uint16_t *const end = layer->distances + layer->row_count;"""
            walk = f"""const int8_t *weight = weights;
for (const uint16_t *distance = layer->distances; distance != end; ++distance) {{
    p += *distance;
{indented(self._products(), 1)}
    weight += {self.taps};
}}"""
        else:
            found = """const int8_t *const weights = layer->weights + 3 * (int32_t)layer->starts[r];
const int8_t *const end = layer->weights + 3 * (int32_t)layer->starts[r + 1];"""
            walk = f"""for (const int8_t *weight = weights; weight != end; weight += 3) {{
    p += net_distance(weight);
{indented(self._products(), 1)}
}}"""
        return f"""/* One output channel, {self.width} at a time. */
NET_APART static void net_{self.name}(const net_conv *layer, int32_t r, const int8_t *x, int8_t *y)
{{
{indented(found, 1)}
    const int32_t sum = layer->sums[r], multiplier = layer->multipliers[r], zero = layer->zero;
    x += r / layer->group_outputs * layer->group_step;
    for (int32_t row = 0; row < layer->rows; ++row) {{
        int32_t column = 0;
        for (;;) {{
            const int8_t *p = x + {place};
            int32_t {totals};
{indented(walk, 3)}
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

    def _products(self) -> str:
        """What is added to the sums for a weight, or for a kernel's row."""
        taps = max(self.taps, 1)
        lines = [f"const int32_t w{tap} = weight[{tap}];" for tap in range(taps)]
        for lane in range(self.width):
            places = [lane * self.stride + tap for tap in range(taps)]
            products = [f"w{tap} * p[{place}]" for tap, place in enumerate(places)]
            lines += [f"s{lane} += {product};" for product in products]
        fast, _ = self._fast()
        portable = "\n".join(lines).replace("p[0]", "*p").replace("weight[0]", "*weight")
        if not fast:
            return portable
        return f"#if defined(__ARM_FEATURE_DSP)\n{fast}\n#else\n{portable}\n#endif"

    def _fast(self) -> tuple[str, int]:
        """The same with DSP, and how many instructions that takes; none where it does not help."""
        taps = max(self.taps, 1)
        span = self.stride * (self.width - 1) + taps
        helps = self.stride == 1 and self.width >= 4 if taps == 1 else self.stride <= 2
        if not helps or span < 4:
            return "", taps * (2 * self.width + (self.taps > 0))
        weights, products, count = _split_weights(taps), _products(taps, self.width, self.stride), 0
        names = [name for load in weights for name in load.names]
        lines = [f"uint32_t {', '.join([*names, 'even', 'odd'])};", *(w.text for w in weights)]
        count = sum(load.instructions for load in weights) - (self.taps == 0)
        while products:
            first = min(products[0].place, span - 4)
            lines.append(_load("p", first, span, "even", "odd"))
            now = [x for x in products if x.half(first) is not None]
            products = [x for x in products if x not in now]
            lines += [x.text(first) for x in now]
            count += 3 + len(now)
        # beside sums and weights: the pairs, the places of weight, input and end, and of distances
        spilled = self.width + len(names) + (6 if self.taps else 5) - REGISTERS
        return "\n".join(lines), count + 2 * max(0, spilled)


def _load(base: str, first: int, span: int, even: str, odd: str) -> str:
    """Four bytes: the first and the third in the halves of one register, the others in another."""
    at = f"[%2, #{first}]" if first else "[%2]"
    return f"""__asm__ volatile("ldr %1, {at}\\n\\t"
                 "sxtb16 %0, %1\\n\\t"
                 "sxtb16 %1, %1, ror #8"
                 : "=&r"({even}), "=&r"({odd})
                 : "r"({base}), "m"(*(const int8_t(*)[{span}]){base}));"""


@dataclass(frozen=True)
class _Weights:
    """Weights in registers: the statement that loads them, and what it declares."""

    names: tuple[str, ...]
    text: str
    instructions: int


def _split_weights(taps: int) -> list[_Weights]:
    """A kernel's row: by fours, where three are left with a byte that is not used, or alone."""
    loads = []
    for first in range(0, taps, 4):
        if taps - first >= 3:
            names = f"w{first}", f"w{first + 1}"
            bytes_read = 4 * math.ceil(taps / 4)
            loads.append(_Weights(names, _load("weight", first, bytes_read, *names), 3))
            continue
        for tap in range(first, taps):
            place = f"weight[{tap}]" if tap else "*weight"
            loads.append(_Weights((f"w{tap}",), f"w{tap} = (uint32_t)(int32_t){place};", 1))
    return loads


@dataclass(frozen=True)
class _Product:
    """What is added to an output's sum: a weight times an input, or two times two.

    Args:
        lane: of the output.
        place: of the input; the second one is two behind it.
        weights: the register; its lower half is the weight, or the first one.
        dual: whether there are two.
    """

    lane: int
    place: int
    weights: str
    dual: bool

    def half(self, first: int) -> int | None:
        """Where four inputs from there on have it: 0 or 1 for a pair, 2 or 3 for an upper half."""
        at = self.place - first
        return at if 0 <= at < (2 if self.dual else 4) else None

    def text(self, first: int) -> str:
        """The statement, once four inputs from there on are loaded."""
        at = self.half(first)
        assert at is not None
        name = "odd" if at % 2 else "even"
        how = "smlad" if self.dual else "smlatb" if at >= 2 else "smlabb"
        total = f"s{self.lane}"
        return (
            f'__asm__ volatile("{how} %0, %1, %2, %0" : "+r"({total}) : "r"({name}), '
            f'"r"({self.weights}));'
        )


def _products(taps: int, width: int, stride: int) -> list[_Product]:
    """All products of a kernel's row, by the places of their inputs."""
    products = []
    for lane in range(width):
        place = lane * stride
        for first in range(0, taps, 4):
            if taps - first >= 3:
                products.append(_Product(lane, place + first, f"w{first}", True))
                whole = taps - first > 3
                products.append(_Product(lane, place + first + 1, f"w{first + 1}", whole))
                continue
            for tap in range(first, taps):
                products.append(_Product(lane, place + tap, f"w{tap}", False))
    return sorted(products, key=lambda product: product.place)
