"""The exponential moving average of the weights that a step trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ellzero.pruning import Masks
from ellzero.sharding import local, part_of


class Average:
    """An average of tensors that training changes: `a <- decay * a + (1 - decay) * w` a step.

    It begins with what the tensors are. Those in half precision are averaged in float32, where a
    step is not lost to rounding. The average of a sharded tensor is sharded as it is.

    Args:
        decay: in [0, 1); what counts are about the last `1 / (1 - decay)` steps.
        trained: the tensors, by name.

    Source:
        Polyak and Juditsky, SIAM J. Control Optim. 30 (1992) 838-855; the update is the one of
        torch.optim.swa_utils.

    Example:
        >>> w = torch.tensor([1.0, 0.0])
        >>> average = Average(0.75, {"w": w})
        >>> _ = w.mul_(5)
        >>> average.update()
        >>> average.tensors["w"]
        tensor([2., 0.])
    """

    def __init__(self, decay: float, trained: Mapping[str, Tensor]) -> None:
        self._trained = dict(trained)
        self._update = get_ema_multi_avg_fn(decay)
        self.tensors = {name: _wide(w).clone() for name, w in trained.items()}
        """The averages, by the names of what they are of."""

    def update(self) -> None:
        """Take in what the tensors are now."""
        now = [_wide(local(w)) for w in self._trained.values()]
        # it does not look at the count
        self._update([local(average) for average in self.tensors.values()], now, 0)

    @torch.no_grad()
    def put(self) -> None:
        """Set the tensors to their averages."""
        for name, w in self._trained.items():
            local(w).copy_(local(self.tensors[name]))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The tensors are their averages inside the block, and what they were after it."""
        before = [local(w).detach().clone() for w in self._trained.values()]
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for w, value in zip(self._trained.values(), before, strict=True):
                    local(w).copy_(value)

    @torch.no_grad()
    def prune(self, masks: Masks) -> None:
        """Set to zero what masks prune; it stays so while they hold the weights at zero."""
        names = {w: name for name, w in self._trained.items()}
        for weight, mask in masks.items():
            name = names.get(masks.weights[weight])
            if name is not None:  # a frozen one is not trained
                local(self.tensors[name]).masked_fill_(~local(mask), 0)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the averages of an earlier one of the same tensors, as whole tensors."""
        for name, average in self.tensors.items():
            local(average).copy_(local(part_of(tensors[name], average)))


def _wide(w: Tensor) -> Tensor:
    return w.detach().to(torch.promote_types(w.dtype, torch.float32))
