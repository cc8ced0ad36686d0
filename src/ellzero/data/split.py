"""Cutting labelled data into disjoint parts."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ellzero.errors import InputError

SPLIT_SEED = 0
"""Of parts that a data set does not come with: every run of every seed has the same ones."""


def stratified(labels: np.ndarray, sizes: Sequence[int], seed: int) -> tuple[np.ndarray, ...]:
    """Indices of disjoint random parts in which each class has its share.

    Parts are filled in order. Each takes from what earlier parts left, every class in proportion
    to its number there, rounded by largest remainder (ties: the smaller class first); so a class's
    number in a part is within one of its exact share.

    Args:
        labels: class of each example, integers (N,).
        sizes: number of examples in each part; together at most N.
        seed: the same seed gives the same parts.

    Returns:
        For each part its indices in increasing order, int64 (size,).

    Raises:
        InputError: labels are not a vector of integers, or the sizes are negative or too large.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> train, test = stratified(labels, (3, 3), seed=0)
        >>> labels[train], labels[test]
        (array([0, 0, 1]), array([0, 0, 1]))
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"labels are {labels.dtype} of shape {labels.shape}; expected a vector of integers"
        )
    if any(size < 0 for size in sizes) or sum(sizes) > len(labels):
        raise InputError(
            f"sizes are {tuple(sizes)}; expected numbers >= 0 "
            f"that add up to at most the {len(labels)} examples"
        )
    generator = np.random.default_rng(seed)
    _, counts = np.unique(labels, return_counts=True)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts))[:-1]
    remaining = [generator.permutation(indices) for indices in by_class]

    parts = []
    for size in sizes:
        shares = _shares(np.array([len(indices) for indices in remaining], np.int64), size)
        taken = [indices[:share] for indices, share in zip(remaining, shares, strict=True)]
        remaining = [indices[share:] for indices, share in zip(remaining, shares, strict=True)]
        parts.append(np.sort(np.concatenate([np.empty(0, np.int64), *taken])))
    return tuple(parts)


def require_validation(validation: int, examples: int) -> None:
    """Make sure that a number of validation examples leaves others to train on.

    Raises:
        InputError: it is no whole number from 1 to one below `examples`.
    """
    if type(validation) is not int or not 0 < validation < examples:
        raise InputError(f"validation is {validation!r}; expected 1 to {examples - 1} examples")


def train_and_validation(
    inputs: Tensor, labels: Tensor, validation: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Inputs and labels to train on, and as many for validation: stratified, always the same."""
    sizes = (len(labels) - validation, validation)
    train, held_out = stratified(labels.numpy(), sizes, SPLIT_SEED)
    return (inputs[train], labels[train]), (inputs[held_out], labels[held_out])


def held_out(
    labels: np.ndarray, fractions: Mapping[str, float], seed: int
) -> tuple[np.ndarray, ...]:
    """Indices of disjoint random parts: first those that are left, then one for each fraction.

    Each part is stratified, as `stratified` has it; a fraction above 0 takes one example at least.

    Args:
        labels: class of each example, integers (N,); all alike where there are no classes.
        fractions: name of a part -> its fraction of all examples, from 0 to below 1.
        seed: the same seed gives the same parts.

    Raises:
        InputError: a fraction out of range; nothing is left for training.

    Example:
        >>> [len(part) for part in held_out(np.zeros(10, int), {"validation": 0.2, "test": 0.1}, 0)]
        [7, 2, 1]
    """
    for name, fraction in fractions.items():
        if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
            raise InputError(f"{name} is {fraction!r}; expected a fraction, from 0 to below 1")
    sizes = [max(round(len(labels) * f), 1) if f else 0 for f in fractions.values()]
    left = len(labels) - sum(sizes)
    if left < 1:
        taken = " and ".join(f"{name} = {fraction}" for name, fraction in fractions.items())
        raise InputError(f"of {len(labels)} examples {taken} leave none for training")
    *parts, train = stratified(labels, [*sizes, left], seed)
    return (train, *parts)


def _shares(counts: np.ndarray, size: int) -> np.ndarray:
    """`size` divided in proportion to `counts` (C,) by largest remainder; never above a count."""
    if size == 0:
        return np.zeros_like(counts)
    total = counts.sum()
    shares, remainders = counts * size // total, counts * size % total
    largest = np.argsort(-remainders, kind="stable")
    shares[largest[: size - shares.sum()]] += 1
    return shares
