"""Tensors of what users have: tensors, numpy arrays, pandas frames and series, lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import InputError


def as_tensor(where: str, values: Any) -> Tensor:
    """The values as a tensor; float64 of an array or a frame becomes float32, as networks have it.

    Args:
        where: what they are, for the message.
        values: a tensor, which stays as it is; an array; whatever has `to_numpy`, such as a frame
            or a series; a list of numbers.

    Raises:
        InputError: values that are no numbers, by the names of their columns.

    Example:
        >>> import numpy as np
        >>> as_tensor("train inputs", np.zeros((2, 3))).dtype
        torch.float32
    """
    if isinstance(values, Tensor):
        return values
    try:
        to_numpy = getattr(values, "to_numpy", None)
        if not callable(to_numpy) and not isinstance(values, np.ndarray):
            return torch.as_tensor(values)
        array = np.asarray(to_numpy() if callable(to_numpy) else values)
        if array.dtype.kind not in "biufc":
            raise InputError(
                f"{where} are {array.dtype}{_columns(values)}; expected numbers: make codes or "
                "categories of 0 and 1 of them, or leave them out"
            )
        if array.dtype.kind == "f" and array.dtype.itemsize > 4:
            array = array.astype(np.float32)
        # torch takes no array that must not be written to, as those of pandas are
        return torch.as_tensor(array if array.flags.writeable else array.copy())
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{where} cannot be made into tensors: {error}") from None


def is_array(values: Any) -> bool:
    """Whether values are a tensor, an array or a frame, with a dimension for the examples."""
    if isinstance(values, Tensor | np.ndarray):
        return values.ndim > 0
    return callable(getattr(values, "to_numpy", None))


def _columns(frame: Any) -> str:
    """The columns of a frame that are no numbers; "" of what has none."""
    names = getattr(frame, "columns", None)
    if names is None:
        return ""
    wrong = [str(n) for n in names if frame[n].to_numpy().dtype.kind not in "biufc"]
    return f" (column{'s' * (len(wrong) > 1)} {', '.join(wrong)})"


def require_same_columns(**parts: Any) -> None:
    """Make sure that pandas frames of inputs have the same columns in the same order.

    Raises:
        InputError: a part has others than the first one.
    """
    named = {name: columns for name, part in parts.items() if (columns := _column_names(part))}
    for name, columns in named.items():
        first, expected = next(iter(named.items()))
        if columns != expected:
            raise InputError(
                f"the columns of {name} are {', '.join(columns)}; expected those of {first} in the "
                f"same order, {', '.join(expected)}"
            )


def _column_names(part: Any) -> list[str]:
    inputs = part[0] if isinstance(part, tuple) and part else None
    return [str(name) for name in getattr(inputs, "columns", ())]
