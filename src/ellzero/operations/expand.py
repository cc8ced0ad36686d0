"""Axes of size 1 that are repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, fx

from ellzero.c.kernel import Context, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.layout import Layout, times
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.operations.reshape import Reshape
from ellzero.operations.shapes import Size
from ellzero.tensors import Shape


class Expand(Operation):
    """The values as an example of these sizes: where an axis had one index, each index is that."""

    kind: Literal["expand"] = "expand"
    size: tuple[Size, ...]
    ANY_LAYOUT = True
    FOLLOWS = True
    C = "body"
    FINISHES = True
    PER_VALUE = COPY
    VIEW = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            aten.expand.default: _expanded,
            aten.repeat_interleave.self_int: lambda call: repeated(
                call, "self", call["dim"], call["repeats"]
            ),
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return inputs[0].expand(-1, *self.size)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (shape,) = inputs
        if len(shape) != len(self.size) or any(
            n not in (1, wide) for n, wide in zip(shape, self.size, strict=True)
        ):
            raise InputError(f"{shape} expanded to {self.size}")
        return self.size

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = letters(len(output)).split()
        sizes = zip(inputs[0], output, names, strict=True)
        read = ["1" if n == 1 < wide else name for n, wide, name in sizes]
        return Axes((" ".join(read),), " ".join(names))

    def narrowed(self, kept: Mapping[str, int], output: Shape) -> Operation:
        return self.model_copy(update={"size": output})

    def c_body(self, context: Context) -> str:
        shape = context.inputs[0]

        def value(indices: Sequence[str]) -> str:
            steps = zip(indices, shape, strides(shape), strict=True)
            return f"x[{' + '.join(f'{i} * {step}' for i, n, step in steps if n > 1) or '0'}]"

        return context.each_place(value)


def _expanded(call: Call) -> Recognized | None:
    """Values that are repeated, along axes of size 1 or for each example, as a class token is."""
    layout, result = call.layout("self"), call.result
    if layout is None or len(result.shape) < len(layout.dims):
        return None
    missing = ((1,),) * (len(result.shape) - len(layout.dims))
    dims: list[tuple[int | None, ...]] = []
    single: list[int] = []  # the sizes of an example before it is expanded
    for dim, size in zip((*missing, *layout.dims), result.shape, strict=True):
        if isinstance(size, int):
            if dim not in ((1,), (size,)):
                return None
            dims.append((size,))
            single += [n for n in dim if n is not None]
        elif dim == (1,):
            if times(size, call.values.batch) != 1:
                return None
            dims.append((None,))
        else:
            dims.append(dim)
            single += [n for n in dim if n is not None]
    after = Layout(tuple(dims))
    if sum(None in dim for dim in dims) > 1 or not after.shape:
        return None
    if after.is_single:
        single = [1]
    return _said(call["self"], layout, tuple(single), after)


def _said(source: fx.Node, layout: Layout, single: Shape, after: Layout) -> Recognized:
    """A value that gets axes of size 1, and is expanded along them, where it is not as it was."""
    value: fx.Node | Recognized = source
    if single != layout.shape:
        value = Recognized(Reshape(size=single), [value])
    operation = None if single == after.shape else Expand(size=after.shape)
    return Recognized(operation, [value], layout=after)


def repeated(call: Call, role: str, dim: int | None, count: Any) -> Recognized | None:
    """An argument of which each index of a dimension comes several times, one after the other."""
    layout = call.layout(role)
    axis = None if layout is None or dim is None else layout.axis(dim)
    if layout is None or dim is None or axis is None or not isinstance(count, int):
        return None
    shape = layout.shape
    before, after = shape[: axis + 1], shape[axis + 1 :]
    single = Recognized(Reshape(size=(*before, 1, *after)), [call[role]])
    wide = Recognized(Expand(size=(*before, count, *after)), [single])
    result = layout.resized(dim, shape[axis] * count)
    return Recognized(Reshape(size=result.shape), [wide], layout=result)
