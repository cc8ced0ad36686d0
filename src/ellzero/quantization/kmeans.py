"""k-means in one dimension: the values of a weight in few clusters, the same ones every time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

STEPS = 1000  # of Lloyd's algorithm; a few dozen are the rule, more bring next to nothing


def kmeans(values: Tensor, count: int) -> Tensor:
    """Each value replaced by the mean of its cluster; clusters of least squared error, nearly.

    Clusters begin as one. Again and again the one with the largest squared error is split at its
    mean, and all bounds move by Lloyd's algorithm until they stand still. In one dimension clusters
    are intervals of the sorted values, so prefix sums give every mean: a step takes
    O(k log n), however many values there are.

    Args:
        values: finite, of any floating dtype and shape.
        count: how many clusters at most, >= 1; with no more distinct values than that nothing
            changes.

    Returns:
        float64, of the shape of `values`, on the CPU.

    Example:
        >>> kmeans(torch.tensor([1.0, 9.0, 1.5, 8.0, 2.0]), 2)
        tensor([1.5000, 8.5000, 1.5000, 8.5000, 1.5000], dtype=torch.float64)
    """
    flat = values.detach().double().cpu().numpy().reshape(-1)
    points, where, times = np.unique(flat, return_inverse=True, return_counts=True)
    if len(points) > count:
        points = _clustered(points, times, count)
    return torch.from_numpy(points[where]).view(values.shape)


def _clustered(points: np.ndarray, times: np.ndarray, count: int) -> np.ndarray:
    """Sorted distinct points, each replaced by its cluster's mean."""
    # sums of 1, x and x^2 over the points before each
    sums = [np.concatenate([[0.0], np.cumsum(times * points**power)]) for power in range(3)]
    bounds = np.array([0, len(points)])
    while len(bounds) <= count:
        number, total, squares = (np.diff(s[bounds]) for s in sums)
        error = np.where(np.diff(bounds) > 1, squares - total**2 / number, -np.inf)
        worst = int(error.argmax())
        cut = np.searchsorted(points, total[worst] / number[worst], side="right")
        # equal but for rounding, the mean may lie outside its points
        cut = np.clip(cut, bounds[worst] + 1, bounds[worst + 1] - 1)
        bounds = _settled(np.insert(bounds, worst + 1, cut), points, sums)
    # summed anew, for differences of prefix sums lose tiny values beside large ones
    total, number = (np.add.reduceat(x, bounds[:-1]) for x in (points * times, times))
    return np.repeat(total / number, np.diff(bounds))


def _settled(bounds: np.ndarray, points: np.ndarray, sums: list[np.ndarray]) -> np.ndarray:
    """Lloyd's algorithm: bounds halfway between the means, until they stand still."""
    for _ in range(STEPS):
        means = np.diff(sums[1][bounds]) / np.diff(sums[0][bounds])
        moved = bounds.copy()
        moved[1:-1] = np.searchsorted(points, (means[1:] + means[:-1]) / 2, side="right")
        if (moved == bounds).all() or (np.diff(moved) < 1).any():  # or a cluster would be empty
            break
        bounds = moved
    return bounds
