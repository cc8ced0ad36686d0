"""Layer scales: factors on the l0 strength, by how many weights a layer has."""

from __future__ import annotations

import math
from typing import Literal, get_args

from ellzero.errors import InputError, nearest
from ellzero.selection import Selection
from ellzero.weights import Kind, Weight

LayerScale = Literal["paper", "paper-code", "inverse"]


def layer_scales(weights: Selection, rule: LayerScale | None) -> list[float]:
    """The factor on each layer's l0 strength under a layer scale, in the selection's order.

    Raises:
        InputError: an unknown rule.
    """
    if rule is None:
        return [1.0] * len(weights)
    if rule not in get_args(LayerScale):
        raise InputError(f"layer_scale is {rule!r}; {nearest(str(rule), get_args(LayerScale))}")
    sizes = [_size(weight, rule) for weight in weights.weights]
    if rule == "inverse":
        layers = sum(size > 0 for size in sizes)  # a layer without weights has nothing to scale
        return [sum(sizes) / (size * layers) if size else 1.0 for size in sizes]
    largest: dict[str, int] = {}
    for weight, size in zip(weights.weights, sizes, strict=True):
        largest[_kind(weight)] = max(size, largest.get(_kind(weight), 0))
    return [
        math.sqrt(size / largest[_kind(weight)]) if size else 1.0
        for weight, size in zip(weights.weights, sizes, strict=True)
    ]


def _kind(weight: Weight) -> Kind:
    """The kind of the layer, whatever its weight is computed from."""
    return weight.layer or weight.kind


def _size(weight: Weight, rule: LayerScale) -> int:
    size = weight.parameter.numel()
    if rule == "paper-code" and _kind(weight) == "conv":
        return size // weight.parameter.shape[2]  # (out, in, height, ...)
    return size
