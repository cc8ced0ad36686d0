"""Normalizations by an example's own values: of layers, of groups of channels, of each channel."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ellzero.c.arrays import c_float
from ellzero.c.kernel import Context
from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import CForm, Operation, Recognized, Recognizer
from ellzero.operations.shapes import Size, expect
from ellzero.tensors import Shape

Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Norm(Operation):
    """`(x - mean) / sqrt(variance + eps) * scale + shift`, of runs of values that lie together."""

    eps: Epsilon = 1e-5
    OPTIONAL: ClassVar[tuple[str, ...]] = ("scale", "shift")
    CENTERED: ClassVar[bool] = True
    """Whether the mean is taken off; else the variance is the mean of the squares."""
    FOLLOWS: ClassVar[bool] = True
    C: ClassVar[CForm] = "body"
    FINISHES: ClassVar[bool] = True
    IN_PLACE: ClassVar[bool] = True
    PER_VALUE: ClassVar[int | None] = 8

    @abstractmethod
    def weight_axes(self, rank: int) -> range:
        """The axes of scale and shift, among those of an example of so many."""

    @abstractmethod
    def run_size(self, shape: Shape) -> int:
        """How many values a mean is of."""

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (shape,) = inputs
        for role, size in weights.items():
            expect(size, tuple(shape[axis] for axis in self.weight_axes(len(shape))), role)
        return shape

    def c_entry(self, channel: str) -> str:
        """C expression of which entry of scale and shift goes with value i of a run."""
        return channel

    def c_body(self, context: Context) -> str:
        """The mean first, then the squares of what is left, so that no digits cancel.

        The mean is taken of distances from a run's first value: that of equal values is exact.
        """
        size = self.run_size(context.shape)
        channel = _channel(context.shape, size)
        left = "x[i] - mean" if self.CENTERED else "x[i]"
        value = f"({left}) * factor"
        for role, sign in (("scale", "*"), ("shift", "+")):
            if role in context.weights:
                value += f" {sign} {context.vector(role)}[{self.c_entry(channel)}]"
        mean = (
            f"float mean = 0.0f;\n{loop('i', size, 'mean += x[i] - x[0];')}\n"
            f"mean = x[0] + mean / {size}.0f;\n"
        )
        squares = loop("i", size, f"const float v = {left};\ntotal += v * v;")
        factor = f"const float factor = 1.0f / sqrtf(total / {size}.0f + {c_float(self.eps)});"
        stores = loop("i", size, context.finish(value, "y[i]", channel))
        runs = math.prod(context.shape) // size
        return block(
            f"for (int run = 0; run < {runs}; ++run, x += {size}, y += {size})",
            f"{mean * self.CENTERED}float total = 0.0f;\n{squares}\n{factor}\n{stores}",
        )


def _channel(shape: Shape, size: int) -> str:
    """C expression of the channel of value i of a run of so many."""
    each = math.prod(shape[1:])
    if size <= each:
        return f"run / {each // size}" if size < each else "run"
    inside = f"i / {each}" if each > 1 else "i"
    return f"run * {size // each} + {inside}" if size < math.prod(shape) else inside


class OfLastAxes(Norm):
    """A normalization over the last `count` axes of an example; scale and shift are of these."""

    count: Size = 1
    ANY_LAYOUT: ClassVar[bool] = True

    def weight_axes(self, rank: int) -> range:
        return range(rank - self.count, rank)

    def run_size(self, shape: Shape) -> int:
        return math.prod(shape[-self.count :])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if self.count > len(inputs[0]):
            raise InputError(f"a normalization over the last {self.count} axes of {inputs[0]}")
        return super().shape(inputs, weights)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        last = " ".join(names.split()[-self.count :])
        return Axes((names,), names, dict.fromkeys(weights, last), whole=last)

    def why_whole(self) -> str:
        return "a layer norm depends on all that it normalizes"

    def c_entry(self, channel: str) -> str:
        return "i"


class LayerNorm(OfLastAxes):
    """`(x - mean) / sqrt(variance + eps) * scale + shift` over the last `count` axes."""

    kind: Literal["layer_norm"] = "layer_norm"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.layer_norm.default: _layer_norm}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        scale, shift = weights.get("scale"), weights.get("shift")
        return F.layer_norm(inputs[0], inputs[0].shape[-self.count :], scale, shift, self.eps)


class RMSNorm(OfLastAxes):
    """`x / sqrt(mean of x^2 + eps) * scale` over the last `count` axes."""

    kind: Literal["rms_norm"] = "rms_norm"
    OPTIONAL: ClassVar[tuple[str, ...]] = ("scale",)
    CENTERED: ClassVar[bool] = False

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.rms_norm.default: _rms_norm}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        last = inputs[0].shape[-self.count :]
        return F.rms_norm(inputs[0], last, weights.get("scale"), self.eps)


class GroupNorm(Norm):
    """A normalization over all places of each of `groups` of the channels."""

    kind: Literal["group_norm"] = "group_norm"
    groups: Size

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.group_norm.default: _group_norm}

    def weight_axes(self, rank: int) -> range:
        return range(1)

    def run_size(self, shape: Shape) -> int:
        return math.prod(shape) // self.groups

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        # F.group_norm refuses a single value
        scale, shift = weights.get("scale"), weights.get("shift")
        return torch.group_norm(inputs[0], self.groups, scale, shift, self.eps)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if inputs[0][0] % self.groups:
            raise InputError(f"{inputs[0][0]} channels in {self.groups} groups")
        return super().shape(inputs, weights)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        return Axes((names,), names, dict.fromkeys(weights, names[:1]), whole=names)

    def why_whole(self) -> str:
        return "a group norm depends on every channel of a group"


class InstanceNorm(Norm):
    """A normalization of each channel over its places."""

    kind: Literal["instance_norm"] = "instance_norm"

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.instance_norm.default: _instance_norm}

    def weight_axes(self, rank: int) -> range:
        return range(1)

    def run_size(self, shape: Shape) -> int:
        return math.prod(shape[1:])

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        # F.instance_norm refuses a single value; no running statistics, so no momentum either
        scale, shift = weights.get("scale"), weights.get("shift")
        return torch.instance_norm(inputs[0], scale, shift, None, None, True, 0.0, self.eps, False)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if len(inputs[0]) < 2:
            raise InputError(f"a normalization over the places of {inputs[0]}, which has none")
        return super().shape(inputs, weights)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        return Axes((names,), names, dict.fromkeys(weights, names[:1]), whole=names[2:])

    def sees(self, weights: Mapping[str, Tensor]) -> Tensor | bool:
        return weights["scale"] != 0 if "scale" in weights else True


def _layer_norm(call: Call) -> Recognized | None:
    return _of_last(call, LayerNorm, {"eps": call["eps"]}, shift=call["bias"])


def _rms_norm(call: Call) -> Recognized | None:
    eps = call["eps"]
    if eps is None:
        eps = torch.finfo(call.fx_node.meta["val"].dtype).eps
    return _of_last(call, RMSNorm, {"eps": eps})


def _of_last(
    call: Call, norm: type[OfLastAxes], settings: Mapping[str, float], **weights: Any
) -> Recognized | None:
    shape, normalized = call.shape_of("input"), tuple(call["normalized_shape"])
    if not normalized or shape[-len(normalized) :] != normalized:
        return None  # over the batch as well
    operation = norm.model_validate({"count": len(normalized), **settings})
    return Recognized(operation, [call["input"]], {"scale": call["weight"], **weights})


def _group_norm(call: Call) -> Recognized | None:
    shape, groups = call.shape_of("input"), call["num_groups"]
    if not shape:
        return None
    is_instance = groups == shape[0] and len(shape) > 1
    eps = call["eps"]
    norm = InstanceNorm(eps=eps) if is_instance else GroupNorm(groups=groups, eps=eps)
    return _scaled(call, norm)


def _instance_norm(call: Call) -> Recognized | None:
    if not call["use_input_stats"] or len(call.shape_of("input")) < 2:
        return None
    return _scaled(call, InstanceNorm(eps=call["eps"]))


def _scaled(call: Call, norm: Norm) -> Recognized:
    weights = {"scale": call["weight"], "shift": call["bias"]}
    return Recognized(norm, [call["input"]], weights)
