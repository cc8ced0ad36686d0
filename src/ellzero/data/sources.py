"""Sources: where batches come from: tensors, a Dataset, or what gives batch after batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
)

from ellzero.data.arrays import is_array
from ellzero.data.batch import Batch
from ellzero.data.entries import EXPECTED, Entries
from ellzero.data.share import Share, alike_on_all
from ellzero.errors import InputError

Examples = (
    tuple[Any, ...]
    | list[Any]
    | Mapping[str, Any]
    | Dataset[Any]
    | Iterable[Any]
    | Callable[[], Iterable[Any]]
)
"""What a part may be given as."""


class Source(ABC):
    """The examples of a part, in the form they were given in."""

    first: Batch
    """The first example, or batch of them."""

    @property
    @abstractmethod
    def examples(self) -> int | None:
        """How many there are; None where that is known after a pass."""

    @abstractmethod
    def batch_count(self, batch_size: int) -> int:
        """How many batches an epoch to train on has."""

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        shuffle: bool,
        share: Share | None = None,
    ) -> Iterator[Batch]:
        """The batches of one pass, or a share of each.

        Tensors are on the device, others where they come from.
        """

    def leaves_one_out(self, batch_size: int, *, shuffle: bool) -> bool:
        """Whether such a pass may lack an example."""
        return False

    def spread(self, count: int) -> Source:
        """At most so many examples, from all over; itself where there is no order."""
        return self


def source_of(name: str, examples: Examples, entries: Entries, workers: int) -> Source:
    """The source of a part's examples.

    Raises:
        InputError: what is no examples, or none at all; what can be read once only.
    """
    is_batches = isinstance(examples, list) and all(
        isinstance(batch, tuple | Mapping) for batch in examples
    )
    if isinstance(examples, tuple | list | Mapping) and not is_batches:
        whole = entries.batch(name, examples)
        if whole.weights is not None and len(whole.weights) and not bool(whole.weights.any()):
            raise InputError(f"{name} weights are all 0; expected some above it")
        return Tensors(name, whole)
    if is_array(examples) or isinstance(examples, str):
        raise InputError(f"{name} data is {type(examples).__name__}; {EXPECTED}")
    if isinstance(examples, Dataset) and not isinstance(examples, IterableDataset):
        return Indexed(name, examples, entries, workers)
    return Stream(name, examples, entries, workers)


class Tensors(Source):
    """All examples as tensors: moved to the device once, and cut into batches there."""

    def __init__(self, name: str, whole: Batch) -> None:
        if not whole.length:
            raise InputError(f"{name} data is empty; expected at least one example")
        self._name, self.whole = name, whole
        self.first = whole.each(lambda x: x[:1])

    @property
    def examples(self) -> int:
        return self.whole.length

    def batch_count(self, batch_size: int) -> int:
        return _batch_count(self.examples, batch_size)

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        shuffle: bool,
        share: Share | None = None,
    ) -> Iterator[Batch]:
        self.whole = self.whole.each(lambda x: x.to(device))
        if not shuffle:
            for start in range(0, self.examples, batch_size):
                part = slice(start, start + batch_size)
                batch = self.whole.each(lambda x, part=part: x[part])
                yield batch if share is None else share.cut(batch)
            return
        order = torch.randperm(self.examples).to(device)
        chunks = list(order.split(batch_size))
        if len(chunks) > self.batch_count(batch_size):
            chunks[-2:] = [torch.cat(chunks[-2:])]
        for chosen in chunks:
            mine = chosen if share is None else chosen[share.of(len(chosen))]
            # several times as fast as indexing, which serves any number of dimensions
            batch = self.whole.each(lambda x, mine=mine: x.index_select(0, mine))
            yield batch if share is None else replace(batch, counts=share.counts(len(chosen)))

    def spread(self, count: int) -> Source:
        chosen = _spread(count, self.examples)
        part = self.whole.each(lambda x: x.index_select(0, chosen.to(x.device)))
        return Tensors(self._name, part)


class Indexed(Source):
    """A `Dataset` with a length, read example by example."""

    def __init__(self, name: str, dataset: Dataset[Any], entries: Entries, workers: int) -> None:
        self._name, self._dataset = name, dataset
        self._entries, self._workers = entries, workers
        self.first = _first(name, DataLoader(dataset, 1), entries)

    @property
    def examples(self) -> int:
        return len(self._dataset)  # pyright: ignore[reportArgumentType]

    def batch_count(self, batch_size: int) -> int:
        return _batch_count(self.examples, batch_size)

    def leaves_one_out(self, batch_size: int, *, shuffle: bool) -> bool:
        return shuffle and self.examples > self.batch_count(batch_size) * batch_size

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        shuffle: bool,
        share: Share | None = None,
    ) -> Iterator[Batch]:
        dataset: Any = self._dataset
        sampler = BatchSampler(
            RandomSampler(dataset) if shuffle else SequentialSampler(dataset),
            batch_size,
            drop_last=self.leaves_one_out(batch_size, shuffle=shuffle),
        )
        loader = DataLoader(
            dataset,
            batch_sampler=sampler if share is None else _Shares(sampler, share),
            num_workers=self._workers,
            pin_memory=device.type == "cuda",  # so that copies need not be waited for
        )
        for index, given in enumerate(loader):
            batch = self._entries.batch(self._name, given)
            length = min(batch_size, self.examples - index * batch_size)
            yield batch if share is None else replace(batch, counts=share.counts(length))

    def spread(self, count: int) -> Source:
        part = Subset(self._dataset, _spread(count, self.examples).tolist())
        return Indexed(self._name, part, self._entries, self._workers)


class Stream(Source):
    """What gives its examples in an order of its own.

    An `IterableDataset` gives examples; an iterable, or a function that makes one anew, batches.
    """

    def __init__(self, name: str, examples: Any, entries: Entries, workers: int) -> None:
        if not callable(examples) and not isinstance(examples, Iterable):
            raise InputError(
                f"{name} data is {type(examples).__name__}; expected a pair of tensors, a "
                "dictionary of them, a Dataset, an iterable of batches such as a DataLoader, or a "
                "function that makes one"
            )
        if isinstance(getattr(examples, "sampler", None), DistributedSampler):
            raise InputError(
                f"{name} data has a DistributedSampler; leave it out, for each process takes its "
                "share of every batch by itself"
            )
        if isinstance(examples, Iterator):
            raise InputError(
                f"{name} data is {type(examples).__name__}, which can be read once only; give a "
                "function that makes it anew for each epoch"
            )
        self._name = name
        self._given: Any = examples
        self._entries, self._workers = entries, workers
        self._is_examples = isinstance(examples, IterableDataset)
        self._counted: dict[int, int] = {}
        self._last: Iterator[Any] | None = None
        self.first = _first(name, self._anew(1, workers=0), entries)

    @property
    def examples(self) -> None:
        return None

    def leaves_one_out(self, batch_size: int, *, shuffle: bool) -> bool:
        return shuffle and self._is_examples

    def batch_count(self, batch_size: int) -> int:
        """Without a length it is counted, by one pass."""
        try:
            length = len(self._given)
        except TypeError:
            if batch_size not in self._counted:
                with torch.random.fork_rng(devices=[]):
                    batches = self.batches(batch_size, torch.device("cpu"), shuffle=True)
                    self._counted[batch_size] = sum(1 for _ in batches)
            return self._counted[batch_size]
        return _batch_count(length, batch_size) if self._is_examples else length

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        shuffle: bool,
        share: Share | None = None,
    ) -> Iterator[Batch]:
        loader = self._anew(batch_size, self._workers, pin_memory=device.type == "cuda")
        batches = (self._entries.batch(self._name, batch) for batch in loader)
        if shuffle and self._is_examples:
            batches = _without_single_last(batches)
        if share is not None:
            batches = map(share.cut, alike_on_all(self._name, batches))
        count = self._counted.get(batch_size) if shuffle else None
        for index, batch in enumerate(batches):
            if index == count:  # the schedules would go beyond their end
                raise InputError(
                    f"{self._name} data gave {count} batches in a first pass, and more in another; "
                    "give steps_per_epoch"
                )
            yield batch

    def _anew(self, batch_size: int, workers: int, **options: Any) -> Iterable[Any]:
        if self._is_examples:
            return DataLoader(self._given, batch_size, num_workers=workers, **options)
        given: Any = self._given() if callable(self._given) else self._given
        if isinstance(given, Iterator):
            if given is self._last:
                raise InputError(
                    f"{self._name} data's function gave the same {type(given).__name__} again, "
                    "which can be read once only; let it make a new one whenever it is called"
                )
            self._last = given
        return given


class _Shares(Sampler[list[int]]):
    """The indices that are this process's of each batch that a sampler gives."""

    def __init__(self, batches: BatchSampler, share: Share) -> None:
        self._batches, self._share = batches, share

    def __iter__(self) -> Iterator[list[int]]:
        return (chosen[self._share.of(len(chosen))] for chosen in self._batches)


def _batch_count(examples: int, batch_size: int) -> int:
    """Batches of a training epoch: a last one of a single example is none of its own.

    Batch normalization cannot be trained on one example.
    """
    full, rest = divmod(examples, batch_size)
    return full if rest == 1 and full else full + (rest > 0)


def _without_single_last(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, but a last one of a single example after others."""
    held = next(batches, None)
    is_first = True
    for batch in batches:
        assert held is not None
        yield held
        held, is_first = batch, False
    if held is not None and (is_first or held.length > 1):
        yield held


def _spread(count: int, examples: int) -> Tensor:
    return torch.linspace(0, examples - 1, min(count, examples)).round().long()


def _first(name: str, loader: Iterable[Any], entries: Entries) -> Batch:
    try:
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed from the caller's generator
            first = entries.batch(name, next(iter(loader)))
    except (StopIteration, IndexError):
        raise InputError(f"{name} data is empty; expected at least one example") from None
    return first
