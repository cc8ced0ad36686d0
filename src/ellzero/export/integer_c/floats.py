"""What turns raw values into an integer network's input: from floats, and from bytes by a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ellzero.c.arrays import Array, c_float
from ellzero.c.text import indented
from ellzero.graph import Network
from ellzero.operations.integer import Quantize
from ellzero.operations.integer.scale import REACH
from ellzero.preprocess import Preprocess


@dataclass(frozen=True)
class InputFunctions:
    """C of functions that make the input: what the header says, and the source."""

    declared: str
    defined: str


def input_functions(network: Network, quantize: Quantize) -> InputFunctions:
    """Functions from raw floats, and where raw values are preprocessed, from bytes 0 to 255.

    That from floats does what PyTorch does, each operation rounded by itself; that from bytes looks
    it up, or adds a number where that is the same.
    """
    prepare = network.graph.preprocess
    declared = """
/* The input of raw floats, as the network was given them in training; the one function that
   computes in floating point. Left out if NET_NO_FLOAT is defined. */
void net_input_from_floats(const float *raw, int8_t *input);
"""
    defined = f"\n#ifndef NET_NO_FLOAT\n{_from_floats(network, quantize)}#endif\n"
    if prepare is not None:
        declared += """
/* The same of raw bytes, such as pixels, in integers alone. */
void net_input_from_bytes(const uint8_t *raw, int8_t *input);
"""
        defined += f"\n{_from_bytes(network, quantize, prepare)}"
    return InputFunctions(declared, defined)


def _from_floats(network: Network, quantize: Quantize) -> str:
    prepare = network.graph.preprocess
    channels, *places = network.graph.input_shape
    arrays, lines = "", "const volatile float prepared = raw[i];"
    if prepare is not None:
        each = {}
        for what in ("scale", "shift"):
            value = getattr(prepare, what)
            if isinstance(value, int | float):
                each[what] = c_float(value)
            else:
                values = np.asarray(value, np.float32)
                arrays += constant(Array(f"net_raw_{what}", values))
                each[what] = f"net_raw_{what}[{'0' if len(values) == 1 else 'c'}]"
        # volatile: each result is rounded to float, whatever the compiler may contract
        lines = f"const volatile float times = raw[i] * {each['scale']};\n"
        lines += f"const volatile float prepared = times + {each['shift']};"
    reach = f"{REACH:.1f}f"
    body = f"""{lines}
const volatile float quotient = prepared * {c_float(1 / quantize.scale)};
float limited = quotient;
if (!(limited > -{reach})) {{
    limited = -{reach};
}}
if (limited > {reach}) {{
    limited = {reach};
}}
const volatile float positive = limited + {REACH + 0.5:.1f}f;
int32_t q = (int32_t)positive - {REACH:.0f} + NET_INPUT_ZERO;
if (q < -128) {{
    q = -128;
}}
if (q > 127) {{
    q = 127;
}}
input[i] = (int8_t)q;"""
    return f"""{arrays}void net_input_from_floats(const float *raw, int8_t *input)
{{
    for (int32_t c = 0; c < {channels}; ++c) {{
        for (int32_t i = 0; i < {math.prod(places)}; ++i) {{
{indented(body, 3)}
        }}
        raw += {math.prod(places)};
        input += {math.prod(places)};
    }}
}}
"""


def _from_bytes(network: Network, quantize: Quantize, prepare: Preprocess) -> str:
    channels, *places = network.graph.input_shape
    raw = torch.arange(256, dtype=torch.uint8).view(256, 1)
    table = quantize.run([prepare(raw.expand(256, channels))], {}).T  # (channels, 256)
    alike = bool((table == table[:1]).all())
    first = int(table[0, 0])
    if alike and torch.equal(table[0].int(), torch.arange(256) + first):
        arrays, value = "", f"(int8_t)(raw[i] + {first})" if first else "(int8_t)raw[i]"
    else:
        table = table[:1] if alike else table
        arrays = constant(Array("net_raw_table", table.numpy()))
        value = "net_raw_table[raw[i]]" if alike else "net_raw_table[c * 256 + raw[i]]"
    return f"""{arrays}void net_input_from_bytes(const uint8_t *raw, int8_t *input)
{{
    for (int32_t c = 0; c < {channels}; ++c) {{
        for (int32_t i = 0; i < {math.prod(places)}; ++i) {{
            input[i] = {value};
        }}
        raw += {math.prod(places)};
        input += {math.prod(places)};
    }}
}}
"""


def constant(array: Array) -> str:
    """An array's C, with a place for its section."""
    return array.source().replace("] = {", "] NET_CONST = {", 1)
