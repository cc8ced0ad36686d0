"""Which test examples a run's networks got wrong, as the run wrote it down."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ellzero.errors import InputError
from ellzero.files import read_tensors
from ellzero.run_folder import ANSWERS


def wrong_answers(folder: Path, who: Literal["compressed", "reference"]) -> np.ndarray | None:
    """Whether each answer on test data is wrong, bool (answers,); None where no file tells.

    An example has one answer, or one for each of its labels (segmentation).
    """
    try:
        answers, _ = read_tensors(folder / ANSWERS)
    except InputError:
        return None
    right = answers.get(who)
    if right is None or right.dtype != torch.bool or right.ndim != 1 or not right.numel():
        return None
    return ~right.numpy()


def more_wrong(these: np.ndarray, than: np.ndarray) -> tuple[float, float]:
    """By how many percentage points more of these answers are wrong, and its standard error.

    The error is that of the paired difference, and at least one answer, 100 / n: networks that
    agree on all of n may differ on the next one.

    Example:
        >>> more_wrong(np.array([True, True, False, False]), np.array([True, False, False, False]))
        (25.0, 25.0)
    """
    difference = 100 * (these.astype(float) - than)
    count = len(difference)
    error = max(float(difference.std()) / math.sqrt(count), 100 / count)
    return float(difference.mean()), error
