"""Remedies: what to do about inputs that a network cannot take, where that can be guessed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ellzero.data.batch import Batch
from ellzero.data.inputs import all_of


def remedy(model: nn.Module, batch: Batch, error: Exception) -> str:
    """What to do, as the end of an error message; "" where nothing is likely.

    Args:
        model: the network.
        batch: one example as the network got it, its targets as they were given.
        error: what the network made of it.

    Example:
        >>> batch = Batch(torch.zeros(1, 4, dtype=torch.float64), torch.zeros(1))
        >>> remedy(nn.Linear(4, 2), batch, RuntimeError("mat1 and mat2 must have the same dtype"))
        '; the weights are torch.float32: give inputs.to(torch.float32)'
    """
    inputs, targets = all_of(batch.inputs)[0], all_of(batch.targets)[0]
    found = _swapped(inputs, targets) or _of_dtype(model, inputs, error) or _of_shape(model, inputs)
    return f"; {found}" if found else ""


def _swapped(inputs: Tensor, targets: Tensor) -> str:
    are_labels = inputs.ndim == 1 and not inputs.is_floating_point()
    if are_labels and targets.ndim > 1 and targets.is_floating_point():
        return "inputs and targets seem to be swapped: expected (inputs, targets)"
    return ""


def _of_dtype(model: nn.Module, inputs: Tensor, error: Exception) -> str:
    told = str(error)
    if "type" not in told or inputs.is_complex():
        return ""
    if "Long" in told and inputs.is_floating_point():
        return "the network looks them up by their numbers: give inputs.long()"
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = next(dtypes, inputs.dtype)
    if dtype == inputs.dtype:
        return ""
    scaled = ", or preprocess=ez.Preprocess(1 / 255)" if inputs.dtype == torch.uint8 else ""
    return f"the weights are {dtype}: give inputs.to({dtype}){scaled}"


def _of_shape(model: nn.Module, inputs: Tensor) -> str:
    convolution = next((m for m in model.modules() if isinstance(m, _ConvNd)), None)
    if convolution is not None:
        dimensions, channels = convolution.weight.ndim, convolution.in_channels
        if inputs.ndim == dimensions - 1:
            return "the dimension of the channels seems to be missing: give inputs.unsqueeze(1)"
        if inputs.ndim == dimensions and inputs.shape[1] != channels == inputs.shape[-1]:
            return "channels come before height and width: give inputs.movedim(-1, 1)"
        return ""
    linear = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
    if linear is not None and inputs.ndim > 2 and linear.in_features == math.prod(inputs.shape[1:]):
        return "let the network begin with nn.Flatten()"
    return ""
