"""What a network gives: a tensor, or an object or a dictionary that holds its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ellzero.errors import InputError


def logits_of(outputs: Any) -> Tensor:
    """The tensor that is compared with the targets: the outputs themselves, or their `logits`.

    Raises:
        InputError: there is no such tensor.

    Example:
        >>> import torch
        >>> logits_of({"logits": torch.zeros(2, 3), "states": torch.zeros(2, 8)}).shape
        torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = find(outputs, "logits")
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the network gives {type(outputs).__name__} without logits, a tensor; give a loss and "
            "a score of your own"
        )
    return logits


def loss_of(outputs: Any) -> Tensor:
    """The loss that a network computed itself, a 0-d tensor.

    Raises:
        InputError: there is no such tensor.
    """
    loss = None if isinstance(outputs, Tensor) else find(outputs, "loss")
    if not isinstance(loss, Tensor) or loss.ndim:
        raise InputError(
            f"loss is 'model', but the network gives {type(outputs).__name__} without a loss, a "
            "0-d tensor, when it is called with its targets"
        )
    return loss


def find(outputs: Any, name: str) -> Any:
    """A part of the outputs by its name; None where there is none."""
    if isinstance(outputs, Mapping):
        return outputs.get(name)
    return getattr(outputs, name, None)


def in_float32(outputs: Any) -> Any:
    """The outputs with every floating tensor in full precision.

    Of an object those are changed that torch's pytrees know: tuples, dictionaries, and what their
    library has registered.
    """
    if isinstance(outputs, Tensor):
        return outputs.float()
    from torch.utils._pytree import tree_map_only  # slow to import

    return tree_map_only(Tensor, lambda x: x.float() if x.is_floating_point() else x, outputs)
