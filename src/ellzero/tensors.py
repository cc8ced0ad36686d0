"""Which tensors can be worked on: plain ones of real numbers, held here; others are refused."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InputError

Shape = tuple[int, ...]
"""Sizes of a tensor, or of one example without the batch."""

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integers that numbers of so many bytes can be looked at as, bit by bit."""


def require_held(name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose values are not all here.

    Raises:
        InputError: a DTensor, or a tensor on the meta device.
    """
    if is_distributed(tensor):
        raise InputError(
            f"{name} is a DTensor, spread over several devices (FSDP2, tensor parallel); expected "
            "the network as a whole: ez.save writes one that is sharded, ez.load reads it into one "
            "that is not"
        )
    if tensor.is_meta:
        raise InputError(
            f"{name} {tuple(tensor.shape)} is on the meta device and has no values; load or "
            "initialize the network first: model.to_empty(device=...)"
        )


def require_plain(name: str, tensor: Tensor) -> None:
    """Refuse a weight that is no dense tensor of real numbers of two bytes or more.

    Raises:
        InputError: that, by its name and what it is instead.

    Example:
        >>> import torch
        >>> require_plain("fc.weight", torch.zeros(2, 3))
        >>> require_plain("fc.weight", torch.zeros(2, 3, dtype=torch.complex64))
        Traceback (most recent call last):
        ...
        ellzero.errors.InputError: fc.weight is complex64; expected real numbers: float16, \
bfloat16, float32 or float64. Convert it, or leave it out with exclude=['fc.weight']
    """
    require_held(name, tensor)
    what = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided:
        what = f"{str(tensor.layout).removeprefix('torch.')} (a sparse layout)"
    elif tensor.dtype.is_floating_point and tensor.dtype.itemsize in INTEGERS:
        return
    raise InputError(
        f"{name} is {what}; expected real numbers: float16, bfloat16, float32 or float64. Convert "
        f"it, or leave it out with exclude=[{name!r}]"
    )


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; its module is not imported for that, for it is slow to."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
