"""Any function of a single value, as a table of what it is for each of the 256 values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ellzero.operations.integer.operation import IntegerOperation
from ellzero.operations.shapes import expect
from ellzero.tensors import Shape


class Lookup(IntegerOperation):
    """`y = table[x + 128]`, a table int8 (256)."""

    kind: Literal["lookup"] = "lookup"
    REQUIRED = ("table",)
    INTEGERS: ClassVar = {"table": torch.int8}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return weights["table"][inputs[0].int() + 128]

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        expect(weights["table"], (256,), "the table")
        return inputs[0]
