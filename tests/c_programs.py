"""Random networks, and programs of many generated networks, run under the sanitizers."""

from __future__ import annotations

import math
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ellzero as ez
from activation_cases import STEADY, activation
from c_style import lapses
from ellzero import operations as ops
from ellzero.export.c.source import CSource
from ellzero.graph import Graph, Network, Node
from ellzero.operations.input import InputType
from ellzero.tensors import Shape

WARNINGS = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
# not optimized, which takes most of the compiler's time; `test_many_random_networks` does so
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CORTEX_M4F = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
by_each_compiler = pytest.mark.parametrize(
    "compiler", ["gcc", pytest.param("clang", marks=[pytest.mark.slow, needs_clang])]
)
needs_arm_gcc = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="gcc-arm-none-eabi is not installed"
)

# Inputs and results in files, one float after the other; input, output and scratch end where their
# memory ends. What memory held before must not matter: 0xFF bytes are NaN, 0x7E a huge number.
DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int run(const char *name, int (*predict)(const float *, float *, float *), size_t inputs,
               size_t outputs, size_t scratch)
{
    char path[64];
    float *const x = malloc(inputs * sizeof *x), *const y = malloc(outputs * sizeof *y);
    float *const z = malloc(outputs * sizeof *z), *const work = malloc(scratch * sizeof *work);
    snprintf(path, sizeof path, "%s.in", name);
    FILE *const in = fopen(path, "rb");
    snprintf(path, sizeof path, "%s.out", name);
    FILE *const out = fopen(path, "wb");
    int failed = !x || !y || !z || !work || !in || !out;
    while (!failed && fread(x, sizeof *x, inputs, in) == inputs) {
        memset(z, 0x7E, outputs * sizeof *z);
        memset(work, 0x7E, scratch * sizeof *work);
        predict(x, z, work);
        memset(y, 0xFF, outputs * sizeof *y);
        memset(work, 0xFF, scratch * sizeof *work);
        const float best = (float)predict(x, y, work);
        if (memcmp(y, z, outputs * sizeof *y)) {
            printf("%s: the result depends on what memory held\\n", name);
            failed = 1;
        }
        fwrite(y, sizeof *y, outputs, out);
        fwrite(&best, sizeof best, 1, out);
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


def write_program(folder: Path, names: list[str]) -> Path:
    """A program of all networks of these names in the folder, in one translation unit."""
    includes = "\n".join(f'#include "{name}.c"' for name in names)
    calls = "\n".join(
        f'    failed |= run("{n}", {n}_predict_in, {n.upper()}_INPUTS, {n.upper()}_OUTPUTS, '
        f"{n.upper()}_SCRATCH);"
        for n in names
    )
    text = f"{includes}\n{DRIVER}\nint main(void)\n{{\n    int failed = 0;\n{calls}\n"
    path = folder / "driver.c"
    path.write_text(text + "    return failed;\n}\n")
    return path


def outputs_of(
    folder: Path, inputs: Mapping[str, Tensor], compiler: str = "gcc"
) -> dict[str, tuple[Tensor, Tensor]]:
    """Outputs (N, outputs) and classes (N,) of each exported network for its raw inputs."""
    for name, x in inputs.items():
        (folder / f"{name}.in").write_bytes(np.ascontiguousarray(x, np.float32).tobytes())
    driver = write_program(folder, list(inputs))
    program = folder / "driver"
    succeed([compiler, *WARNINGS, *SANITIZERS, str(driver), "-o", str(program), "-lm"], folder)
    succeed([str(program)], folder)
    outputs = {}
    for name, x in inputs.items():
        result = np.fromfile(folder / f"{name}.out", np.float32).reshape(len(x), -1)
        outputs[name] = torch.from_numpy(result[:, :-1]), torch.from_numpy(result[:, -1]).long()
    return outputs


def check_networks(
    folder: Path, networks: Mapping[str, Network], storage: Any, compiler: str = "gcc"
) -> list[CSource]:
    """Export all, run all in one program, and compare with PyTorch."""
    sources, inputs, expected = [], {}, {}
    for name, network in networks.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ez.EllzeroWarning)  # random ones have dead outputs
            sources.append(ez.export_c(network, folder, name=name, storage=storage))
        check_style(folder, name)
        inputs[name] = raw_inputs(network)
        expected[name] = predicted(network, inputs[name])
    for name, (outputs, classes) in outputs_of(folder, inputs, compiler).items():
        assert_close(outputs, expected[name], f"{name}, {storage}")
        assert torch.equal(classes, outputs.argmax(1)), name
    return sources


def check_style(folder: Path, name: str) -> None:
    """Braces on every branch and no ternary in another, in all C of a network."""
    for ending in (".c", ".h", "_test.c"):
        assert not lapses((folder / f"{name}{ending}").read_text()), f"{name}{ending}"


def raw_inputs(network: Network) -> Tensor:
    """Three examples; the last one is all zeros."""
    x, *_ = network.examples(3, torch.Generator().manual_seed(7))
    x[-1] = 0
    return x


def predicted(network: Network, raw: Tensor) -> Tensor:
    """PyTorch's outputs (N, outputs) in float64, the preprocessing applied as training does it."""
    prepare = network.graph.preprocess
    x = raw if prepare is None else prepare(raw)
    weights = {n: network.weight(n).detach() for n in network.graph.weight_names()}
    exact = Network(
        network.graph, {n: w.double() if w.is_floating_point() else w for n, w in weights.items()}
    )
    with torch.no_grad():
        return exact(x.double() if x.is_floating_point() else x).flatten(1)


def assert_close(outputs: Tensor, expected: Tensor, what: str) -> None:
    """Within 1e-4 of the largest output, or of 1; the same infinities where there are any.

    A maximum over padding alone is one, in PyTorch and in C.
    """
    finite = torch.where(expected.isinf(), 0, expected)
    size = finite.abs().amax(1, keepdim=True).clamp(min=1)
    difference = torch.where(outputs == expected, 0, (outputs - expected) / size)
    worst = difference.abs().max()
    assert worst <= 1e-4, f"{what}: {worst:.3g} from PyTorch"  # a NaN fails too


def succeed(command: list[str], folder: Path) -> str:
    """Run a command, which must succeed and say nothing on its standard error."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-1000:]}\n{done.stderr[:3000]}"
    assert not done.stderr, done.stderr[:3000]
    return done.stdout


class Builder:
    """A graph that grows node by node; weights are random, of a drawn density and kind."""

    def __init__(self, shape: Shape, seed: int = 0, dtype: InputType = "float") -> None:
        self.random = np.random.default_rng(seed)
        self.nodes = [Node(name="input", op=ops.Input(size=shape, dtype=dtype))]
        self.weights: dict[str, Tensor] = {}
        self.shapes = {"input": shape}
        self.last = "input"

    @property
    def shape(self) -> Shape:
        """One example's shape after the last node."""
        return self.shapes[self.last]

    def add(self, op: ops.Operation, *others: str, **weights: Tensor) -> str:
        """A node that reads the last one; its name."""
        name = f"{op.kind}.{len(self.nodes)}"
        roles = {role: f"{name}.{role}" for role in weights}
        self.weights |= {roles[role]: tensor for role, tensor in weights.items()}
        inputs = () if op.ARITY == 0 else (self.last, *others)
        node = Node.model_validate({"name": name, "op": op, "inputs": inputs, "weights": roles})
        self.nodes.append(node)
        self.shapes[name] = op.shape(
            [self.shapes[n] for n in inputs], {r: tuple(w.shape) for r, w in weights.items()}
        )
        self.last = name
        return name

    def network(self, **options: Any) -> Network:
        """What was built."""
        return Network(Graph(nodes=tuple(self.nodes), **options), self.weights).eval()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, float32."""
        return torch.from_numpy(self.random.standard_normal(shape).astype(np.float32))

    def pick(self, *options: Any) -> Any:
        """One of the options."""
        return options[self.random.integers(len(options))]

    def weight(self, *shape: int, density: float | None = None, kind: str | None = None) -> Tensor:
        """A weight with zeros: plain floats, a few values, or multiples of a scale."""
        if density is None:
            density = float(self.pick(0.0, 0.05, 0.3, 0.7, 1.0))
        match kind or self.pick("float32", "codebook", "int8"):
            case "codebook":
                table = self.normal(5)
                w = table[torch.from_numpy(self.random.integers(0, 5, shape))]
            case "int8":
                w = torch.from_numpy(self.random.integers(-127, 128, shape)).float()
                w.view(-1)[0] = 127
                w *= 2.0**-6
            case _:
                w = self.normal(*shape)
        kept = torch.from_numpy(self.random.random(shape) < density)
        kept.view(-1)[0] |= density > 0
        inputs = max(1.0, density * w[0].numel())
        return w * kept * 2.0 ** -round(math.log2(inputs) / 2)  # exact: int8 stays int8

    def layer(
        self, op: ops.Operation, *shape: int, bias: bool | None = None, **options: Any
    ) -> str:
        """A linear or convolution layer."""
        weights = {"weight": self.weight(*shape, **options)}
        if self.pick(True, False) if bias is None else bias:
            weights["bias"] = self.normal(len(weights["weight"]))
        return self.add(op, **weights)

    def linear(self, rows: int, **options: Any) -> str:
        """A dense layer, what it reads flattened if it must be."""
        columns = math.prod(self.shape)
        if len(self.shape) > 1:
            self.add(ops.Flatten())
        return self.layer(ops.Linear(), rows, columns, **options)

    def activation(self, function: str) -> str:
        """An activation, with the parameters that it takes."""
        return self.add(activation(function))

    def per_channel(self, op: ops.Operation) -> str:
        """An operation whose weights are one number for each channel."""
        return self.add(op, **{role: self.normal(self.shape[0]) for role in op.REQUIRED})


def random_network(seed: int) -> Network:
    """Up to six random layers on images or signals, then dense ones; any kind of preprocessing."""
    b = Builder((1, 1, 1), seed)
    channels = int(b.random.integers(1, 5))
    size = tuple(b.random.integers(5, 12, b.pick(1, 2, 2)).tolist())
    b = Builder((channels, *size), seed)
    if b.pick(True, False):
        b.per_channel(ops.Affine())  # before anything: nothing to fold it into
    for _ in range(b.random.integers(1, 6)):
        b.pick(_random_conv, _random_pool, _random_elementwise, _residual, _random_place)(b)
    if b.pick(True, True, False):
        b.linear(int(b.random.integers(1, 20)))
        _random_elementwise(b)
        b.linear(int(b.random.integers(1, 12)))
    if b.pick(True, False):
        b.add(ops.Softmax(log=b.pick(True, False)))
    scalar, each = ez.Preprocess(0.5, -0.25), ez.Preprocess(tuple(b.normal(channels).tolist()), 0.5)
    return b.network(preprocess=b.pick(None, scalar, each))


def _each(b: Builder, low: int, high: int) -> tuple[int, ...]:
    """A number for each dimension of the places."""
    return tuple(b.random.integers(low, high + 1, len(b.shape) - 1).tolist())


def _random_conv(b: Builder) -> None:
    channels, *size = b.shape
    kernel, stride, padding = _each(b, 1, 3), _each(b, 1, 2), _each(b, 0, 2)
    dilation = _each(b, 1, 2)
    for n, k, p, d in zip(size, kernel, padding, dilation, strict=True):
        if n + 2 * p < d * (k - 1) + 1:
            return
    groups = b.pick(1, channels, *(g for g in (2, 3) if channels % g == 0))
    op = ops.Conv(stride=stride, padding=padding, dilation=dilation, groups=groups)
    b.layer(op, groups * int(b.random.integers(1, 4)), channels // groups, *kernel)


def _random_pool(b: Builder) -> None:
    function, kernel = b.pick("max", "average"), _each(b, 1, 3)
    padding = (int(b.random.integers(kernel[0] // 2 + 1)), *(k // 2 for k in kernel[1:]))
    # a dilated window may see the padding alone, of which the maximum is infinite
    is_dilated = function == "max" and not any(padding)
    op = ops.Pool(
        function=function,
        kernel=kernel,
        stride=_each(b, 1, 3),
        padding=padding,
        dilation=_each(b, 1, 2) if is_dilated else (1,) * len(kernel),
        ceil=b.pick(True, False),
        count_padding=b.pick(True, False),
    )
    try:
        op.shape([b.shape], {})
    except ez.InputError:  # the window is larger than what is left
        return
    b.add(op)


def _random_elementwise(b: Builder) -> None:
    kind = b.pick("activation", "prelu", "affine")
    if kind == "activation":
        b.activation(b.pick(*STEADY))
    else:
        b.per_channel(ops.PReLU() if kind == "prelu" else ops.Affine())


def _random_place(b: Builder) -> None:
    """What changes how many places there are, or normalizes over them."""
    b.pick(_random_transposed, _random_norm, _random_upsample)(b)


def _random_transposed(b: Builder) -> None:
    channels, stride, dilation = b.shape[0], _each(b, 1, 3), _each(b, 1, 3)
    groups = b.pick(1, channels, *(g for g in (2, 3) if channels % g == 0))
    op = ops.ConvTransposed(
        stride=stride,
        padding=_each(b, 0, 2),
        output_padding=tuple(
            int(b.random.integers(max(both))) for both in zip(stride, dilation, strict=True)
        ),
        dilation=dilation,
        groups=groups,
    )
    weight = b.weight(channels, int(b.random.integers(1, 3)), *_each(b, 1, 4))
    bias = {"bias": b.normal(groups * weight.shape[1])} if b.pick(True, False) else {}
    sizes = {role: tuple(w.shape) for role, w in ({"weight": weight} | bias).items()}
    try:
        result = op.shape([b.shape], sizes)
    except ez.InputError:  # the padding leaves nothing
        return
    if math.prod(result) < 3000:
        b.add(op, weight=weight, **bias)


def _random_norm(b: Builder) -> None:
    eps = b.pick(1e-3, 0.1)  # a channel that is constant is divided by its square root
    groups = b.pick(*(g for g in range(1, b.shape[0] + 1) if b.shape[0] % g == 0))
    count = int(b.random.integers(1, len(b.shape) + 1))
    op = b.pick(
        ops.LayerNorm(count=count, eps=eps),
        ops.RMSNorm(count=count, eps=eps),
        ops.GroupNorm(groups=groups, eps=eps),
        ops.InstanceNorm(eps=eps),
    )
    size = tuple(b.shape[axis] for axis in op.weight_axes(len(b.shape)))
    roles = b.pick((), op.OPTIONAL, op.OPTIONAL[:1])
    b.add(op, **{role: b.normal(*size) for role in roles})


def _random_upsample(b: Builder) -> None:
    if len(b.shape) == 3 and b.pick(True, False):
        factor = int(b.random.integers(1, 3))
        channels, height, width = b.shape
        if height % factor == 0 and width % factor == 0 and b.pick(True, False):
            b.add(ops.PixelUnshuffle(factor=factor))
        elif channels % factor**2 == 0:
            b.add(ops.PixelShuffle(factor=factor))
        return
    mode, corners = b.pick("nearest", "linear"), b.pick(True, False)
    given = {"size": _each(b, 1, 12)}
    if b.pick(True, False):
        given = {"scale": tuple(b.pick(0.5, 1.0, 1.3, 2.0) for _ in b.shape[1:])}
    b.add(ops.Upsample.model_validate({"mode": mode, "align_corners": corners, **given}))


def _residual(b: Builder) -> None:
    """A convolution around which the input goes, then a batch normalization nothing can take up."""
    before, channels = b.last, b.shape[0]
    ones = (1,) * (len(b.shape) - 1)
    op = ops.Conv(stride=ones, padding=ones, dilation=ones)
    b.layer(op, channels, channels, *(3 for _ in ones))
    _random_elementwise(b)
    b.add(ops.Add(), before)
    b.per_channel(ops.Affine())
