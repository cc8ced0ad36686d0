"""Tensors of what users have: tensors, numpy arrays, pandas frames and series, lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import InputError

NUMBERS = "biufc"
"""Kinds of numpy's dtypes: flags, whole, floating and complex numbers."""


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
        if values.layout is not torch.strided:
            raise InputError(f"{where} are {values.layout}; give them dense: to_dense()")
        return values
    if callable(getattr(values, "toarray", None)):
        raise InputError(f"{where} are {type(values).__name__}; give them dense: toarray()")
    try:
        if not is_array(values) and not _is_text(values):
            return torch.as_tensor(values)
        array = _array(values)
        if array.dtype.kind not in NUMBERS:
            remedy = "make codes or categories of 0 and 1 of them, or leave them out"
            if where.endswith("targets"):
                remedy = (
                    "for classes give their numbers, np.unique(targets, return_inverse=True)[1]"
                )
            raise InputError(
                f"{where} are {array.dtype}{_columns(values)}; expected numbers: {remedy}"
            )
        if array.dtype.kind == "f" and array.dtype.itemsize > 4:
            array = array.astype(np.float32)
        # torch takes no array that must not be written to, as those of pandas are
        return torch.as_tensor(array if array.flags.writeable else array.copy())
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{where} cannot be made into tensors: {error}") from None


def _array(values: Any) -> np.ndarray:
    """The values as an array; a frame by its columns, so that flags beside numbers are numbers."""
    columns = _columns_of(values)
    if columns and all(column.dtype.kind in NUMBERS for _, column in columns):
        return np.column_stack([column for _, column in columns])
    to_numpy = getattr(values, "to_numpy", None)
    return np.asarray(to_numpy() if callable(to_numpy) else values)


def _is_text(values: Any) -> bool:
    return isinstance(values, list | tuple) and any(isinstance(x, str) for x in values)


def is_array(values: Any) -> bool:
    """Whether values are a tensor, an array or a frame, with a dimension for the examples."""
    if isinstance(values, Tensor | np.ndarray):
        return values.ndim > 0
    return callable(getattr(values, "to_numpy", None))


def _columns(frame: Any) -> str:
    """The columns of a frame that are no numbers; "" of what has none."""
    wrong = [name for name, column in _columns_of(frame) if column.dtype.kind not in NUMBERS]
    return f" (column{'s' * (len(wrong) > 1)} {', '.join(wrong)})" if wrong else ""


def _columns_of(frame: Any) -> list[tuple[str, np.ndarray]]:
    """The columns of a pandas frame with their names; none of anything else."""
    if not hasattr(frame, "columns") or not hasattr(frame, "iloc"):
        return []
    return [(str(n), frame.iloc[:, i].to_numpy()) for i, n in enumerate(frame.columns)]


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
