"""A part of a data set: its examples as checked and counted batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ellzero.data.batch import Batch
from ellzero.data.inputs import all_of, of_first, require_alike
from ellzero.data.share import Share, drawn_alike, require_alike_on_all
from ellzero.data.sources import Source, Tensors
from ellzero.data.tally import NOTHING, Tally
from ellzero.errors import InputError

Function = Callable[[Tensor], Tensor]


class Part:
    """One part of a data set, as batches on a device; made by `Data`.

    Args:
        name: train, validation or test.
        source: where its batches come from.
        preprocess: what turns raw inputs into those of the network.
        augment: what changes the raw inputs of an epoch to train on.
        steps: how many batches such an epoch has; None: all there are.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        preprocess: Function | None,
        *,
        augment: Function | None = None,
        steps: int | None = None,
    ) -> None:
        self.name = name
        self._source, self._steps = source, steps
        self._preprocess, self._augment = preprocess, augment
        self._wrong: Callable[[Any], str | None] | None = None
        self._tally: Tally | None = None
        self._all_but_one: Tally | None = None
        self.first = source.first.each(lambda x: x[:1])
        """The first example, raw, as a batch of one."""

    @property
    def example(self) -> tuple[Any, Any]:
        """One example's raw inputs and its targets, as a batch of one."""
        return self.first.inputs, self.first.targets

    def require(self, wrong: Callable[[Any], str | None]) -> None:
        """Require something of the targets, at once or (Dataset, iterable) batch by batch.

        Args:
            wrong: what is wrong about some targets, in words; None: nothing.

        Raises:
            InputError: something is.
        """
        self._wrong = wrong
        if isinstance(self._source, Tensors):
            self._check(self._source.whole)

    def _check(self, batch: Batch) -> None:
        require_alike(self.first.inputs, batch.inputs, self.name)
        if (batch.weights is None) != (self.first.weights is None):
            raise InputError(f"some of the {self.name} examples have weights, and others have none")
        wrong = None if self._wrong is None else self._wrong(batch.targets)
        if wrong is not None:
            raise InputError(f"{self.name} {wrong}")

    def require_alike_on_all(self) -> None:
        """Refuse examples that differ between processes, all of which have to call this.

        By their number, and of tensors by their targets and the first inputs. A stream is compared
        as it is read.

        Raises:
            InputError: they do.
        """
        if self._source.examples is None:
            return
        tensors = []
        if isinstance(self._source, Tensors):  # a Dataset may draw what it gives
            tensors = [*all_of(self._source.whole.targets), *all_of(self.first.inputs)]
        require_alike_on_all(self.name, self._source.examples, tensors)

    def batch_count(self, batch_size: int) -> int:
        """How many batches an epoch to train on has."""
        return self._source.batch_count(batch_size) if self._steps is None else self._steps

    @property
    def examples(self) -> int | None:
        """How many examples there are; of a stream known after the first pass."""
        known = self._source.examples
        return self._tally.examples if known is None and self._tally is not None else known

    @property
    def tally(self) -> Tally | None:
        """What the targets are; of a Dataset or stream known after a pass or two."""
        if self._tally is None and isinstance(self._source, Tensors):
            self._tally = Tally.of(self._source.whole.targets)
        return self._tally

    def spread(self, count: int) -> Part:
        """At most so many examples, from all over the part, whose order may be that of its classes.

        Of a stream, which has an order of its own, the part itself.
        """
        return Part(self.name, self._source.spread(count), self._preprocess)

    def batches(
        self,
        batch_size: int,
        device: torch.device,
        *,
        shuffle: bool = False,
        share: Share | None = None,
    ) -> Iterator[Batch]:
        """Preprocessed batches on a device, each example once.

        Where a shuffled epoch would end in a batch of a single example, on which batch
        normalization cannot be trained, that one joins the batch before it (tensors) or is left out
        (Dataset). A shuffled epoch is one to train on: its inputs are augmented. Shuffling draws
        from torch's global generator, which the training reseeds every epoch. Of each batch a share
        is what this process takes; the batches are the same in all processes.
        """
        batches = self._source.batches(batch_size, device, shuffle=shuffle, share=share)
        if share is not None:
            batches = drawn_alike(batches)
        if not isinstance(self._source, Tensors):  # which were checked when they were given
            whole = not self._source.leaves_one_out(batch_size, shuffle=shuffle)
            batches = self._checked(batches, whole=whole, counted=share is None)
        if shuffle and self._steps is not None:
            batches = self._first_steps(batches, self._steps)
        for batch in batches:
            if not isinstance(self._source, Tensors):  # which are there already
                batch = batch.each(lambda x: x.to(device, non_blocking=True))
            inputs = batch.inputs
            if shuffle and self._augment is not None:
                inputs = of_first(partial(self._augmented, augment=self._augment), inputs)
            if self._preprocess is not None:
                inputs = of_first(self._preprocess, inputs)
            yield replace(batch, inputs=inputs)

    def _first_steps(self, batches: Iterator[Batch], steps: int) -> Iterator[Batch]:
        given = 0
        for batch in islice(batches, steps):
            yield batch
            given += 1
        if given < steps:
            raise InputError(
                f"{self.name} data gave {given} batches; expected steps_per_epoch = {steps}"
            )

    def _augmented(self, inputs: Tensor, augment: Function) -> Tensor:
        changed = augment(inputs)
        if not isinstance(changed, Tensor) or len(changed) != len(inputs):
            kind = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise InputError(
                f"augment made {kind} of {self.name} inputs of {tuple(inputs.shape)}; "
                "expected a tensor of as many examples"
            )
        return changed

    def targets(self, batch_size: int) -> Iterator[tuple[Any, Tensor | None]]:
        """Targets and weights in batches; the inputs of tensors are not touched for them."""
        if isinstance(self._source, Tensors):
            whole = self._source.whole
            known = Tensors(self.name, Batch(whole.targets, whole.targets, whole.weights))
            found = known.batches(batch_size, all_of(whole.targets)[0].device, shuffle=False)
        else:
            source = self._source.batches(batch_size, torch.device("cpu"), shuffle=False)
            found = self._checked(source, whole=True, counted=True)
        yield from ((batch.targets, batch.weights) for batch in found)

    def _checked(self, batches: Iterator[Batch], *, whole: bool, counted: bool) -> Iterator[Batch]:
        """Batches of what was not all there to be checked when it was given; counted, too."""
        tally = NOTHING if counted and self._tally is None else None
        for batch in batches:
            self._check(batch)
            if tally is not None:  # a device would have to be waited for
                on_cpu = all_of(batch.targets)[0].is_cpu
                tally = tally + Tally.of(batch.targets) if on_cpu else None
            yield batch
        if tally is None:
            return
        if not whole and self._all_but_one is None:
            self._all_but_one = tally
        else:  # a second pass leaves another example out
            self._tally = tally if whole or self._all_but_one is None else self._all_but_one | tally
