"""A batch of examples: inputs, targets, and what each example weighs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ellzero.data.inputs import all_of, of_each


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of a data set; it unpacks into its inputs and its targets.

    Args:
        inputs: what the network is called with, `Inputs`.
        targets: what its outputs are compared with: tensors in the same forms.
        weights: what each example counts in means, float32 (N,), >= 0; None: all the same.
        counts: whether its examples count here, or at another process that has them, too.

    Example:
        >>> import torch
        >>> batch = Batch(torch.zeros(3, 2), torch.arange(3))
        >>> inputs, targets = batch
        >>> len(targets) == batch.length
        True
    """

    inputs: Any
    targets: Any
    weights: Tensor | None = None
    counts: bool = True

    def __iter__(self) -> Iterator[Any]:
        yield self.inputs
        yield self.targets

    @property
    def length(self) -> int:
        """How many examples it has."""
        return len(all_of(self.inputs)[0])

    def each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with what a function makes of each of its tensors."""
        weights = None if self.weights is None else function(self.weights)
        inputs, targets = of_each(function, self.inputs), of_each(function, self.targets)
        return replace(self, inputs=inputs, targets=targets, weights=weights)
