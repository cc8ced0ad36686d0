"""Random integer networks, and a program of many of them in C, run under the sanitizers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ellzero as ez
from c_programs import SANITIZERS, WARNINGS, check_style, succeed
from ellzero import operations as ops
from ellzero.graph import Graph, Network, Node
from ellzero.operations import integer
from ellzero.tensors import Shape

STRICT = (*WARNINGS, "-Wconversion", "-Wshadow", "-Wstrict-prototypes")

DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Input, output and scratch end where their memory ends; what they held before must not matter. */
static int run(const char *name, int (*predict)(const int8_t *, int8_t *, int8_t *), size_t inputs,
               size_t outputs, size_t scratch)
{
    char path[64];
    int8_t *const x = malloc(inputs), *const y = malloc(outputs), *const work = malloc(scratch);
    int8_t *const z = malloc(outputs);
    snprintf(path, sizeof path, "%s.in", name);
    FILE *const in = fopen(path, "rb");
    snprintf(path, sizeof path, "%s.out", name);
    FILE *const out = fopen(path, "wb");
    int failed = !x || !y || !z || !work || !in || !out;
    while (!failed && fread(x, 1, inputs, in) == inputs) {
        memset(work, 0x7E, scratch);
        predict(x, z, work);
        memset(work, 0xFF, scratch);
        memset(y, 0x55, outputs);
        const int best = predict(x, y, work);
        for (size_t i = 0; i < outputs; ++i) {
            failed |= y[i] > y[best] || (y[i] == y[best] && (int)i < best);
        }
        failed |= memcmp(y, z, outputs) != 0;
        if (failed) printf("%s: depends on memory, or gives the wrong class\\n", name);
        fwrite(y, 1, outputs, out);
    }
    if (in) fclose(in);
    if (out) fclose(out);
    free(x);
    free(y);
    free(z);
    free(work);
    return failed;
}
"""


class IntegerBuilder:
    """An integer network, node by node, of random integers; zero points are often at the ends."""

    def __init__(self, size: Shape, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.weights: dict[str, Tensor] = {}
        self.nodes = [Node(name="input", op=ops.Input(size=size))]
        self.shapes: dict[str, Shape] = {"input": size}
        self.source: str | None = None
        """What the next node reads, where that is not the last one."""
        self.add(integer.Quantize(scale=1.0, zero=0))

    @property
    def last(self) -> str:
        return self.source or self.nodes[-1].name

    @property
    def shape(self) -> Shape:
        return self.shapes[self.last]

    def pick(self, *values: Any) -> Any:
        return values[self.random.integers(len(values))]

    def zero(self) -> int:
        return self.pick(-128, 127, 0, int(self.random.integers(-128, 128)))

    def limits(self) -> dict[str, int]:
        """Zero point and limits of what rounds anew."""
        low, high = sorted(self.random.integers(-128, 128, 2).tolist())
        wide = {"low": -128, "high": 127}
        return {"output_zero": self.zero(), **self.pick(wide, wide, {"low": low, "high": high})}

    def add(self, op: ops.Operation, *others: str, **weights: Tensor) -> str:
        inputs = (self.last, *others)
        name = f"{op.kind}{len(self.nodes)}"
        roles = {role: f"{name}.{role}" for role in weights}
        sizes = {role: tuple(w.shape) for role, w in weights.items()}
        self.shapes[name] = op.shape([self.shapes[n] for n in inputs], sizes)
        self.weights |= {roles[role]: w for role, w in weights.items()}
        self.nodes.append(Node(name=name, op=op, inputs=inputs, weights=roles))
        self.source = None
        return name

    def layer(self, op: ops.Operation, *shape: int, density: float = 0.5) -> str:
        """A layer whose outputs are spread over the int8 that there are."""
        weight = self.random.integers(-127, 128, shape)
        weight[self.random.random(shape) > density] = 0
        fan_in = max(math.prod(shape[1:]) * density, 1)
        size = 100 * 80 * math.sqrt(fan_in)
        multiplier = self.random.uniform(0.1, 1, shape[0]) * 2**32 * 60 / size
        bias = self.random.normal(0, size, shape[0])
        return self.add(
            op,
            weight=torch.tensor(weight, dtype=torch.int8),
            bias=torch.tensor(bias.round(), dtype=torch.int32),
            multiplier=torch.tensor(multiplier.clip(1, 2**31 - 1), dtype=torch.int32),
        )

    def linear(self, rows: int, density: float = 0.5) -> str:
        op = integer.IntegerLinear.model_validate({"zero": self.zero(), **self.limits()})
        return self.layer(op, rows, self.shape[-1], density=density)

    def conv(self, out: int, kernel: Shape, **settings: Any) -> str:
        count = len(kernel)
        density = settings.pop("density", 0.5)
        plain = {"stride": (1,) * count, "before": (0,) * count, "after": (0,) * count}
        op = integer.IntegerConv.model_validate(
            plain | {"dilation": (1,) * count, "zero": self.zero()} | self.limits() | settings
        )
        return self.layer(op, out, self.shape[0] // op.groups, *kernel, density=density)

    def pool(self, function: str, kernel: Shape, **settings: Any) -> str:
        count = len(kernel)
        plain = {"stride": kernel, "padding": (0,) * count, "dilation": (1,) * count}
        if function == "max":
            op = ops.Pool.model_validate(plain | {"function": "max", "kernel": kernel} | settings)
            return self.add(integer.IntegerPool.of(op))
        more = {"zero": self.pick(-128, 127), **self.limits()}
        op = integer.IntegerPool.model_validate(
            plain | {"function": function, "kernel": kernel} | more | settings
        )
        counts = np.arange(1, math.prod(kernel) + 1)
        factors = (2**32 / counts).clip(max=2**31 - 1).astype(np.int64)
        return self.add(op, multiplier=torch.tensor(factors, dtype=torch.int32))

    def table(self) -> str:
        return self.add(
            integer.Lookup(),
            table=torch.tensor(self.random.integers(-128, 128, 256), dtype=torch.int8),
        )

    def sum_with(self, other: str) -> str:
        factors = tuple(self.random.integers(0, 2**21 + 1, 2).tolist())
        settings = {"zeros": (self.zero(), self.zero()), "factors": factors, **self.limits()}
        shift = int(self.random.integers(19, 24))
        op = integer.IntegerAdd.model_validate(settings | {"shift": shift})
        return self.add(op, other)

    def network(self, preprocess: ez.Preprocess | None = None) -> Network:
        self.add(integer.Dequantize(scale=1.0, zero=0))
        return Network(Graph(nodes=tuple(self.nodes), preprocess=preprocess), self.weights).eval()


def random_integer_network(seed: int) -> Network:
    """Convolutions, poolings, sums and tables in random order, then linear layers."""
    b = IntegerBuilder((1, 1), seed)
    draw = b.random.integers
    size = (int(draw(1, 5)), *draw(5, 11, b.pick(1, 2)).tolist())
    b = IntegerBuilder(size, seed)
    count = len(size) - 1

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(b.random.integers(low, high + 1, count).tolist())

    for _ in range(int(b.random.integers(1, 5))):
        kind = b.pick("conv", "conv", "pool", "table", "residual")
        kernel = each(1, 3)
        before, after, dilation = each(0, 2), each(0, 2), each(1, 2)
        fits = all(
            n + p + q > d * (k - 1)
            for n, p, q, d, k in zip(b.shape[1:], before, after, dilation, kernel, strict=True)
        )
        channels = b.shape[0]
        if kind == "conv" and fits:
            groups = b.pick(1, channels)
            out = groups * int(b.random.integers(1, 4))
            density = b.pick(0.1, 0.5, 1.0)
            b.conv(
                out,
                kernel,
                stride=each(1, 2),
                before=before,
                after=after,
                dilation=dilation,
                groups=groups,
                density=density,
            )
        elif kind == "pool" and all(n >= k for n, k in zip(b.shape[1:], kernel, strict=True)):
            padding = tuple(k // 2 for k in kernel)
            b.pool(b.pick("max", "average"), kernel, padding=b.pick(padding, (0,) * count))
        elif kind == "residual":
            before_it = b.table()
            b.conv(channels, (3,) * count, before=(1,) * count, after=(1,) * count)
            b.sum_with(before_it)
        else:
            b.table()
    b.add(ops.Flatten())
    b.linear(int(b.random.integers(1, 20)), b.pick(0.1, 0.9))
    return b.network()


def rows_of_kernels(columns: int) -> Network:
    """Convolutions of one input, with kernels and strides of many lengths, sparse and dense."""
    b = IntegerBuilder((2, columns), columns)
    begin, results = b.last, []
    for taps, stride, density in product(range(1, 11), (1, 2, 3), (0.1, 1.0)):
        if taps <= columns:
            b.source = begin
            b.conv(2, (taps,), stride=(stride,), density=density)
            results.append(b.add(ops.Flatten()))
    b.source = results[0]
    b.add(ops.Concat(axis=0), *results[1:])
    return b.network()


def random_integers(network: Network, count: int = 3, seed: int = 0) -> Tensor:
    """Inputs of every int8, the extremes among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (count, *network.graph.input_shape), generator=generator)
    x[0] = torch.where(x[0] > 0, 127, -128)
    return x.float()


def check_integers(
    folder: Path, networks: Mapping[str, Network], storage: Any = "smallest", compiler: str = "gcc"
) -> None:
    """Export all, run all in one program, and compare with PyTorch bit for bit."""
    expected = {}
    for name, network in networks.items():
        x = random_integers(network)
        ez.export_c(network, folder, x, name=name, storage=storage)
        check_style(folder, name)
        (folder / f"{name}.in").write_bytes(x.to(torch.int8).numpy().tobytes())
        expected[name] = network(x).to(torch.int8).flatten(1)
    includes = "\n".join(f'#include "{name}.c"' for name in networks)
    calls = "\n".join(
        f'    failed |= run("{n}", {n}_predict_in, {n.upper()}_INPUTS, {n.upper()}_OUTPUTS, '
        f"{n.upper()}_SCRATCH);"
        for n in networks
    )
    main = f"int main(void)\n{{\n    int failed = 0;\n{calls}\n    return failed;\n}}\n"
    (folder / "driver.c").write_text(f"{includes}\n{DRIVER}\n{main}")
    succeed([compiler, *STRICT, *SANITIZERS, "driver.c", "-o", "driver"], folder)
    succeed(["./driver"], folder)
    for name, outputs in expected.items():
        integers = np.fromfile(folder / f"{name}.out", np.int8).reshape(outputs.shape)
        wrong = (torch.from_numpy(integers) != outputs).sum()
        assert wrong == 0, f"{name}: {wrong} of {outputs.numel()} integers are not PyTorch's"
