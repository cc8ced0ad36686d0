"""The files of integer C: NAME.c, NAME.h, and a test with the integers that PyTorch gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import ellzero
from ellzero.c.arrays import Array, c_float
from ellzero.c.storage import StorageChoice
from ellzero.c.text import comment, dimensions, indented
from ellzero.errors import InputError
from ellzero.export.integer_c import kernels
from ellzero.export.integer_c.convolution import CONV
from ellzero.export.integer_c.floats import constant, input_functions
from ellzero.export.integer_c.steps import Writer
from ellzero.export.memory import Memory
from ellzero.graph import Network
from ellzero.operations.integer import INTEGER_OPERATIONS, Dequantize, Quantize


@dataclass(frozen=True)
class StoredLayer:
    """How a layer's weights lie: entries, nonzeros, layout, bytes of its constants."""

    name: str
    weights: int
    nonzeros: int
    layout: str
    size_bytes: int


@dataclass(frozen=True)
class IntegerC:
    """The C of an integer network.

    Args:
        files: their contents by their names.
        layers: how weights lie.
        constant_bytes: of all constant arrays.
        scratch_bytes: of working memory.
    """

    files: dict[str, str]
    layers: tuple[StoredLayer, ...]
    constant_bytes: int
    scratch_bytes: int


def integer_c(
    network: Network, name: str, choice: StorageChoice, inputs: Tensor, remark: str = ""
) -> IntegerC:
    """The C of an integer network, for the test with what it gives for a batch of inputs.

    Args:
        network: what `quantize(..., activations=8)` gave.
        name: a C identifier.
        choice: "smallest", "fastest" or "dense".
        inputs: as the network takes them, float (N, ...).
        remark: what the header says besides.

    Raises:
        InputError: nodes that are no operations of integers, by their names; weights of the wrong
            type; a sum that int32 cannot hold.
    """
    quantize, dequantize = _ends(network)
    writer = Writer(network, choice)
    writer.write()
    places, scratch = _placed(writer, network)
    integers = _integers(network, inputs)
    texts = {
        f"{name}.h": _header(network, writer, scratch, (quantize, dequantize), remark),
        f"{name}.c": _source(network, writer, places, quantize),
        f"{name}_test.c": _test(*integers),
    }
    files = {file: _named(text, name) for file, text in texts.items()}
    layers = tuple(
        StoredLayer(node, int(np.prod(_weight_shape(network, node))), rows.nonzeros, rows.layout, n)
        for node, (rows, n) in writer.stored.items()
    )
    return IntegerC(files, layers, sum(a.size_bytes for a in writer.arrays), scratch)


def _ends(network: Network) -> tuple[Quantize, Dequantize]:
    """Where integers begin and end."""
    allowed = (*INTEGER_OPERATIONS, "input", "flatten", "reshape", "concat", "pad")
    others = [node.named for node in network.graph.nodes if node.op.kind not in allowed]
    nodes = network.graph.nodes
    begins = [node.op for node in nodes if isinstance(node.op, Quantize)]
    ends = [node.op for node in nodes if isinstance(node.op, Dequantize)]
    if others or len(begins) != 1 or len(ends) != 1 or nodes[-1].op is not ends[0]:
        what = "; ".join(others[:3]) or "floats in between"
        raise InputError(
            f"there is no integer C of {what}; give what ez.quantize(..., activations=8) made"
        )
    return begins[0], ends[0]


def _weight_shape(network: Network, node: str) -> tuple[int, ...]:
    (weights,) = [n.weights for n in network.graph.nodes if n.name == node]
    return tuple(network.weight(weights["weight"]).shape)


def _placed(writer: Writer, network: Network) -> tuple[dict[str, str], int]:
    """Where each value and each piece of working memory lies, and bytes of scratch memory.

    Values that are never alive together share memory. Pieces of working memory are named by their
    step and number.
    """
    graph = network.graph
    (source,) = [node.name for node in graph.nodes if isinstance(node.op, Quantize)]
    result = writer.value(graph.nodes[-1].inputs[0])
    places = {source: "input"}
    if result == source or not writer.steps:
        raise InputError("the network computes nothing; there is no C to write")
    places[result] = "output"
    last_read = {name: i for i, step in enumerate(writer.steps) for name in step.inputs}
    last_read[result] = len(writer.steps)
    alive: dict[str, tuple[int, int]] = {}  # value -> (offset, bytes)
    scratch = Memory()
    for i, step in enumerate(writer.steps):
        done = [name for name in dict.fromkeys(step.inputs) if last_read[name] == i]
        dying = {name: alive.pop(name) for name in done if name in alive}
        if step.result not in places:
            if step.in_place and dying:  # none gives more than it reads
                offset, size = dying.pop(next(iter(dying)))
                if size > step.size:
                    scratch.give(offset + step.size, size - step.size)
            else:
                offset = scratch.take(step.size)
            places[step.result] = f"scratch + {offset}"
            if step.result in last_read:
                alive[step.result] = (offset, step.size)
            else:
                dying[step.result] = (offset, step.size)
        works = [(scratch.take(size), size) for size in step.work]
        for number, (offset, _) in enumerate(works):
            places[f"{step.result}:{number}"] = f"scratch + {offset}"
        for piece in (*dying.values(), *works):
            scratch.give(*piece)
    return places, scratch.size


def _integers(network: Network, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The int8 that go into the first layer, and those that come out of the last one."""
    nodes = network.graph.nodes
    (source,) = [node.name for node in nodes if isinstance(node.op, Quantize)]
    values: dict[str, Tensor] = {nodes[0].name: inputs.float()}
    with torch.no_grad():
        for node in nodes[1:-1]:
            weights = {role: network.weight(name) for role, name in node.weights.items()}
            values[node.name] = node.op.run([values[name] for name in node.inputs], weights)
    first, last = (values[name] for name in (source, nodes[-1].inputs[0]))
    return first.flatten(1), last.flatten(1)


def _named(text: str, name: str) -> str:
    """A text with the network's name in place of `net_` and `NET_`."""
    text = text.replace('"net_H"', f'"{name}.h"').replace("net_:", f"{name}:")
    return text.replace("net_", f"{name}_").replace("NET_", f"{name.upper()}_")


def _plain(text: str) -> str:
    """A name in a comment, where the network's name is not put in."""
    return comment(text).replace("net_", "net-").replace("NET_", "NET-")


def _header(
    network: Network,
    writer: Writer,
    scratch: int,
    ends: tuple[Quantize, Dequantize],
    remark: str,
) -> str:
    quantize, dequantize = ends
    inputs, outputs = network.graph.input_shape, network.shapes[network.graph.results[0]]
    classes = network.graph.classes
    named = ""
    if classes is not None:
        named = f"\n/* Classes in order: {', '.join(map(_plain, classes))} */\n"
    constants = sum(array.size_bytes for array in writer.arrays)
    said = f"\n   {_plain(remark)}" if remark else ""
    return f"""/* A network of integers, written by ellzero {ellzero.__version__}.{said} */
#ifndef NET_H
#define NET_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define NET_INPUTS {math.prod(inputs)} /* {dimensions(inputs)} */
#define NET_OUTPUTS {math.prod(outputs)} /* {dimensions(outputs)} */
#define NET_SCRATCH {max(scratch, 1)} /* bytes of working memory */
#define NET_CONSTANTS {constants} /* bytes of constant arrays; code comes on top */

/* A value is SCALE * (integer - ZERO). */
#define NET_INPUT_SCALE {c_float(quantize.scale)}
#define NET_INPUT_ZERO ({quantize.zero})
#define NET_OUTPUT_SCALE {c_float(dequantize.scale)}
#define NET_OUTPUT_ZERO ({dequantize.zero})
{named}
/* Outputs of one example, its last index fastest; returns the index of the largest output. All is
   done in integers. Its working memory is static: one call at a time. Left out if NET_NO_STATIC is
   defined. */
int net_predict(const int8_t *input, int8_t *output);

/* The same in working memory of the caller's, NET_SCRATCH bytes. */
int net_predict_in(const int8_t *input, int8_t *output, int8_t *scratch);
{input_functions(network, quantize).declared}
#ifdef __cplusplus
}}
#endif
#endif
"""


def _source(network: Network, writer: Writer, places: dict[str, str], quantize: Quantize) -> str:
    calls = []
    for step in writer.steps:
        code = step.code(
            [places[name] for name in step.inputs],
            places[step.result],
            [places[f"{step.result}:{number}"] for number in range(len(step.work))],
        )
        calls.append(f"/* {_plain(step.name)} */\n{code}")
    texts, constants = list(writer.kernels), writer.constants
    if writer.limited:
        texts = [kernels.ROUND_WITHIN if text == kernels.ROUND else text for text in texts]
    else:
        texts, constants = (list(map(kernels.without_limits, x)) for x in (texts, constants))
    start = f"typedef {writer.start_type.name}_t net_start;\n\n"
    has_conv = CONV in writer.kernels
    arrays = "".join(constant(array) for array in writer.arrays)
    unused = "" if any("scratch" in place for place in places.values()) else "(void)scratch;\n"
    return f"""/* A network of integers, written by ellzero {ellzero.__version__}. */
#include "net_H"

#include <string.h>

/* What stands behind the name of each constant, such as a section:
   -DNET_CONST='__attribute__((section(".weights")))'. */
#ifndef NET_CONST
#define NET_CONST
#endif

{start if has_conv else ""}{chr(10).join(texts)}
{arrays}{"".join(constants)}
int net_predict_in(const int8_t *input, int8_t *output, int8_t *scratch)
{{
    int best = 0;
{indented(unused + chr(10).join(calls))}
    for (int i = 1; i < NET_OUTPUTS; ++i) {{
        if (output[i] > output[best]) {{
            best = i;
        }}
    }}
    return best;
}}

#ifndef NET_NO_STATIC
int net_predict(const int8_t *input, int8_t *output)
{{
    static int8_t scratch[NET_SCRATCH];
    return net_predict_in(input, output, scratch);
}}
#endif
{input_functions(network, quantize).defined}"""


def _test(inputs: Tensor, outputs: Tensor) -> str:
    arrays = "".join(
        Array(what, tensor.numpy()).source()
        for what, tensor in (("inputs", inputs), ("expected", outputs))
    )
    count, size = outputs.shape
    classes = ", ".join(map(str, outputs.int().argmax(1).tolist()))
    return f"""/* C's integers against PyTorch's; written by ellzero {ellzero.__version__}. */
#include "net_H"

#include <stdio.h>

#define VALUE int8_t
{arrays}
static const int classes[{count}] = {{{classes}}};

int main(void)
{{
    static int8_t output[NET_OUTPUTS];
    int wrong = 0;
    for (int n = 0; n < {count}; ++n) {{
        const int found = net_predict(inputs + (long)n * NET_INPUTS, output);
        wrong += found != classes[n];
        for (int i = 0; i < {size}; ++i) {{
            wrong += output[i] != expected[n * {size} + i];
        }}
    }}
    printf("net_: {count} examples, %d integers are not PyTorch's\\n", wrong);
    return wrong == 0 ? 0 : 1;
}}
"""
