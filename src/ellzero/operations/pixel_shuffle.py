"""Channels that become places, and places that become channels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import COPY, CForm, Operation, Recognized, Recognizer
from ellzero.operations.shapes import Size, sizes
from ellzero.tensors import Shape


class Shuffle(Operation):
    """Values that stay, and change places with channels, `factor` rows and as many columns."""

    factor: Size
    FOLLOWS: ClassVar[bool] = True
    C: ClassVar[CForm] = "body"
    FINISHES: ClassVar[bool] = True
    PER_VALUE: ClassVar[int | None] = COPY

    def c_body(self, context: Context) -> str:
        _, height, width = context.inputs[0]
        if self.factor == 1:
            return context.each_value(lambda at: f"x{at('c')}")

        def value(indices: Sequence[str]) -> str:
            channel, row, column = self.source(*indices)
            return f"x[(({channel}) * {height} + {row}) * {width} + {column}]"

        return context.each_place(value)

    @abstractmethod
    def source(self, channel: str, row: str, column: str) -> tuple[str, str, str]:
        """C expressions of where a value of the result comes from."""


class PixelShuffle(Shuffle):
    """`factor` squared channels become one, of `factor` times as many rows and columns."""

    kind: Literal["pixel_shuffle"] = "pixel_shuffle"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.pixel_shuffle.default: _shuffle}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.pixel_shuffle(inputs[0], self.factor)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        channels, height, width = sizes(inputs[0], 3, "the input")
        if channels % self.factor**2:
            raise InputError(f"{channels} channels; expected a multiple of {self.factor**2}")
        return (channels // self.factor**2, height * self.factor, width * self.factor)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        parts = {"r": self.factor, "s": self.factor}
        return Axes(("(c r s) h w",), "c (h r) (w s)", whole="h w r s", sizes=parts)

    def source(self, channel: str, row: str, column: str) -> tuple[str, str, str]:
        f = self.factor
        part = f"({channel} * {f} + {row} % {f}) * {f} + {column} % {f}"
        return part, f"{row} / {f}", f"{column} / {f}"


class PixelUnshuffle(Shuffle):
    """One channel becomes `factor` squared, of so many times fewer rows and columns."""

    kind: Literal["pixel_unshuffle"] = "pixel_unshuffle"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.pixel_unshuffle.default: _unshuffle}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.pixel_unshuffle(inputs[0], self.factor)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        channels, height, width = sizes(inputs[0], 3, "the input")
        if height % self.factor or width % self.factor:
            raise InputError(f"{height} x {width} places; expected multiples of {self.factor}")
        return (channels * self.factor**2, height // self.factor, width // self.factor)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        parts = {"r": self.factor, "s": self.factor}
        return Axes(("c (h r) (w s)",), "(c r s) h w", whole="h w r s", sizes=parts)

    def source(self, channel: str, row: str, column: str) -> tuple[str, str, str]:
        f = self.factor
        below, right = f"({row} * {f} + {channel} / {f} % {f})", f"{column} * {f} + {channel} % {f}"
        return f"{channel} / {f * f}", below, right


def _shuffle(call: Call) -> Recognized | None:
    if len(call.shape_of("self")) != 3:
        return None
    return Recognized(PixelShuffle(factor=call["upscale_factor"]), [call["self"]])


def _unshuffle(call: Call) -> Recognized | None:
    if len(call.shape_of("self")) != 3:
        return None
    return Recognized(PixelUnshuffle(factor=call["downscale_factor"]), [call["self"]])
