"""What the sum, the difference, the product and the quotient of two values have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import ClassVar

from torch import fx

from ellzero.c.kernel import Context, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes
from ellzero.operations.call import Call
from ellzero.operations.constant import Constant
from ellzero.operations.layout import Layout
from ellzero.operations.operation import CForm, Operation, Recognized
from ellzero.operations.reshape import Reshape
from ellzero.tensors import Shape


class Pairwise(Operation):
    """An operation of two values; an axis of size 1 goes with each index of the other's."""

    ANY_LAYOUT: ClassVar[bool] = True
    ARITY: ClassVar[int | None] = 2
    ELEMENTWISE: ClassVar[bool] = True
    FOLLOWS: ClassVar[bool] = True
    C: ClassVar[CForm] = "body"
    FINISHES: ClassVar[bool] = True
    IN_PLACE: ClassVar[bool] = True

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        one, other = inputs
        if len(one) != len(other) or any(
            a != b and 1 not in (a, b) for a, b in zip(one, other, strict=True)
        ):
            raise InputError(f"values of {one} and of {other} do not go together")
        return tuple(map(max, one, other))

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
    def c_pair(self, one: str, other: str) -> str:
        """C expression of the result of two values."""

    def c_body(self, context: Context) -> str:
        if context.inputs[0] == context.inputs[1]:
            return context.each_value(lambda at: self.c_pair(f"x{at('c')}", f"x2{at('c')}"))

        def value(indices: Sequence[str]) -> str:
            one, other = (_place(indices, shape) for shape in context.inputs)
            return self.c_pair(f"x[{one}]", f"x2[{other}]")

        return context.each_place(value)


def _place(indices: Sequence[str], shape: Shape) -> str:
    steps = zip(indices, shape, strides(shape), strict=True)
    return " + ".join(f"{i} * {step}" for i, size, step in steps if size > 1) or "0"


def paired(
    call: Call, operation: Pairwise, one: str = "self", other: str = "other"
) -> Recognized | None:
    """A call of two values as an operation; None where one is a number, or they do not align.

    Values of torch align at their last dimensions, those of an example axis by axis; so a value
    with fewer dimensions gets axes of size 1.
    """
    values = [_value(call, role) for role in (one, other)]
    if None in values:
        return None
    layouts = [value[1] for value in values if value is not None]
    common = _common(layouts)
    if common is None:
        return None
    inputs = []
    for source, layout in (value for value in values if value is not None):
        size = aligned(layout, common)
        if size is None:
            return None
        is_same = size == layout.shape
        inputs.append(source if is_same else Recognized(Reshape(size=size), [source]))
    return Recognized(operation, inputs, layout=common)


def _value(call: Call, role: str) -> tuple[fx.Node | Recognized, Layout] | None:
    """A value and its layout; a constant without dimensions gets one."""
    layout, constant = call.layout(role), call.constant(role)
    if constant is not None and not constant.ndim:
        value = constant.detach().reshape(1)
        return Recognized(Constant(), [], {"value": value}), Layout.of_weight((1,))
    return None if layout is None or not layout.shape else (call[role], layout)


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
