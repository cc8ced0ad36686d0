"""A part of a data set: tensors, a Dataset or an iterable, as checked and counted batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ellzero.data.batch import Batch
from ellzero.data.inputs import Inputs, all_of, of_each, of_first
from ellzero.data.tally import NOTHING, Tally
from ellzero.errors import InputError

Examples = tuple[Inputs, Tensor] | Dataset[Any] | Iterable[Any]


class Part:
    """One part of a data set, as batches on a device; made by `Data`."""

    def __init__(
        self,
        name: str,
        examples: Examples,
        preprocess: Callable[[Tensor], Tensor] | None,
        workers: int,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.name = name
        self._augment = augment
        self._workers = workers
        self._preprocess = preprocess
        self._label_limit: int | None = None
        self._tally: Tally | None = None
        self._all_but_one: Tally | None = None
        batches = isinstance(examples, list) and all(isinstance(b, tuple) for b in examples)
        if isinstance(examples, tuple | list) and not batches:
            examples = _checked_pair(name, examples)
            first = examples
        else:
            first = _first_batch(name, examples)
        self._examples: Examples = examples
        self.has_labels = not first[1].is_floating_point()
        """Whether the targets are class labels (integers)."""
        self.example: tuple[Any, Tensor] = (of_each(lambda x: x[:1], first[0]), first[1][:1])
        """One example's raw inputs and its target, as a batch of one."""

    def limit_labels(self, classes: int) -> None:
        """Require labels in 0..classes-1, at once or (Dataset, iterable) batch by batch.

        Raises:
            InputError: a label out of range.
        """
        self._label_limit = classes
        if isinstance(self._examples, tuple):
            self._check_labels(self._examples[1])

    def batch_count(self, batch_size: int) -> int:
        """How many batches an epoch has."""
        if isinstance(self._examples, tuple | Dataset):
            return _batch_count(self._count(), batch_size)
        return len(self._examples)  # pyright: ignore[reportArgumentType]

    @property
    def examples(self) -> int | None:
        """How many examples there are; of an iterable known after the first pass."""
        if isinstance(self._examples, tuple | Dataset):
            return self._count()
        return None if self._tally is None else self._tally.examples

    @property
    def tally(self) -> Tally | None:
        """What the targets are; of no pair known after a whole pass, or two that leave one out."""
        if self._tally is None and isinstance(self._examples, tuple):
            self._tally = Tally.of(self._examples[1])
        return self._tally

    def spread(self, count: int) -> Part:
        """At most so many examples, from all over the part, whose order may be that of its classes.

        Of an iterable, which has no order, the part itself.
        """
        if not isinstance(self._examples, tuple | Dataset):
            return self
        chosen = torch.linspace(0, self._count() - 1, min(count, self._count())).round().long()
        if isinstance(self._examples, tuple):
            inputs, targets = self._examples
            taken = partial(_taken, chosen.to(targets.device))
            examples: Examples = (of_each(taken, inputs), taken(targets))
        else:
            examples = Subset(self._examples, chosen.tolist())
        return Part(self.name, examples, self._preprocess, self._workers)

    def _count(self) -> int:
        examples = self._examples[1] if isinstance(self._examples, tuple) else self._examples
        return len(examples)  # pyright: ignore[reportArgumentType]

    def batches(
        self, batch_size: int, device: torch.device, *, shuffle: bool = False
    ) -> Iterator[Batch]:
        """Preprocessed batches on a device, each example once.

        Where a shuffled epoch would end in a batch of a single example, on which batch
        normalization cannot be trained, that one joins the batch before it (tensors) or is left out
        (Dataset). A shuffled epoch is one to train on: its inputs are augmented. Shuffling draws
        from torch's global generator, which the training reseeds every epoch.
        """
        if isinstance(self._examples, tuple):
            inputs, targets = self._examples
            inputs, targets = of_each(lambda x: x.to(device), inputs), targets.to(device)
            self._examples = (inputs, targets)  # moved to the device once
            batches = _slices(inputs, targets, batch_size, shuffle)
        elif isinstance(self._examples, Dataset):
            alone = shuffle and self._count() > _batch_count(self._count(), batch_size) * batch_size
            loader = DataLoader(
                self._examples,
                batch_size,
                shuffle=shuffle,
                drop_last=alone,
                num_workers=self._workers,
                pin_memory=device.type == "cuda",  # so that copies need not be waited for
            )
            batches = self._checked(loader, whole=not alone)
        else:
            batches = self._checked(self._examples, whole=True)
        for inputs, targets in batches:
            inputs = of_each(lambda x: x.to(device, non_blocking=True), inputs)
            if shuffle and self._augment is not None:
                inputs = of_first(partial(self._augmented, augment=self._augment), inputs)
            if self._preprocess is not None:
                inputs = of_first(self._preprocess, inputs)
            yield Batch(inputs, targets.to(device, non_blocking=True))

    def _augmented(self, inputs: Tensor, augment: Callable[[Tensor], Tensor]) -> Tensor:
        changed = augment(inputs)
        if not isinstance(changed, Tensor) or len(changed) != len(inputs):
            kind = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise InputError(
                f"augment made {kind} of {self.name} inputs of {tuple(inputs.shape)}; "
                "expected a tensor of as many examples"
            )
        return changed

    def targets(self, batch_size: int, device: torch.device) -> Iterator[Any]:
        """Targets in batches; the inputs of a pair of tensors are not touched for them."""
        if isinstance(self._examples, tuple):
            yield from self._examples[1].split(batch_size)
        else:
            yield from (targets for _, targets in self.batches(batch_size, device))

    def _checked(self, batches: Iterable[Any], *, whole: bool) -> Iterator[tuple[Inputs, Tensor]]:
        """Batches of what is no pair, which was checked when it was given; counted, too."""
        tally = NOTHING if self._tally is None else None
        for batch, targets in batches:
            inputs = _joined(batch)
            self._check_labels(targets)
            _require_finite(self.name, inputs, targets)
            if tally is not None:  # a device would have to be waited for
                tally = tally + Tally.of(targets) if targets.is_cpu else None
            yield inputs, targets
        if tally is None:
            return
        if not whole and self._all_but_one is None:
            self._all_but_one = tally
        else:  # a second pass leaves another example out
            self._tally = tally if whole or self._all_but_one is None else self._all_but_one | tally

    def _check_labels(self, targets: Tensor) -> None:
        if self._label_limit is None or not targets.numel():
            return
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= self._label_limit:
            raise InputError(
                f"{self.name} labels run from {low} to {high}; "
                f"expected 0 to {self._label_limit - 1}, one per class"
            )


def _batch_count(examples: int, batch_size: int) -> int:
    """Batches of a training epoch: a last one of a single example is none of its own.

    Batch normalization cannot be trained on one example.
    """
    full, rest = divmod(examples, batch_size)
    return full if rest == 1 and full else full + (rest > 0)


def _slices(
    inputs: Inputs, targets: Tensor, batch_size: int, shuffle: bool
) -> Iterator[tuple[Inputs, Tensor]]:
    if shuffle:
        order = torch.randperm(len(targets)).to(targets.device)
        chunks = list(order.split(batch_size))
        if len(chunks) > _batch_count(len(order), batch_size):
            chunks[-2:] = [torch.cat(chunks[-2:])]
        for chosen in chunks:
            # several times as fast as indexing, which serves any number of dimensions
            yield of_each(partial(_taken, chosen), inputs), targets.index_select(0, chosen)
    else:
        for start in range(0, len(targets), batch_size):
            part = slice(start, start + batch_size)
            yield of_each(lambda x, part=part: x[part], inputs), targets[part]


def _taken(chosen: Tensor, x: Tensor) -> Tensor:
    return x.index_select(0, chosen)


def _checked_pair(name: str, examples: Sequence[Any]) -> tuple[Inputs, Tensor]:
    if len(examples) != 2:
        raise InputError(f"{name} data has {len(examples)} parts; expected (inputs, targets)")
    try:
        inputs, targets = _joined(examples[0]), torch.as_tensor(examples[1])
        inputs = inputs if isinstance(inputs, tuple) else torch.as_tensor(inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name} data cannot be made into tensors: {error}") from None
    for x in all_of(inputs):
        if len(x) != len(targets):
            raise InputError(f"{name} data has {len(x)} inputs and {len(targets)} targets")
    if not len(targets):
        raise InputError(f"{name} data is empty; expected at least one example")
    _require_finite(name, inputs, targets)
    return inputs, targets


def _joined(inputs: Any) -> Any:
    """Several inputs as a tuple, whether a list holds them or a tuple; what is else as it is."""
    several = isinstance(inputs, tuple | list) and len(inputs) > 0
    is_batches = several and all(isinstance(x, Tensor) and x.ndim for x in inputs)
    return tuple(inputs) if is_batches else inputs


def _first_batch(name: str, examples: Any) -> tuple[Inputs, Tensor]:
    loader = DataLoader(examples, 1) if isinstance(examples, Dataset) else examples
    try:
        len(loader)
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed from the caller's generator
            batch = next(iter(loader))
    except TypeError:
        raise InputError(
            f"{name} data is {type(examples).__name__}; expected a pair of tensors, a Dataset, or "
            "an iterable of batches with a length, such as a DataLoader"
        ) from None
    except (StopIteration, IndexError):
        raise InputError(f"{name} data is empty; expected at least one example") from None
    inputs: Any = batch
    targets: Any = None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        inputs, targets = _joined(batch[0]), batch[1]
    if not all(isinstance(tensor, Tensor) for tensor in (*all_of(inputs), targets)):
        raise InputError(
            f"a batch of the {name} data is {type(batch).__name__}; expected (inputs, targets), "
            "both tensors; of a network with several inputs a tuple of them"
        )
    _require_finite(name, inputs, targets)
    return inputs, targets


def _require_finite(name: str, inputs: Inputs, targets: Tensor) -> None:
    for what, tensor in (*(("inputs", x) for x in all_of(inputs)), ("targets", targets)):
        # the sum is NaN or inf as soon as one entry is, and takes no memory of the data's size
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise InputError(f"{name} {what} hold NaN or inf; clean or drop those examples")
