"""A scale and a shift per channel, which a batch normalization is in evaluation mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ellzero.operations.call import Call, aten
from ellzero.operations.operation import Elementwise, Recognized, Recognizer
from ellzero.operations.shapes import expect
from ellzero.tensors import Shape


class Affine(Elementwise):
    """`x * scale + shift` per channel: a batch normalization in evaluation mode."""

    kind: Literal["affine"] = "affine"
    REQUIRED = ("scale", "shift")
    PER_VALUE = 2

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        # as it is exported, and as a decomposition gives it
        targets = aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default
        return dict.fromkeys(targets, _batch_norm) | {aten.instance_norm.default: _instance_norm}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        x = inputs[0]
        view = (1, -1) + (1,) * (x.ndim - 2)
        return x * weights["scale"].view(view) + weights["shift"].view(view)

    def sees(self, weights: Mapping[str, Tensor]) -> Tensor | bool:
        return weights["scale"] != 0

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        for role in self.REQUIRED:
            expect(weights[role], (inputs[0][0],), role)
        return inputs[0]

    def c_value(self, v: str, weights: Mapping[str, str]) -> str:
        return f"{v} * {weights['scale']} + {weights['shift']}"


def _batch_norm(call: Call) -> Recognized:
    mean, variance = (call.weight(role).double() for role in ("running_mean", "running_var"))
    # y = (x - mean) / sqrt(variance + eps) * weight + bias
    scale = torch.rsqrt(variance + call["eps"])
    if call["weight"] is not None:
        scale = scale * call.weight("weight").double()
    shift = -mean * scale
    if call["bias"] is not None:
        shift = shift + call.weight("bias").double()
    dtype = call.weight("running_mean").dtype
    return Recognized(
        Affine(), [call["input"]], {"scale": scale.to(dtype), "shift": shift.to(dtype)}
    )


def _instance_norm(call: Call) -> Recognized | None:
    """One of running statistics, which is a batch normalization."""
    return None if call["use_input_stats"] else _batch_norm(call)
