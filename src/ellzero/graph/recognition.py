"""What a call of an exported program is, said as operations: who recognizes it, whether it fits."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import Tensor, fx

from ellzero.errors import InputError
from ellzero.operations import OPERATIONS, Reshape
from ellzero.operations.call import Call, ComputedWeightError, Values
from ellzero.operations.layout import Layout, times
from ellzero.operations.operation import Recognized, Recognizer
from ellzero.tensors import Shape


class Recognition:
    """Asks the operations what calls are, and makes sure that what they say can be.

    Args:
        values: what is known of a program's values; whoever walks over it adds to them.
    """

    def __init__(self, values: Values) -> None:
        self.values = values
        self.recognizers = _recognizers()

    def of(self, source: fx.Node, part: int) -> tuple[Recognized, Layout] | None:
        """What a call is, and how the batch lies in what it gives; None where nothing is known.

        Args:
            source: the call.
            part: of the tuple that it gives, if it gives one.
        """
        if source.target not in self.recognizers:
            return None
        call = Call(source, self.values, part)
        for recognizer, any_layout in self.recognizers[call.fx_node.target]:
            if not any_layout and not self._lies_plainly(call):
                continue
            try:
                said = recognizer(call)
            except (ComputedWeightError, ValidationError):  # settings that it does not have
                continue
            if isinstance(said, fx.Node):
                said = Recognized(None, [said], layout=self.values.layouts.get(said))
            if said is None or said.part != call.part or not self._fits(said):
                continue
            layout = self._layout(call, said)
            if layout is None or layout.shape != self._shape(said):
                continue
            if layout == layout.simplified():
                return said, layout
            layout = layout.simplified()
            return Recognized(Reshape(size=layout.shape), [said]), layout
        return None

    def _lies_plainly(self, call: Call) -> bool:
        """Whether the batch comes first in all that a call reads and gives."""
        layouts = [self.values.layouts.get(source) for source in call.fx_node.all_input_nodes]
        return bool(call.shape) and all(
            layout is None or not layout.has_batch or layout.is_plain for layout in layouts
        )

    def _layout(self, call: Call, said: Recognized) -> Layout | None:
        """How the batch lies in what a call gives: as is said, or as in what it reads."""
        if said.layout is not None:
            return said.layout
        if self._lies_plainly(call):
            return Layout.plain(call.shape)
        result = call.result
        for source in call.fx_node.all_input_nodes:
            before = self.values.layouts.get(source)
            if before is not None and isinstance(result, Tensor):
                return _relaid(before, tuple(result.shape), self.values.batch)
        return None

    def _fits(self, said: Recognized) -> bool:
        """Whether all is there that an operation works on: values to read, weights as they are.

        What the network computes from weights alone may be neither.
        """
        weights = [weight for weight in said.weights.values() if weight is not None]
        return all(
            self._fits(source) if isinstance(source, Recognized) else self._is_read(source)
            for source in said.inputs
        ) and all(isinstance(weight, Tensor) or weight in self.values.weights for weight in weights)

    def _is_read(self, source: Any) -> bool:
        """Whether operations can read a value; weights of complex numbers they cannot."""
        layout, weight = self.values.layouts.get(source), self.values.weights.get(source)
        is_complex = weight is not None and weight.is_complex()
        return layout is not None and bool(layout.shape) and not is_complex

    def _shape(self, said: Recognized | fx.Node) -> Shape | None:
        """Shape of one example of what was recognized, as its operations say; None if they refuse.

        A result that lies in another way than the operation says would be wrong without a word.
        """
        if not isinstance(said, Recognized):
            return self.values.layouts[said].shape
        inputs = [shape for source in said.inputs if (shape := self._shape(source)) is not None]
        if len(inputs) < len(said.inputs):
            return None
        if said.operation is None:
            return inputs[0]
        weights = {
            role: tuple((w if isinstance(w, Tensor) else self.values.weights[w]).shape)
            for role, w in said.weights.items()
            if w is not None
        }
        try:
            return said.operation.shape(inputs, weights)
        except InputError:
            return None


def _recognizers() -> Mapping[Any, list[tuple[Recognizer, bool]]]:
    """Who may recognize a call, by what it calls, and whether the batch may lie anywhere.

    Operations registered last are asked first.
    """
    recognizers: dict[Any, list[tuple[Recognizer, bool]]] = defaultdict(list)
    for operation in reversed(OPERATIONS.values()):
        for target, recognizer in operation.recognizers().items():
            recognizers[target].append((recognizer, operation.ANY_LAYOUT))
    return recognizers


def _relaid(layout: Layout, sizes: Sequence[Any], batch: Any) -> Layout | None:
    """A layout with other sizes of the dimensions that are single axes."""
    if len(sizes) != len(layout.dims):
        return None
    dims = []
    for dim, size in zip(layout.dims, sizes, strict=True):
        if isinstance(size, int) and len(dim) == 1 and None not in dim:
            dims.append((size,))
        elif None not in dim or times(size, batch) != math.prod(n for n in dim if n is not None):
            return None
        else:
            dims.append(dim)
    return Layout(tuple(dims))
