"""What tracing cannot say as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ellzero.errors import InputError
from ellzero.operations.operation import Operation
from ellzero.operations.shapes import Margin
from ellzero.tensors import Shape


class Opaque(Operation):
    """Anything else: code, which runs in memory. A file has its name alone, without its `call`.

    Its result may be no tensor (a tuple, or the batch's size: `is_size`); then its shape is empty.
    `line` says where in the network's code the call is.
    """

    kind: Literal["opaque"] = "opaque"
    target: str
    call: Callable[[Sequence[Any], Mapping[str, Tensor]], Any] | None = Field(
        default=None, exclude=True
    )
    size: tuple[Margin, ...] = ()
    line: str = Field(default="", exclude=True)
    is_size: bool = False
    ARITY = None

    def run(self, inputs: Sequence[Any], weights: Mapping[str, Tensor]) -> Any:
        if self.call is None:
            raise InputError(
                f"{self.target} is code of the network's class, which the file does not hold; give "
                "the network: ez.load(path, model)"
            )
        return self.call(inputs, weights)

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        return self.size

    def work(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape) -> int:
        """Nothing, for it costs what it costs in the network that has the code.

        A file has none, and whoever lends it (`with_code`) has it work on the same shapes.
        """
        return 0

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        return 0

    def why_whole(self) -> str:
        return "it cannot be seen through"
