"""A run of indices of one axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, fx

from ellzero.c.kernel import Context, strides
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten, result_of
from ellzero.operations.layout import Layout
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.operations.reshape import Reshape
from ellzero.operations.shapes import Margin, Size
from ellzero.tensors import Shape


class Slice(Operation):
    """The indices `start`, `start + step` ... below `stop` of one axis of an example."""

    kind: Literal["slice"] = "slice"
    ANY_LAYOUT = True
    axis: Margin
    start: Margin
    stop: Size
    step: Size = 1
    FOLLOWS = True
    C = "body"
    FINISHES = True
    PER_VALUE = COPY
    VIEW = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {
            aten.slice.Tensor: _slice,
            aten.narrow.default: lambda call: _part(
                call, call["dim"], call["start"], call["length"]
            ),
            aten.select.int: lambda call: _one(call, call["dim"], call["index"]),
            aten.unbind.int: lambda call: _one(call, call["dim"], call.part),
            aten.split.Tensor: _split,
            aten.split_with_sizes.default: _split,
            aten.chunk.default: _split,
            aten.index.Tensor: _indexed,
        }

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        index = [slice(None)] * (self.axis + 1)
        return inputs[0][(*index, slice(self.start, self.stop, self.step))]

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        (shape,) = inputs
        if self.axis >= len(shape) or not self.start < self.stop <= shape[self.axis]:
            raise InputError(f"indices {self.start} to {self.stop} of axis {self.axis} of {shape}")
        count = len(range(self.start, self.stop, self.step))
        return (*shape[: self.axis], count, *shape[self.axis + 1 :])

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        """An axis of three parts, of which the middle one is taken; or with a step, a whole one."""
        read, result = letters(len(output)).split(), letters(len(output)).split()
        if self.step > 1:
            read[self.axis], result[self.axis] = "from", "taken"
            return Axes((" ".join(read),), " ".join(result), whole="from taken")
        parts = {"before": self.start, "after": inputs[0][self.axis] - self.stop}
        left = {name: size for name, size in parts.items() if size}
        result[self.axis] = "taken"
        order = [name for name in ("before", "taken", "after") if name == "taken" or name in left]
        read[self.axis] = "+".join(order)
        return Axes((" ".join(read),), " ".join(result), sizes=left)

    def narrowed(self, kept: Mapping[str, int], output: Shape) -> Operation:
        if self.step > 1:
            return self
        start = kept.get("before", 0)
        return self.model_copy(update={"start": start, "stop": start + kept["taken"]})

    def c_body(self, context: Context) -> str:
        """A copy from where it begins."""
        steps = strides(context.inputs[0])
        begin = self.start * steps[self.axis]
        steps[self.axis] *= self.step

        def value(indices: Sequence[str]) -> str:
            place = " + ".join(f"{i} * {step}" for i, step in zip(indices, steps, strict=True))
            return f"x[{begin} + {place}]"

        return context.each_place(value)


def _slice(call: Call) -> Recognized | fx.Node | None:
    layout = call.layout("self")
    if layout is None:
        return None
    bounds = slice(call["start"], call["end"], call["step"])
    if not all(isinstance(number, int | None) for number in (bounds.start, bounds.stop)):
        return None
    axis = layout.axis(call["dim"])
    if axis is None:
        return call["self"] if bounds in _ALL else None  # of the batch
    start, stop, step = bounds.indices(layout.shape[axis])
    if (start, stop, step) == (0, layout.shape[axis], 1):
        return call["self"]
    if start >= stop:
        return None
    after = layout.resized(call["dim"], len(range(start, stop, step)))
    operation = Slice(axis=axis, start=start, stop=stop, step=step)
    return Recognized(operation, [call["self"]], layout=after)


def _split(call: Call) -> Recognized | None:
    """A part of a tensor that is split: it lies behind the parts before it."""
    layout = call.layout("self")
    axis = None if layout is None else layout.axis(call["dim"])
    if layout is None or axis is None:
        return None
    parts = call.fx_node.meta["val"]
    lengths = [part.shape[call["dim"]] for part in parts]
    return _part(call, call["dim"], sum(lengths[: call.part]), lengths[call.part])


def _part(call: Call, dim: int, start: int, length: int) -> Recognized | None:
    layout = call.layout("self")
    axis = None if layout is None else layout.axis(dim)
    if layout is None or axis is None or not all(isinstance(n, int) for n in (start, length)):
        return None
    start %= layout.shape[axis]
    operation = Slice(axis=axis, start=start, stop=start + length)
    is_all = length == layout.shape[axis]
    after = layout.resized(dim, length)
    return Recognized(None if is_all else operation, [call["self"]], layout=after, part=call.part)


def _one(call: Call, dim: int, index: int) -> Recognized | None:
    """One index of an axis, which then is none any more."""
    layout = call.layout("self")
    axis = None if layout is None else layout.axis(dim)
    if layout is None or axis is None or not isinstance(index, int):
        return None
    start, after = index % layout.shape[axis], layout.without(dim)
    one = Recognized(Slice(axis=axis, start=start, stop=start + 1), [call["self"]])
    inputs = [call["self"] if layout.shape[axis] == 1 else one]
    return Recognized(Reshape(size=after.shape), inputs, layout=after, part=call.part)


def _indexed(call: Call) -> Recognized | None:
    """Each example itself and a run of one axis's indices: how a mask of keys is looked up.

    As in `mask[torch.arange(n).view(-1, 1), torch.arange(keys)]`, of a mask (n, keys).
    """
    layout, indices = call.layout("self"), call["indices"]
    if layout is None or not layout.is_plain or len(indices) != 2 or None in indices:
        return None
    batch, run = indices
    places = call.values.constants.get(run)
    if places is None or not call.is_places_of_batch(batch):
        return None
    sizes, wide = result_of(batch).shape, result_of(run).shape
    count = len(sizes) if len(sizes) > len(wide) else len(wide)
    dims: list[tuple[int | None, ...]] = [(1,)] * count
    for shape, size in ((sizes, None), (wide, places.numel())):
        for dim, n in enumerate(reversed(shape), start=1):
            if n != 1:
                if dims[-dim] != (1,):
                    return None
                dims[-dim] = (size,)
    values = places.flatten().tolist()
    start, step = values[0], values[1] - values[0] if len(values) > 1 else 1
    if start < 0 or step < 1 or values != list(range(start, values[-1] + 1, step)):
        return None
    after = Layout((*dims, *layout.dims[2:]))
    value: Any = call["self"]
    if len(values) < layout.shape[0]:
        value = Recognized(Slice(axis=0, start=start, stop=values[-1] + 1, step=step), [value])
    return Recognized(Reshape(size=after.shape), [value], layout=after)


_ALL = [slice(start, stop, 1) for start in (None, 0) for stop in (None, 2**63 - 1)]
"""How a call says all of the batch."""
