"""What tracing cannot say as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from ellzero.operations.operation import Operation
from ellzero.tensors import Shape


class Opaque(Operation):
    """Anything else: it runs in memory, but it is no data, so it cannot be written.

    Its result may be no tensor (a tuple, or the batch's size: `is_size`); then its shape is empty.
    `line` says where in the network's code the call is.
    """

    kind: Literal["opaque"] = "opaque"
    target: str
    call: Callable[[Sequence[Any], Mapping[str, Tensor]], Any]
    size: tuple[int, ...] = ()
    line: str = ""
    is_size: bool = False
    ARITY = None

    def run(self, inputs: Sequence[Any], weights: Mapping[str, Tensor]) -> Any:
        return self.call(inputs, weights)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return self.size

    def why_whole(self) -> str:
        return "it cannot be seen through"
