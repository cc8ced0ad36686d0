"""Shares: which examples of a batch each of several processes takes, so that each counts once."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero import processes
from ellzero.data.batch import Batch
from ellzero.data.inputs import all_of
from ellzero.errors import InputError


@dataclass(frozen=True)
class Share:
    """The part of each batch that is this process's.

    All processes know the same batches; examples are dealt out in runs, as equal as they can be.
    Where there are too few for all, the last processes take what rank 0 takes, without counting it:
    they have to compute, for each step of the optimizer waits for all.

    Args:
        rank: the number of this process, from 0.
        ranks: how many there are.
        least: examples that a process computes at once at least, if the batch has as many.

    Example:
        >>> [Share(rank, 2).of(5) for rank in range(2)]
        [slice(0, 3, None), slice(3, 5, None)]
        >>> Share(1, 2, least=2).of(3), Share(1, 2, least=2).counts(3)
        (slice(0, 3, None), False)
    """

    rank: int
    ranks: int
    least: int = 1

    @classmethod
    def here(cls, *, least: int) -> Share | None:
        """The share of this process; None where it is the only one."""
        ranks = processes.world_size()
        return cls(processes.rank(), ranks, least) if ranks > 1 else None

    def of(self, length: int) -> slice:
        """Which examples of a batch of so many this process takes."""
        working = self._working(length)
        index = self.rank if self.rank < working else 0
        each, rest = divmod(length, working)
        start = index * each + min(index, rest)
        return slice(start, start + each + (index < rest))

    def counts(self, length: int) -> bool:
        """Whether they count, and not at another process."""
        return self.rank < self._working(length)

    def _working(self, length: int) -> int:
        return min(self.ranks, max(1, length // self.least))

    def cut(self, batch: Batch) -> Batch:
        """This process's examples of a batch."""
        part = self.of(batch.length)
        return replace(batch.each(lambda x: x[part]), counts=self.counts(batch.length))


def drawn_alike(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches for which every process draws the same random numbers, whatever it draws in between.

    All begin in the same state of the generators of torch (the CPU's), numpy and Python. What a
    process draws between two batches, for dropout or augmentation, is its own.
    """
    common = _states()
    seed = (torch.initial_seed() + 1 + processes.rank()) % 2**32
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    while True:
        own = _states()
        _set_states(common)
        batch = next(batches, None)
        common = _states()
        _set_states(own)
        if batch is None:
            return
        yield batch


def alike_on_all(name: str, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, of which all processes have to have the same first one, and as many.

    Raises:
        InputError: they have not.
    """
    for index, batch in enumerate(batches):
        tensors = [] if index else [*all_of(batch.inputs), *all_of(batch.targets)]
        require_alike_on_all(name, batch.length, tensors)
        yield batch
    require_alike_on_all(name, 0, [])  # or the others would wait for a next one


def require_alike_on_all(name: str, length: int, tensors: Iterable[Tensor]) -> None:
    """Refuse data that differ between the processes, all of which have to call this.

    Args:
        name: of the part of the data.
        length: how many examples there are.
        tensors: some of them.

    Raises:
        InputError: another length, or another sum of the tensors, in another process.
    """
    total = sum(float(x.sum(dtype=torch.float64).nan_to_num()) for x in tensors)
    figures = torch.tensor([length, total], dtype=torch.float64)
    least, most = processes.extremes(figures.to(processes.communication_device()))
    if not torch.equal(least, most):
        raise InputError(
            f"{name} data gave other examples in one process than in another; expected the same "
            "ones, of which each process takes its share: leave out a DistributedSampler, a split "
            "by rank, and a seed that differs between processes"
        )


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _set_states(states: tuple[Any, ...]) -> None:
    torch_state, numpy_state, python_state = states
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)
    random.setstate(python_state)
