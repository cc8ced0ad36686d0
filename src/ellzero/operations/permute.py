"""The axes of an example in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.c.kernel import Context, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.operations.reshape import Reshape
from ellzero.operations.shapes import Margin
from ellzero.tensors import Shape


class Permute(Operation):
    """The axes of an example in another order: axis i of the result is `order[i]` of the input."""

    kind: Literal["permute"] = "permute"
    order: tuple[Margin, ...]
    ANY_LAYOUT = True
    FOLLOWS = True
    C = "body"
    FINISHES = True
    PER_VALUE = COPY
    VIEW = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            aten.permute.default: lambda call: _permuted(call, call["dims"]),
            aten.transpose.int: _transposed,
            aten.t.default: lambda call: _permuted(call, _all_dims(call)[::-1]),
            aten.movedim.int: _moved,
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].permute(0, *(axis + 1 for axis in self.order))

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (shape,) = inputs
        if sorted(self.order) != list(range(len(shape))):
            raise InputError(f"the order {self.order} of the axes of {shape}")
        return tuple(shape[axis] for axis in self.order)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output))
        words = names.split()
        return Axes((names,), " ".join(words[axis] for axis in self.order))

    def c_body(self, context: Context) -> str:
        steps = strides(context.inputs[0])

        def value(indices: Sequence[str]) -> str:
            places = (f"{i} * {steps[axis]}" for i, axis in zip(indices, self.order, strict=True))
            return f"x[{' + '.join(places)}]"

        return context.each_place(value)


def _all_dims(call: Call) -> list[int]:
    layout = call.layout("self")
    return [] if layout is None else list(range(len(layout.dims)))


def _transposed(call: Call) -> Recognized | None:
    dims = _all_dims(call)
    if not dims:
        return None
    one, other = (call[role] % len(dims) for role in ("dim0", "dim1"))
    dims[one], dims[other] = dims[other], dims[one]
    return _permuted(call, dims)


def _moved(call: Call) -> Recognized | None:
    dims = _all_dims(call)
    if not dims:
        return None
    source, target = (call[role] % len(dims) for role in ("source", "destination"))
    dims.insert(target, dims.pop(source))
    return _permuted(call, dims)


def _permuted(call: Call, dims: Sequence[int]) -> Recognized | None:
    layout = call.layout("self")
    if layout is None:
        return None
    after, order = layout.permuted(dims)
    wide = [axis for axis in order if layout.shape[axis] > 1]
    operation: Operation | None = Permute(order=tuple(order))
    if wide == sorted(wide):  # what moves is of size 1, or the batch: the values stay in order
        operation = None if after.shape == layout.shape else Reshape(size=after.shape)
    return Recognized(operation, [call["self"]], layout=after)
