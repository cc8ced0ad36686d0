"""Rows of a table, by tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ellzero.c.kernel import Context
from ellzero.c.storage import Matrix
from ellzero.c.text import loop
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten
from ellzero.operations.layout import Layout
from ellzero.operations.operation import COPY, Operation, Recognized, Recognizer
from ellzero.operations.reshape import Reshape
from ellzero.operations.shapes import sizes
from ellzero.operations.slice import Slice
from ellzero.tensors import Shape


class Embedding(Operation):
    """For each token (whole numbers from 0 on) its row of the weight (tokens, features)."""

    kind: Literal["embedding"] = "embedding"
    REQUIRED = ("weight",)
    ANY_LAYOUT = True
    C = "body"
    FINISHES = True
    PER_VALUE = COPY

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.embedding.default: _embedding}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        return F.embedding(inputs[0], weights["weight"])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        _, features = sizes(weights["weight"], 2, "the weight")
        return (*inputs[0], features)

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        places = letters(len(output) - 1)
        return Axes((places,), f"{places} feature", {"weight": "token feature"}, whole="token")

    def why_whole(self) -> str:
        return "it looks rows up by tokens"

    def c_body(self, context: Context) -> str:
        """Each row dense, in the fewest bytes; tokens are floats, exact up to 2^24."""
        weight = context.weights["weight"]
        matrix = Matrix(f"{context.name}_weight", weight)
        places = np.arange(weight.numel())
        ways = matrix.values(np.where(matrix.nonzero.ravel(), places, -1))
        values = min(ways, key=lambda way: sum(array.size_bytes for array in way.arrays))
        context.arrays += values.arrays
        shape, features = context.inputs[0], weight.shape[1]
        entry = values.finish(values.read(f"{values.entries.name}[row + e]"))
        store = context.finish(entry, "*y++", f"t / {math.prod(shape[1:])}")
        row = f"const int row = (int)x[t] * {features};\n"
        return loop("t", math.prod(shape), row + loop("e", features, store))


def _embedding(call: Call) -> Recognized | None:
    layout = call.layout("indices")
    if layout is None or not layout.shape:
        return None
    features = call.weight("weight").shape[1]
    result = Layout((*layout.dims, (features,)))
    tokens = call.constant("indices")
    if tokens is not None:
        first, count = int(tokens.min()), tokens.numel()
        in_order = torch.arange(first, first + count)
        if torch.equal(tokens.reshape(-1), in_order) and not layout.has_batch:
            # positions: the rows themselves
            rows = Recognized(Slice(axis=0, start=first, stop=first + count), [call["weight"]])
            is_all = count == len(call.weight("weight"))
            return Recognized(
                None if layout.shape == (count,) else Reshape(size=result.shape),
                [call["weight"] if is_all else rows],
                layout=result,
            )
    return Recognized(Embedding(), [call["indices"]], {"weight": call["weight"]}, layout=result)
