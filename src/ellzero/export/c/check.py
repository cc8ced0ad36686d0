"""The test beside generated C: raw inputs, and the outputs that PyTorch gave for them."""

from __future__ import annotations

import torch
from torch import Tensor

import ellzero
from ellzero.c.arrays import floats
from ellzero.c.text import block, indented
from ellzero.errors import InputError
from ellzero.export.c.blob import LOAD
from ellzero.export.c.plan import with_preprocessing
from ellzero.graph import Network
from ellzero.graph.network import outputs_of
from ellzero.graph.trace import Example, batches_of
from ellzero.preprocess import Preprocess

EXAMPLES = 8
"""Examples in the test, at most."""

TOLERANCE = 1e-4
"""How far the C may be from PyTorch, relative to the largest output or 1."""


def examples_of(network: Network, example: Example | None) -> tuple[Tensor, Tensor]:
    """Raw inputs (N, inputs) and PyTorch's outputs (N, outputs) for them, float32.

    Of several inputs or outputs the values of one lie behind those of the one before.

    Raises:
        InputError: an example that is not finite, or whose outputs are not.
    """
    prepare = network.graph.preprocess
    if example is None:
        batches = list(network.examples(2, torch.Generator().manual_seed(0)))
    else:
        batches = batches_of(example)
    batches = [batch[:EXAMPLES].detach().cpu() for batch in batches]
    given = [x.float() if x.is_floating_point() else x for x in batches]
    given[0] = _unprepared(given[0], prepare)
    whole = with_preprocessing(network).float().cpu().eval()
    with torch.no_grad():
        results = outputs_of(whole(*given))
    raw = torch.cat([x.flatten(1).float() for x in given], 1)
    outputs = torch.cat([y.flatten(1) for y in results], 1)
    for what, values in (("has", raw), ("gives", outputs)):
        bad = (~values.isfinite()).any(1).nonzero()
        if len(bad):
            raise InputError(
                f"example {int(bad[0])} {what} NaN or inf as float32; a test needs numbers"
            )
    return raw, outputs


def _unprepared(x: Tensor, prepare: Preprocess | None) -> Tensor:
    """Raw values that the preprocessing turns into these, as exactly as float32 can."""
    if prepare is None:
        return x
    view = (1, -1) + (1,) * (x.ndim - 2)
    scale, shift = (
        torch.as_tensor(value, dtype=torch.float64).reshape(-1).view(view)
        for value in (prepare.scale, prepare.shift)
    )
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((x.double() - shift) / safe).float()


_STEPS = """        static {name}_state state;
        static float step[{upper}_STEP_OUTPUTS];
        {name}_reset(&state);
        for (int t = 0; t < {upper}_FRAMES; ++t) {{
            {name}_step(&state, inputs + n * {upper}_INPUTS + t * {upper}_FRAME, step);
        }}
        for (int i = 0; i < {upper}_STEP_OUTPUTS; ++i) {{
            const float whole = output[{upper}_OUTPUTS - {upper}_STEP_OUTPUTS + i];
            const float difference = fabsf(step[i] - whole) / size;
            if (!(difference <= worst)) {{
                worst = difference >= 0.0f ? difference : HUGE_VALF;
            }}
        }}
"""


def program(
    inputs: Tensor,
    outputs: Tensor,
    name: str,
    *,
    first: int,
    streams: bool = False,
    reads: bool = False,
) -> str:
    """A C program that says whether the network's C does what PyTorch does.

    Args:
        inputs: raw ones (N, inputs).
        outputs: PyTorch's (N, outputs).
        name: the network's.
        first: how many values the first output has, among which the largest is looked for.
        streams: whether it takes frames one by one, too.
        reads: whether the weights are in a file that the program has to read.
    """
    upper = name.upper()
    classes = outputs[:, :first].argmax(1).tolist()
    steps = _STEPS.format(name=name, upper=upper) if streams else ""
    include = "#include <stdlib.h>\n" if reads else ""
    load = LOAD.format(name=name, upper=upper) + "\n" if reads else ""
    loading = indented(block("if (load(count, words))", "return 1;")) if reads else ""
    arrays = "\n".join(
        floats(what, tensor.numpy()).source()
        for what, tensor in (("inputs", inputs), ("expected", outputs))
    )
    return f"""/* {name} against PyTorch; written by ellzero {ellzero.__version__}. */
#include "{name}.h"

#include <math.h>
#include <stdio.h>
{include}
{arrays}
static const int classes[{len(classes)}] = {{{", ".join(map(str, classes))}}};

{load}int main({"int count, char **words" if reads else "void"})
{{
    static float output[{upper}_OUTPUTS];
    float worst = 0.0f;
    int wrong = 0;
{loading}
    for (int n = 0; n < {len(classes)}; ++n) {{
        const float *const right = expected + n * {upper}_OUTPUTS;
        const int found = {name}_predict(inputs + n * {upper}_INPUTS, output);
        float size = 1.0f;
        for (int i = 0; i < {upper}_OUTPUTS; ++i) {{
            if (fabsf(right[i]) > size) {{
                size = fabsf(right[i]);
            }}
        }}
        for (int i = 0; i < {upper}_OUTPUTS; ++i) {{
            const float difference = fabsf(output[i] - right[i]) / size;
            /* a NaN counts as the largest, or a later number would hide it */
            if (!(difference <= worst)) {{
                worst = difference >= 0.0f ? difference : HUGE_VALF;
            }}
        }}
{steps}        /* two outputs may be as large as float can tell */
        const float lead = fabsf(right[found] - right[classes[n]]);
        if (found != classes[n] && !(lead <= {TOLERANCE}f * size)) {{
            ++wrong;
        }}
    }}
    printf("{name}: {len(classes)} examples, largest difference %g, wrong classes %d\\n",
           (double)worst, wrong);
    return worst <= {TOLERANCE}f && wrong == 0 ? 0 : 1;
}}
"""
