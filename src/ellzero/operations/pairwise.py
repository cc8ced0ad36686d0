"""What operations of several values at the same place have in common, such as sums and products."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ellzero.c.kernel import Context, input_names, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call, result_of
from ellzero.operations.constant import Constant
from ellzero.operations.layout import Layout
from ellzero.operations.operation import CForm, Operation, Recognized
from ellzero.operations.reshape import Reshape
from ellzero.tensors import Shape


class Pairwise(Operation):
    """An operation of two values or three; an axis of size 1 goes with all of another's."""

    ANY_LAYOUT: ClassVar[bool] = True
    ARITY: ClassVar[int | None] = 2
    ELEMENTWISE: ClassVar[bool] = True
    FOLLOWS: ClassVar[bool] = True
    C: ClassVar[CForm] = "body"
    FINISHES: ClassVar[bool] = True
    IN_PLACE: ClassVar[bool] = True
    PER_VALUE: ClassVar[int | None] = 2

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        sizes = [{1, *axis} for axis in zip_longest(*inputs)]
        if len(set(map(len, inputs))) > 1 or any(len(axis) > 2 for axis in sizes):
            shapes = " and of ".join(map(str, inputs))
            raise InputError(f"values of {shapes} do not go together")
        return tuple(map(max, *inputs))

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        names = [f"a{axis}" for axis in range(len(output))]
        read = (
            " ".join(
                "1" if n == 1 < m else name for n, m, name in zip(x, output, names, strict=True)
            )
            for x in inputs
        )
        return Axes(tuple(read), " ".join(names))

    @abstractmethod
    def c_pair(self, *values: str) -> str:
        """C expression of the result, of those of the values."""

    def c_body(self, context: Context) -> str:
        read = input_names(len(context.inputs))
        if len(set(context.inputs)) == 1:
            return context.each_value(lambda at: self.c_pair(*(f"{x}{at('c')}" for x in read)))

        def value(indices: Sequence[str]) -> str:
            shapes = zip(read, context.inputs, strict=True)
            return self.c_pair(*(f"{x}[{_place(indices, shape)}]" for x, shape in shapes))

        return context.each_place(value)


def _place(indices: Sequence[str], shape: Shape) -> str:
    steps = zip(indices, shape, strides(shape), strict=True)
    return " + ".join(f"{i} * {step}" for i, size, step in steps if size > 1) or "0"


def paired(
    call: Call, operation: Pairwise, *values: Any, numbers: bool = False
) -> Recognized | None:
    """A call of several values as an operation; None where they do not align.

    Values of torch align at their last dimensions, those of an example axis by axis; so a value
    with fewer dimensions gets axes of size 1.

    Args:
        call: of torch.
        operation: what it is.
        values: by default the arguments "self" and "other".
        numbers: whether numbers may be among them.
    """
    pairs = [_value(call, value, numbers) for value in values or (call["self"], call["other"])]
    known = [pair for pair in pairs if pair is not None]
    common = _common([layout for _, layout in known])
    if common is None or len(known) < len(pairs):
        return None
    inputs = []
    for source, layout in known:
        size = aligned(layout, common)
        if size is None:
            return None
        is_same = size == layout.shape
        inputs.append(source if is_same else Recognized(Reshape(size=size), [source]))
    return Recognized(operation, inputs, layout=common)


def _value(call: Call, value: Any, numbers: bool) -> tuple[fx.Node | Recognized, Layout] | None:
    """A value and its layout; a number, and a constant without dimensions, gets one."""
    if not isinstance(value, int | float):
        constant = call.values.constants.get(value)
    elif numbers and math.isfinite(value):
        constant = _beside(call, value)
    else:
        return None
    if constant is not None and not constant.ndim:
        weight = constant.detach().reshape(1)
        return Recognized(Constant(), [], {"value": weight}), Layout.of_weight((1,))
    layout = call.values.layouts.get(value)
    if not isinstance(value, fx.Node) or layout is None or not layout.shape:
        return None
    return value, layout


def _beside(call: Call, number: float) -> Tensor:
    """A number as torch computes with it beside the tensors that a call reads."""
    read = [result_of(source) for source in call.fx_node.all_input_nodes]
    floats = [x.dtype for x in read if isinstance(x, Tensor) and x.is_floating_point()]
    return torch.tensor(number, dtype=floats[0] if floats else None)


def _common(layouts: Sequence[Layout]) -> Layout | None:
    """The layout of the result of values that align at their last dimensions."""
    dims = []
    for parts in zip_longest(*(reversed(layout.dims) for layout in layouts), fillvalue=(1,)):
        wide = {part for part in parts if part != (1,)}
        if len(wide) > 1:
            return None
        dims.append(wide.pop() if wide else (1,))
    common = Layout(tuple(reversed(dims)))
    return common if sum(None in dim for dim in dims) <= 1 else None


def aligned(layout: Layout, common: Layout) -> Shape | None:
    """Shape of an example with an axis for each of the result's; None where that is not enough."""
    missing = len(common.dims) - len(layout.dims)
    dims = ((1,),) * missing + layout.dims
    size: list[int] = []
    for dim, wide in zip(dims, common.dims, strict=True):
        axes = [n for n in wide if n is not None]
        size += axes if dim == wide else [1] * len(axes)
    return tuple(size)
