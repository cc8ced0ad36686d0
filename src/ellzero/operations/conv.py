"""A convolution of signals, images or volumes.

In C, for each output channel, its weights are walked over tile by tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, fx
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.layer import nested, plane, plus_bias, pointers, weighted
from ellzero.c.storage import Storage
from ellzero.c.text import block, loop, scope
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, places
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Operation, Recognized, Recognizer
from ellzero.operations.pad import Pad
from ellzero.operations.shapes import (
    Margins,
    Size,
    Sizes,
    dimensions_of,
    each,
    expect,
    sizes,
    windows,
)
from ellzero.tensors import Shape


class Conv(Operation):
    """A convolution on (N, in, places ...): weight (out, in / groups, kernel ...).

    Places are of one, two or three dimensions: as many as each setting has numbers.
    """

    kind: Literal["conv"] = "conv"
    stride: Sizes = (1, 1)
    padding: Margins = (0, 0)
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
        calls = aten.conv1d, aten.conv2d, aten.conv3d
        return dict.fromkeys((c for call in calls for c in (call.default, call.padding)), _conv)

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        return convolve(
            inputs[0],
            weights["weight"],
            weights.get("bias"),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        count = dimensions_of(stride=self.stride, padding=self.padding, dilation=self.dilation)
        channels, *size = sizes(inputs[0], 1 + count, "the input")
        out, per_group, *kernel = sizes(weights["weight"], 2 + count, "the weight")
        if channels != per_group * self.groups or out % self.groups:
            raise InputError(
                f"a weight of {out} x {per_group} channels in {self.groups} groups for {channels} "
                "channels"
            )
        expect(weights.get("bias", (out,)), (out,), "the bias")
        return (out, *windows(size, kernel, self.stride, self.padding, self.dilation))

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        read, result, kernel = (places(len(self.stride), letter) for letter in "ryk")
        whole = f"{read} {result} {kernel}"
        if self.groups == 1:
            roles = {"weight": f"o i {kernel}", "bias": "o"}
            return Axes((f"i {read}",), f"o {result}", roles, whole, mixes=True)
        if self.groups == output[0] and weights["weight"][1] == 1:
            roles = {"weight": f"c 1 {kernel}", "bias": "c"}
            return Axes((f"c {read}",), f"c {result}", roles, whole)
        return None

    def why_whole(self) -> str:
        return f"it is a convolution in {self.groups} groups"

    def sees(self, weights: Mapping[str, Tensor]) -> Tensor | bool:
        return weights["weight"].flatten(1).any(1)

    def folds_constants(self) -> bool:
        return not any(self.padding)

    def narrowed(self, kept: Mapping[str, int], output: Shape) -> Operation:
        return self.model_copy(update={"groups": kept["c"]}) if "c" in kept else self

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        """The input with its padding, and what each output is made of, side by side."""
        padded = inputs[0][0] * math.prod(
            n + 2 * p for n, p in zip(inputs[0][1:], self.padding, strict=True)
        )
        windows = math.prod(weights["weight"][1:]) * math.prod(output[1:])
        return super().workspace(inputs, weights, output) + padded + windows

    def c_lacks(self) -> str:
        return " in 3 dimensions" if len(self.stride) > 2 else ""

    def c_padding(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return self.padding

    def c_body(self, context: Context) -> str:
        """A signal is an image of one row."""
        (_, *size), (out, *result) = context.inputs[0], context.shape
        (height, width), (rows, columns) = plane(size), plane(result)
        per_group, *kernel = context.weights["weight"].shape[1:]
        kernel_h, kernel_w = plane(kernel)
        stride, dilation = plane(self.stride), plane(self.dilation)
        place = np.indices((per_group, kernel_h, kernel_w)).reshape(3, -1)
        down, right = dilation[0] * width, dilation[1]
        offsets = place[0] * height * width + place[1] * down + place[2] * right
        _, storage = weighted(context, offsets, lanes=False)
        over = storage.walk
        if storage.layout == "dense":
            over = nested((per_group, kernel_h, kernel_w), (height * width, down, right))
        base = f"x + oy * {stride[0] * width}"
        if self.groups > 1:
            base += f" + r / {out // self.groups} * {per_group * height * width}"
        step = (stride[0] * width, stride[1])
        walk = _Walk(context, storage, over, base, step, columns)
        tile = _tile(rows, columns, vectors=context.choice == "fastest")
        inner = walk.tiles(tile, 0, columns // tile.columns)
        if rest := columns % tile.columns:
            inner += walk.tiles(Tile(tile.rows, rest), columns - rest, 1)
        # every tile walks over the channel's weights again; the next channel's follow the last walk
        keep = "".join(
            f"const {c_type} *const {name}0 = {name};\n" for c_type, name, _ in storage.pointers
        )
        head = f"for (int oy = 0; oy < {rows}; oy += {tile.rows})"
        each_row = block(head, f"{inner}y += {tile.rows * columns};")
        return pointers(storage) + loop("r", out, keep + each_row)


def _conv(call: Call) -> Recognized | None:
    kernel = call.weight("weight").shape[2:]
    count = len(kernel)
    if len(call.shape_of("input")) != 1 + count:
        return None
    stride, dilation = each(call["stride"], count), each(call["dilation"], count)
    source: fx.Node | Recognized = call["input"]
    if isinstance(call["padding"], str):
        is_same = call["padding"] == "same"
        total = [d * (k - 1) * is_same for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple(n // 2 for n in total)
        if any(n % 2 for n in total):  # an even kernel: one more on the far side
            ahead, behind = (0, *padding), (0, *(n - n // 2 for n in total))
            name = f"{call.name}_padded"
            source = Recognized(Pad(before=ahead, after=behind), [source], name=name)
            padding = (0,) * count
    else:
        padding = each(call["padding"], count)
    op = Conv(stride=stride, padding=padding, dilation=dilation, groups=call["groups"])
    return Recognized(op, [source], {"weight": call["weight"], "bias": call["bias"]})


REGISTERS = 8
"""Sums at a time where they are written out one by one: half of a Cortex-M4F's registers."""

VECTOR = 8
"""Sums in a vector register."""

VECTORS = 8
"""Vectors at a time, of the sixteen that a processor with AVX2 has."""

WIDEST = 32
"""Columns of a tile of vectors."""


@dataclass(frozen=True)
class Tile:
    """Outputs of one channel that are summed together, so that one read of a weight serves all."""

    rows: int
    columns: int


@dataclass(frozen=True)
class _Walk:
    """How a convolution's tiles are computed."""

    context: Context
    storage: Storage
    over: Callable[[str, str], str]  # the storage's walk, or loops over all weights
    base: str  # C expression of where an output row's inputs begin
    step: tuple[int, int]  # floats between the inputs of two outputs, downwards and to the right
    width: int  # outputs of a row

    def tiles(self, tile: Tile, begin: int, count: int) -> str:
        """C of `count` tiles side by side, from column `begin` on."""
        at = f"ox + {begin}" if begin else "ox"
        right = self.step[1]
        restart = "".join(f"{name} = {name}0;\n" for _, name, _ in self.storage.pointers)
        vectors = self.context.choice == "fastest" and tile.columns >= 4
        define, add, store = (self._vectors if vectors else self._scalars)(tile, at)
        read = f"const float a = {self.storage.values.read('*w++')};\n"
        place = f"{self.base} + {at if right == 1 else f'({at}) * {right}'}"
        inner = f"{restart}{define}\n{self.over(place, read + add)}\n{store}"
        end, columns = count * tile.columns, tile.columns
        return block(f"for (int ox = 0; ox < {end}; ox += {columns})", inner) + "\n"

    def _scalars(self, tile: Tile, at: str) -> tuple[str, str, str]:
        """Sums written out: they stay in registers without a compiler's unrolling."""
        places = [(row, column) for row in range(tile.rows) for column in range(tile.columns)]
        names = [f"total{number}" for number in range(len(places))]
        define = "float " + ", ".join(f"{name} = 0.0f" for name in names) + ";"
        add = "\n".join(
            f"{name} += a * p[{row * self.step[0] + column * self.step[1]}];"
            for name, (row, column) in zip(names, places, strict=True)
        )
        store = "\n".join(
            scope(self._finish(name, f"y[{at} + {row * self.width + column}]"))
            for name, (row, column) in zip(names, places, strict=True)
        )
        return define, add, store

    def _vectors(self, tile: Tile, at: str) -> tuple[str, str, str]:
        """A loop of eight for each register: compilers make one instruction of it."""
        right = "i" if self.step[1] == 1 else f"i * {self.step[1]}"
        define, add, store = [], [], []
        for row in range(tile.rows):
            for begin in range(0, tile.columns, VECTOR):
                size = min(VECTOR, tile.columns - begin)
                name = f"total{row}_{begin}"
                source = row * self.step[0] + begin * self.step[1]
                target = f"y[{at} + {row * self.width + begin} + i]"
                define.append(f"float {name}[{size}] = {{0.0f}};")
                add.append(loop("i", size, f"{name}[i] += a * p[{source} + {right}];"))
                store.append(loop("i", size, self._finish(f"{name}[i]", target)))
        return "\n".join(define), "\n".join(add), "\n".join(store)

    def _finish(self, total: str, target: str) -> str:
        value = self.storage.values.finish(total) + plus_bias(self.context, "r")
        return self.context.finish(value, target, "r")


def _tile(rows: int, columns: int, *, vectors: bool) -> Tile:
    """Scalars: a divisor of the row, or eight. Vectors: as many rows as the registers hold."""
    if not vectors or columns < 4:
        best = _divisor(columns, REGISTERS)
        return Tile(1, best if best >= 4 or columns < REGISTERS else REGISTERS)
    wide = min(columns, WIDEST)
    return Tile(_divisor(rows, max(1, VECTORS // -(-wide // VECTOR))), wide)


def _divisor(number: int, limit: int) -> int:
    return max(size for size in range(1, limit + 1) if number % size == 0)
