"""A transposed convolution: what a convolution's gradient does to its input.

In C it is a convolution with stride 1 for each remainder of the result's places by the stride: of
the kernel it has the entries that meet an input there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ellzero.c.arrays import unsigned
from ellzero.c.kernel import Context
from ellzero.c.layer import nested, plane, plus_bias, pointers, weighted
from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, places
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.operations.shapes import Margins, Size, Sizes, dimensions_of, each, expect, sizes
from ellzero.tensors import Shape


class ConvTransposed(Operation):
    """A transposed convolution on (N, in, places ...): weight (in, out / groups, kernel ...).

    Places are of one, two or three dimensions: as many as each setting has numbers.
    """

    kind: Literal["conv_transposed"] = "conv_transposed"
    stride: Sizes = (1, 1)
    padding: Margins = (0, 0)
    output_padding: Margins = (0, 0)
    dilation: Sizes = (1, 1)
    groups: Size = 1
    REQUIRED = ("weight",)
    OPTIONAL = ("bias",)
    LAYER = "conv"
    FOLLOWS = True
    C = "body"
    FINISHES = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        calls = (
            aten.conv_transpose1d.default,
            aten.conv_transpose2d.input,
            aten.conv_transpose3d.input,
        )
        return dict.fromkeys(calls, _conv_transposed)

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        calls = F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d
        return calls[len(self.stride) - 1](
            inputs[0],
            weights["weight"],
            weights.get("bias"),
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        count = dimensions_of(
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
        )
        channels, *size = sizes(inputs[0], 1 + count, "the input")
        read, per_group, *kernel = sizes(weights["weight"], 2 + count, "the weight")
        if channels != read or channels % self.groups:
            raise InputError(
                f"a weight of {read} channels in {self.groups} groups for {channels} channels"
            )
        out = per_group * self.groups
        expect(weights.get("bias", (out,)), (out,), "the bias")
        settings = zip(self.stride, self.padding, self.output_padding, self.dilation, strict=True)
        result = []
        for n, k, (s, p, more, d) in zip(size, kernel, settings, strict=True):
            if more >= max(s, d):
                raise InputError(f"an output padding of {more} for a stride of {s}")
            result.append((n - 1) * s - 2 * p + d * (k - 1) + more + 1)
            if result[-1] < 1:
                raise InputError(f"a kernel of {k} and a padding of {p} for {n} values")
        return (out, *result)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        read, result, kernel = (places(len(self.stride), letter) for letter in "ryk")
        whole = f"{read} {result} {kernel}"
        if self.groups == 1:
            roles = {"weight": f"i o {kernel}", "bias": "o"}
            return Axes((f"i {read}",), f"o {result}", roles, whole, mixes=True)
        if self.groups == inputs[0][0] and weights["weight"][1] == 1:
            roles = {"weight": f"c 1 {kernel}", "bias": "c"}
            return Axes((f"c {read}",), f"c {result}", roles, whole)
        roles = {"weight": f"(g i) o {kernel}", "bias": "(g o)"}
        parts = {"g": self.groups, "i": inputs[0][0] // self.groups}
        return Axes((f"(g i) {read}",), f"(g o) {result}", roles, f"g i o {whole}", sizes=parts)

    def why_whole(self) -> str:
        return f"it is a convolution in {self.groups} groups"

    def sees(self, weights: Mapping[str, Tensor]) -> Tensor | bool:
        return weights["weight"].flatten(1).any(1)

    def narrowed(self, kept: Mapping[str, int], output: Shape) -> Operation:
        return self.model_copy(update={"groups": kept["c"]}) if "c" in kept else self

    def repeats(self, inputs: Sequence[Shape], output: Shape) -> int:
        return math.prod(inputs[0][1:])

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        """What each input makes of the weight, before it is added up, and what no padding cuts."""
        windows = math.prod(weights["weight"][1:]) * math.prod(inputs[0][1:])
        whole = output[0] * math.prod(
            n + 2 * p for n, p in zip(output[1:], self.padding, strict=True)
        )
        return super().workspace(inputs, weights, output) + windows + whole

    def c_lacks(self) -> str:
        return " in 3 dimensions" if len(self.stride) > 2 else ""

    def c_padding(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        rays = self._rays(weights["weight"], self.shape(inputs, weights))
        return tuple(ray.margin for ray in rays)

    def c_body(self, context: Context) -> str:
        """Row by row of what `_Ray` says of both axes, the result's places of each in turn."""
        (_, *size), (out, *result) = context.inputs[0], context.shape
        (height, width), (rows, columns) = plane(size), plane(result)
        weight = context.weights["weight"]
        rays = self._rays(tuple(weight.shape), context.shape)
        down, right = rays if len(rays) > 1 else (SINGLE, *rays)
        per_group = len(weight) // self.groups
        entries = _entries(weight, self.groups, down, right)
        steps = (height * width, down.step * width, right.step)
        counts = (per_group, down.taps, right.taps)
        place = np.indices(counts).reshape(3, -1)
        offsets = sum(axis * step for axis, step in zip(place, steps, strict=True))
        _, storage = weighted(context, np.asarray(offsets), lanes=False, entries=entries)
        walk = nested(counts, steps) if storage.layout == "dense" else storage.walk
        begins = [
            context.array(unsigned(f"{context.name}_{name}", [ray.begin(q) for q in ray.phases]))
            for name, ray in (("down", down), ("right", right))
        ]
        phases = len(down.phases), len(right.phases)
        base = (
            f"x + (oy / {down.stride} + {begins[0]}[down]) * {width}"
            f" + ox / {right.stride} + {begins[1]}[right]"
        )
        if self.groups > 1:
            base += f" + channel / {out // self.groups} * {per_group * height * width}"
        restart = "".join(f"{name} = {name}0;\n" for _, name, _ in storage.pointers)
        keep = "".join(
            f"const {c_type} *const {name}0 = {name};\n" for c_type, name, _ in storage.pointers
        )
        total = storage.values.finish("total") + plus_bias(context, "channel")
        target = f"y[(channel * {rows} + oy) * {columns} + ox]"
        read = f"total += {storage.values.read('*w++')} * *p;"
        inner = (
            f"{restart}float total = 0.0f;\n{walk(base, read)}\n"
            f"{context.finish(total, target, 'channel')}"
        )
        for index, phase, count, ray in (
            ("ox", "right", columns, right),
            ("oy", "down", rows, down),
        ):
            inner = block(
                f"for (int {index} = {phase}; {index} < {count}; {index} += {ray.stride})", inner
            )
        down_phase = "0" if phases[0] == 1 else f"r / {phases[1]} % {phases[0]}"
        right_phase = "0" if phases[1] == 1 else f"r % {phases[1]}"
        head = (
            f"const int channel = r / {math.prod(phases)};\n"
            f"const int down = {down_phase}, right = {right_phase};\n"
        )
        return pointers(storage) + loop("r", out * math.prod(phases), f"{head}{keep}{inner}")

    def _rays(self, weight: Shape, output: Shape) -> list[_Ray]:
        names = self.stride, self.padding, self.output_padding, self.dilation
        return [_Ray(*axis) for axis in zip(weight[2:], output[1:], *names, strict=True)]


@dataclass(frozen=True)
class _Ray:
    """One axis, as convolutions with stride 1: one for each remainder of places by the stride.

    The place o of the result gets kernel entry u of the input's place (o + padding - u dilation) /
    stride, where there is one. So the entries of a remainder are `stride / gcd` apart, and the
    inputs that they meet `dilation / gcd`.
    """

    kernel: int
    result: int
    stride: int
    padding: int
    output_padding: int
    dilation: int

    @property
    def phases(self) -> range:
        """The remainders that the result's places have."""
        return range(min(self.stride, self.result))

    @property
    def apart(self) -> int:
        """Entries of the kernel from one that a remainder has to the next."""
        return self.stride // math.gcd(self.stride, self.dilation)

    @property
    def step(self) -> int:
        """Inputs from one that an entry meets to the next."""
        return self.dilation // math.gcd(self.stride, self.dilation)

    @property
    def taps(self) -> int:
        """How many entries a remainder has at most; those of others are filled up with zeros."""
        return -(-self.kernel // self.apart)

    def entry(self, phase: int, tap: int) -> int | None:
        """The kernel's entry at a tap of a remainder, those of higher places first."""
        first = self._first(phase)
        if first is None:
            return None
        entry = first + (self.taps - 1 - tap) * self.apart
        return entry if entry < self.kernel else None

    def begin(self, phase: int) -> int:
        """Where, in the input with its margin, the first tap of a remainder's first place is."""
        return self._begin(phase) + self.margin

    @property
    def margin(self) -> int:
        """Zeros that are needed at both ends of the input."""
        size = (
            self.result
            - self.output_padding
            - 1
            + 2 * self.padding
            - self.dilation * (self.kernel - 1)
        ) // self.stride + 1
        margin = 0
        for phase in self.phases:
            begin, last = self._begin(phase), (self.result - 1 - phase) // self.stride
            end = begin + last + (self.taps - 1) * self.step
            margin = max(margin, -begin, end - size + 1)
        return margin

    def _first(self, phase: int) -> int | None:
        """The first entry that meets inputs of a remainder."""
        meets = (
            entry
            for entry in range(min(self.apart, self.kernel))
            if (phase + self.padding - entry * self.dilation) % self.stride == 0
        )
        return next(meets, None)

    def _begin(self, phase: int) -> int:
        first = self._first(phase)
        if first is None:
            return 0
        nearest = (phase + self.padding - first * self.dilation) // self.stride
        return nearest - (self.taps - 1) * self.step


SINGLE = _Ray(kernel=1, result=1, stride=1, padding=0, output_padding=0, dilation=1)
"""The rows of a signal, which is an image of one."""


def _entries(weight: Tensor, groups: int, down: _Ray, right: _Ray) -> Tensor:
    """A weight as a convolution's: (rows, in / groups, taps down, taps right).

    There is a row for each channel of the result, remainder down, and remainder right.
    """
    channels, per_group, *kernel = weight.shape
    grouped = weight.view(groups, channels // groups, per_group, *plane(kernel))
    outputs = grouped.transpose(1, 2).reshape(-1, channels // groups, *plane(kernel))
    rays = down, right
    taps = [list(product(ray.phases, range(ray.taps))) for ray in rays]
    size = [n for ray in rays for n in (len(ray.phases), ray.taps)]
    entries = weight.new_zeros(len(outputs), channels // groups, *size)
    for (y, ty), (x, tx) in product(*taps):
        u, v = down.entry(y, ty), right.entry(x, tx)
        if u is not None and v is not None:
            entries[:, :, y, ty, x, tx] = outputs[:, :, u, v]
    return entries.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _conv_transposed(call: Call) -> Recognized | None:
    count = call.weight("weight").ndim - 2
    if len(call.shape_of("input")) != 1 + count:
        return None
    names = "stride", "padding", "output_padding", "dilation"
    settings: dict[str, Any] = {name: each(call[name], count) for name in names}
    op = ConvTransposed(**settings, groups=call["groups"])
    return Recognized(op, [call["input"]], {"weight": call["weight"], "bias": call["bias"]})
