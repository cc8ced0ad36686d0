"""Operations of a traced network, as data: what each does to a batch, and to a shape.

Shapes are those of one example, without the batch: (features,) or (channels, height, width).
A "channel" is an index of an example's first dimension, so a feature is one too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor
from torch.nn import functional as F

from ellzero.errors import InputError

Shape = tuple[int, ...]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Margin = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]

Passing = Literal["barrier", "all", "keep", "mix", "spread", "pick"]
"""How channels pass through an operation, and with that which of them compaction may take out:

- barrier: nothing is known, so all channels that it reads and gives stay;
- all: every channel of the result depends on every one of the input, so all of them stay, too;
- keep: channel c of the result is made of channel c of each input and of row c of each weight;
- mix: channel r of the result is `bias[r]` plus the sum over c of what `weight[r, c]`, a number or
  a kernel, makes of channel c: nothing where one of them is zero;
- spread: each channel becomes a run of channels, in order, all runs of one length;
- pick: channel r of the result is channel `indices[r]`, in ascending order.
"""


class Op(BaseModel):
    """One operation: its settings are its fields; its weights are given to it by role.

    A new operation is a class here, a line in `AnyOp`, a recognizer in `recognize`, an emitter in
    the C source; what does not know it says so by its name. What a class does not declare is taken
    for the worst case: `PASSING` for a barrier, `LAYER` for weights that are no layer's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    kind: Any  # each operation's own literal
    REQUIRED: ClassVar[tuple[str, ...]] = ()
    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    ARITY: ClassVar[int | None] = 1
    PASSING: ClassVar[Passing] = "barrier"
    ELEMENTWISE: ClassVar[bool] = False
    """Whether a value depends on nothing but the inputs' values at its place and its channel's
    weights."""
    LAYER: ClassVar[Literal["dense", "conv"] | None] = None
    """The kind of its `weight` (out, in / groups, ...) if it is a layer: each entry multiplies an
    input once at every place of the result, then `bias` (out,) is added."""

    @model_serializer(mode="wrap")
    def _with_kind(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # the kind is each class's default, but it must not be left out with the other defaults
        return {"kind": self.kind, **plain(self)}

    def run(self, inputs: Sequence[Any], weights: Mapping[str, Tensor]) -> Any:
        """The operation on a batch."""
        raise NotImplementedError

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        """Shape of one example's result.

        Raises:
            InputError: shapes that do not go together.
        """
        raise NotImplementedError

    def passing(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Passing:
        """How channels pass through it, where that depends on the settings or the shapes."""
        return self.PASSING

    def why_barrier(self) -> str:
        """Why all channels that it reads and gives stay, as the end of a sentence."""
        return "it does not say how channels pass through it"

    def sees(self, weights: Mapping[str, Tensor]) -> Tensor | bool:
        """Where it keeps channels: those whose values matter to it, as zero weights hide others."""
        return True

    def folds_constants(self) -> bool:
        """Where it mixes channels: whether a bias can stand for channels that are constant.

        It can if their weights add the same at every place, which a padding with zeros prevents.
        """
        return False

    def narrowed(self, channels: int) -> Op:
        """Where it keeps channels: the same operation on fewer of them."""
        return self


class Input(Op):
    """The network's input: one tensor."""

    kind: Literal["input"] = "input"
    size: tuple[Size, ...]
    ARITY: ClassVar[int | None] = 0
    PASSING: ClassVar[Passing] = "keep"  # there is nothing that it reads

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return self.size


class Select(Op):
    """Some of the channels, in ascending order of `indices`, an int64 tensor."""

    kind: Literal["select"] = "select"
    REQUIRED: ClassVar[tuple[str, ...]] = ("indices",)
    PASSING: ClassVar[Passing] = "pick"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].index_select(1, weights["indices"])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (count,) = _dims(weights["indices"], 1, "indices")
        if count > inputs[0][0]:
            raise InputError(f"{count} indices into {inputs[0][0]} channels")
        return (count, *inputs[0][1:])


class Affine(Op):
    """`x * scale + shift` per channel: a batch normalization in evaluation mode."""

    kind: Literal["affine"] = "affine"
    REQUIRED: ClassVar[tuple[str, ...]] = ("scale", "shift")
    PASSING: ClassVar[Passing] = "keep"
    ELEMENTWISE: ClassVar[bool] = True

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        x = inputs[0]
        view = (1, -1) + (1,) * (x.ndim - 2)
        return x * weights["scale"].view(view) + weights["shift"].view(view)

    def sees(self, weights: Mapping[str, Tensor]) -> Tensor | bool:
        return weights["scale"] != 0

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        for role in self.REQUIRED:
            _expect(weights[role], (inputs[0][0],), role)
        return inputs[0]


class Linear(Op):
    """A dense layer on (N, in): weight (out, in), bias (out)."""

    kind: Literal["linear"] = "linear"
    REQUIRED: ClassVar[tuple[str, ...]] = ("weight",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ("bias",)
    PASSING: ClassVar[Passing] = "mix"
    LAYER: ClassVar[Literal["dense", "conv"] | None] = "dense"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.linear(inputs[0], weights["weight"], weights.get("bias"))

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (features,) = _dims(inputs[0], 1, "the input")
        rows, columns = _dims(weights["weight"], 2, "the weight")
        if columns != features:
            raise InputError(f"a weight of {rows} x {columns} for {features} features")
        _expect(weights.get("bias", (rows,)), (rows,), "the bias")
        return (rows,)

    def folds_constants(self) -> bool:
        return True


class Conv(Op):
    """A convolution on (N, in, H, W): weight (out, in / groups, kernel height, width)."""

    kind: Literal["conv"] = "conv"
    stride: tuple[Size, Size] = (1, 1)
    padding: tuple[Margin, Margin] = (0, 0)
    dilation: tuple[Size, Size] = (1, 1)
    groups: Size = 1
    REQUIRED: ClassVar[tuple[str, ...]] = ("weight",)
    OPTIONAL: ClassVar[tuple[str, ...]] = ("bias",)
    LAYER: ClassVar[Literal["dense", "conv"] | None] = "conv"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.conv2d(
            inputs[0],
            weights["weight"],
            weights.get("bias"),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        channels, *size = _dims(inputs[0], 3, "the input")
        out, per_group, *kernel = _dims(weights["weight"], 4, "the weight")
        if channels != per_group * self.groups or out % self.groups:
            raise InputError(
                f"a weight of {out} x {per_group} channels in {self.groups} groups for {channels} "
                "channels"
            )
        _expect(weights.get("bias", (out,)), (out,), "the bias")
        return (
            out,
            *(
                _windows(n, k, s, p, d)
                for n, k, s, p, d in zip(
                    size, kernel, self.stride, self.padding, self.dilation, strict=True
                )
            ),
        )

    def passing(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Passing:
        out, per_group = weights["weight"][:2]
        if self.groups == 1:
            return "mix"
        return "keep" if self.groups == out and per_group == 1 else "barrier"

    def why_barrier(self) -> str:
        return f"it is a convolution in {self.groups} groups"

    def sees(self, weights: Mapping[str, Tensor]) -> Tensor | bool:
        return weights["weight"].flatten(1).any(1)

    def folds_constants(self) -> bool:
        return not any(self.padding)

    def narrowed(self, channels: int) -> Op:
        return self.model_copy(update={"groups": channels})


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "clamp": F.hardtanh,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}
"""Activations by name; what follows the tensor are the node's `parameters`."""

PARAMETERS = {"leaky_relu": 1, "clamp": 2, "elu": 1}
"""How many parameters an activation has, where it has any."""


class Activation(Op):
    """A function of each value: relu, leaky_relu (slope), clamp (low, high), elu (alpha), ..."""

    kind: Literal["activation"] = "activation"
    function: Literal[
        "relu",
        "leaky_relu",
        "clamp",
        "elu",
        "sigmoid",
        "tanh",
        "silu",
        "gelu",
        "hardswish",
        "hardsigmoid",
    ]
    parameters: tuple[Number, ...] = ()
    PASSING: ClassVar[Passing] = "keep"
    ELEMENTWISE: ClassVar[bool] = True

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return FUNCTIONS[self.function](inputs[0], *self.parameters)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        expected = PARAMETERS.get(self.function, 0)
        if len(self.parameters) != expected:
            raise InputError(
                f"{self.function} with {len(self.parameters)} parameters; expected {expected}"
            )
        if self.function == "clamp" and self.parameters[0] > self.parameters[1]:
            raise InputError(f"clamp from {self.parameters[0]} to {self.parameters[1]}")
        return inputs[0]


class PReLU(Op):
    """`x` where positive, `slope * x` elsewhere; a slope per channel."""

    kind: Literal["prelu"] = "prelu"
    REQUIRED: ClassVar[tuple[str, ...]] = ("slope",)
    PASSING: ClassVar[Passing] = "keep"
    ELEMENTWISE: ClassVar[bool] = True

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.prelu(inputs[0], weights["slope"])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        _expect(weights["slope"], (inputs[0][0],), "the slope")
        return inputs[0]


class Pool(Op):
    """The maximum or the average of windows of each channel."""

    kind: Literal["pool"] = "pool"
    function: Literal["max", "average"]
    kernel: tuple[Size, Size]
    stride: tuple[Size, Size]
    padding: tuple[Margin, Margin] = (0, 0)
    dilation: tuple[Size, Size] = (1, 1)
    ceil: bool = False
    count_padding: bool = True
    PASSING: ClassVar[Passing] = "keep"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        if self.function == "max":
            return F.max_pool2d(
                inputs[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil
            )
        return F.avg_pool2d(
            inputs[0], self.kernel, self.stride, self.padding, self.ceil, self.count_padding
        )

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        channels, *size = _dims(inputs[0], 3, "the input")
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise InputError(f"padding {self.padding} is more than half the kernel {self.kernel}")
        if self.function == "average" and self.dilation != (1, 1):
            raise InputError("average pooling has no dilation")
        return (
            channels,
            *(
                _windows(n, k, s, p, d, ceil=self.ceil)
                for n, k, s, p, d in zip(
                    size, self.kernel, self.stride, self.padding, self.dilation, strict=True
                )
            ),
        )


class Flatten(Op):
    """All values of an example in one dimension, the last index fastest."""

    kind: Literal["flatten"] = "flatten"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].flatten(1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return (math.prod(inputs[0]),)

    def passing(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Passing:
        return "keep" if math.prod(inputs[0][1:]) == 1 else "spread"


class Add(Op):
    """The sum of two values of one shape: a residual connection."""

    kind: Literal["add"] = "add"
    ARITY: ClassVar[int | None] = 2
    PASSING: ClassVar[Passing] = "keep"
    ELEMENTWISE: ClassVar[bool] = True

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0] + inputs[1]

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if inputs[0] != inputs[1]:
            raise InputError(f"a sum of {inputs[0]} and {inputs[1]}")
        return inputs[0]


class Softmax(Op):
    """Softmax over the channels, or its logarithm."""

    kind: Literal["softmax"] = "softmax"
    log: bool = False
    PASSING: ClassVar[Passing] = "all"

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.log_softmax(inputs[0], 1) if self.log else F.softmax(inputs[0], 1)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return inputs[0]

    def why_barrier(self) -> str:
        return "a softmax depends on every channel"


class Opaque(Op):
    """Anything else: it runs in memory, but it is no data, so it cannot be written.

    Its result may be no tensor (a batch's size, a tuple); then its shape is empty.
    """

    kind: Literal["opaque"] = "opaque"
    target: str
    call: Callable[[Sequence[Any], Mapping[str, Tensor]], Any]
    size: tuple[int, ...] = ()
    ARITY: ClassVar[int | None] = None

    def run(self, inputs: Sequence[Any], weights: Mapping[str, Tensor]) -> Any:
        return self.call(inputs, weights)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return self.size

    def why_barrier(self) -> str:
        return "it cannot be seen through"


AnyOp = Annotated[
    Input
    | Select
    | Affine
    | Linear
    | Conv
    | Activation
    | PReLU
    | Pool
    | Flatten
    | Add
    | Softmax
    | Opaque,
    Field(discriminator="kind"),
]

KNOWN: tuple[type[Op], ...] = get_args(get_args(AnyOp)[0])
"""The classes of `AnyOp`: what a graph can be written with and read again."""


def _windows(n: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil=False) -> int:
    """How many windows fit into n values, as PyTorch counts them."""
    rest = n + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-rest // stride) if ceil else rest // stride) + 1
    # a window that would begin in the padding on the far side is left out
    if ceil and (count - 1) * stride >= n + padding:
        count -= 1
    if count < 1:
        raise InputError(f"a kernel of {kernel} (dilation {dilation}) for {n} values")
    return count


def _dims(shape: Shape, count: int, what: str) -> Shape:
    if len(shape) != count:
        raise InputError(f"{what} has {len(shape)} dimensions; expected {count}")
    return shape


def _expect(shape: Shape, expected: Shape, what: str) -> None:
    if shape != expected:
        raise InputError(f"{what} has shape {shape}; expected {expected}")
