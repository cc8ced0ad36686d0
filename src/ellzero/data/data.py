"""Data: what a network is trained, validated and tested on, and how its outputs are judged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ellzero.data.tally import NOTHING, Tally
from ellzero.errors import EllzeroWarning, InputError

Measure = Callable[[Any, Any], Tensor]
"""Maps a batch's outputs and targets to a 0-d tensor, a mean over the batch."""

ONE_HOT = (
    "the targets are one-hot rows of floating numbers, which is taken for regression (mean squared "
    "error); for classification give their class numbers, targets.argmax(1)"
)

Examples = tuple[Tensor, Tensor] | Dataset[Any] | Iterable[Any]


@dataclass(frozen=True)
class Affine:
    """Preprocessing as data: `x * scale + shift`, on float32 of the raw values.

    Args:
        scale: factor, or one per channel (dimension 1 of a batch).
        shift: summand, or one per channel.

    Example:
        >>> import torch
        >>> Affine(scale=2.0, shift=-1.0)(torch.tensor([[0, 1]], dtype=torch.uint8))
        tensor([[-1.,  1.]])
    """

    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """The preprocessed batch, float32, of the shape of `x`."""
        scale, shift = (_per_channel(v, x.ndim, x.device) for v in (self.scale, self.shift))
        numbers = x.to(torch.float32)
        # one pass less each: in place where it is a copy, and no sum with 0
        numbers = numbers.mul(scale) if numbers is x else numbers.mul_(scale)
        return numbers if self.shift == 0 else numbers.add_(shift)


@cache  # for a GPU has to be waited for where a tensor is made from numbers
def _per_channel(
    value: float | tuple[float, ...], ndim: int, device: torch.device
) -> float | Tensor:
    if isinstance(value, int | float):
        return value
    shape = (1, len(value), *[1] * (ndim - 2))
    return torch.tensor(value, dtype=torch.float32, device=device).view(shape)


class Data:
    """A data set in three parts, with the loss and the score by which networks are judged.

    Each part is a pair of tensors `(inputs, targets)` of equal length (the fastest), a
    `torch.utils.data.Dataset` of such pairs, or an iterable of batches that can be iterated over
    again, such as a `DataLoader` (which then sets batch size and shuffling itself).

    Integer targets mean classification: cross-entropy and accuracy are the defaults. Floating
    targets mean regression: mean squared error, and its negative as the score (a warning says so
    where they are one-hot rows).

    Args:
        train: what the weights are trained on.
        validation: what every choice is made on.
        test: what is measured once, at the end; None where there is none.
        loss: maps a batch's (outputs, targets) to a 0-d tensor that autograd can differentiate.
        score: maps a batch's (outputs, targets) to a 0-d tensor, higher is better; batches are
            averaged by their length.
        preprocess: applied to each batch of inputs; travels with saved models.
        classes: names of the classes; they travel with saved models.
        workers: processes that read a `Dataset` ahead of the training; 0 reads it in this one. They
            start anew for each epoch, so that what is random in them is the same after a resume.

    Raises:
        InputError: empty data; inputs and targets of unequal length; NaN or inf; labels that are
            negative or beyond `classes`; `workers` that is no whole number.

    Example:
        >>> import torch, ellzero as ez
        >>> x, y = torch.randn(20, 4), torch.randint(3, (20,))
        >>> data = ez.Data((x[:10], y[:10]), (x[10:15], y[10:15]), (x[15:], y[15:]))
        >>> data.is_classification
        True
    """

    def __init__(
        self,
        train: Examples,
        validation: Examples,
        test: Examples | None = None,
        *,
        loss: Measure | None = None,
        score: Measure | None = None,
        preprocess: Affine | None = None,
        classes: Sequence[str] | None = None,
        workers: int = 0,
    ) -> None:
        if type(workers) is not int or workers < 0:
            raise InputError(f"workers is {workers!r}; expected a whole number >= 0")
        self.preprocess = preprocess
        self.classes = None if classes is None else tuple(classes)
        self.train = Part("train", train, preprocess, workers)
        self.validation = Part("validation", validation, preprocess, workers)
        self.test = None if test is None else Part("test", test, preprocess, workers)
        self.is_classification = self.train.has_labels
        self.loss: Measure = loss or (
            cross_entropy if self.is_classification else nn.functional.mse_loss
        )
        self.score: Measure = score or (accuracy if self.is_classification else negative_mse)
        self._own_loss = loss is not None
        self._outputs: int | None = None
        if self.classes is not None:
            self._check_labels(len(self.classes))
        if self.is_one_hot:
            warnings.warn(ONE_HOT, EllzeroWarning, stacklevel=2)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The train, validation and test parts, as far as there are any."""
        return tuple(p for p in (self.train, self.validation, self.test) if p is not None)

    def check_fit(self, model: nn.Module) -> None:
        """Make sure that a network can take the data.

        Raises:
            InputError: the network fails on a batch, or has fewer outputs than there are labels;
                its outputs are not of the shape that the default loss compares with the targets.
        """
        inputs, targets = (tensor.to(device_of(model)) for tensor in self.train.example)
        try:
            with evaluating(model), torch.no_grad():
                outputs = model(inputs if self.preprocess is None else self.preprocess(inputs))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{type(model).__name__} cannot take the data, inputs of {inputs.dtype} "
                f"{tuple(inputs.shape)}: {error}"
            ) from error
        if not self._own_loss:
            self._check_outputs(outputs, targets)
        elif self.scores_accuracy and (
            not isinstance(outputs, Tensor) or outputs.shape[1:2] < (2,)
        ):
            raise InputError(
                "the accuracy needs an output per class; give a score of your own beside your loss"
            )
        if isinstance(outputs, Tensor) and outputs.ndim > 1:
            self._outputs = outputs.shape[1]
            self._check_labels(self._outputs)

    def _check_outputs(self, outputs: Any, targets: Tensor) -> None:
        # the losses themselves would broadcast (N, 1) against (N,), every output with every target
        if not isinstance(outputs, Tensor) or (self.is_classification and outputs.ndim < 2):
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputError(f"the network gives {shape} for one example; give a loss of your own")
        expected = outputs.shape
        if self.is_classification:
            expected = expected[:1] + expected[2:]
        if targets.shape != expected:
            raise InputError(
                f"outputs of {tuple(outputs.shape)} do not go with targets of {targets.dtype} "
                f"{tuple(targets.shape)}; expected targets of {tuple(expected)}, or a loss of "
                "your own"
            )

    def _check_labels(self, classes: int) -> None:
        # a loss of the user's may give labels a meaning of its own, such as -100 for "ignore"
        if self.is_classification and not self._own_loss:
            for part in self.parts:
                part.limit_labels(classes)

    @property
    def labels_are_classes(self) -> bool:
        """Whether labels count from 0 to the number of classes; a loss may know other ones."""
        return self.is_classification and (not self._own_loss or self.scores_accuracy)

    @property
    def class_count(self) -> int | None:
        """How many classes there are by their names, or else by the outputs of a network."""
        return self._outputs if self.classes is None else len(self.classes)

    @property
    def is_one_hot(self) -> bool:
        """Whether one-hot rows are taken for regression, as far as is known yet."""
        tally = None if self._own_loss else self.train.tally
        return tally is not None and tally.one_hot

    @property
    def scores_accuracy(self) -> bool:
        """Whether the score is the accuracy, so that errors can be given in percent."""
        return self.score is accuracy


def device_of(model: nn.Module) -> torch.device:
    """The device a network's parameters are on; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C, ...) and labels (N, ...) of any integer type."""
    return nn.functional.cross_entropy(outputs, targets.long())


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of examples whose largest output (dimension 1) is at the target's index."""
    return (outputs.argmax(1) == targets).to(torch.float32).mean()


def negative_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error times -1, so that higher is better."""
    return -nn.functional.mse_loss(outputs, targets)


class Part:
    """One part of a data set, as batches on a device; made by `Data`."""

    def __init__(
        self, name: str, examples: Examples, preprocess: Affine | None, workers: int
    ) -> None:
        self.name = name
        self._workers = workers
        self._preprocess = preprocess
        self._label_limit: int | None = None
        self._tally: Tally | None = None
        batches = isinstance(examples, list) and all(isinstance(b, tuple) for b in examples)
        if isinstance(examples, tuple | list) and not batches:
            examples = _checked_pair(name, examples)
            first = examples
        else:
            first = _first_batch(name, examples)
        self._examples: tuple[Tensor, Tensor] | Dataset[Any] | Iterable[Any] = examples
        self.has_labels = not first[1].is_floating_point()
        """Whether the targets are class labels (integers)."""
        self.example = (first[0][:1], first[1][:1])
        """One raw input and its target, as a batch of one."""

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
        """What the targets are; of a Dataset or an iterable known after the first whole pass."""
        if self._tally is None and isinstance(self._examples, tuple):
            self._tally = Tally.of(self._examples[1])
        return self._tally

    def _count(self) -> int:
        examples = self._examples[1] if isinstance(self._examples, tuple) else self._examples
        return len(examples)  # pyright: ignore[reportArgumentType]

    def batches(
        self, batch_size: int, device: torch.device, *, shuffle: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Preprocessed batches of (inputs, targets) on a device, each example once.

        Where a shuffled epoch would end in a batch of a single example, on which batch
        normalization cannot be trained, that one joins the batch before it (tensors) or is left out
        (Dataset). Shuffling draws from torch's global generator, which the training reseeds every
        epoch.
        """
        if isinstance(self._examples, tuple):
            inputs, targets = (tensor.to(device) for tensor in self._examples)
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
            inputs = inputs.to(device, non_blocking=True)
            if self._preprocess is not None:
                inputs = self._preprocess(inputs)
            yield inputs, targets.to(device, non_blocking=True)

    def _checked(self, batches: Iterable[Any], *, whole: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of what is no pair, which was checked when it was given; counted if all come."""
        tally = NOTHING if whole and self._tally is None else None
        for inputs, targets in batches:
            self._check_labels(targets)
            _require_finite(self.name, inputs, targets)
            if tally is not None:  # a device would have to be waited for
                tally = tally + Tally.of(targets) if targets.is_cpu else None
            yield inputs, targets
        self._tally = self._tally if tally is None else tally

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
    inputs: Tensor, targets: Tensor, batch_size: int, shuffle: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    if shuffle:
        order = torch.randperm(len(targets)).to(targets.device)
        chunks = list(order.split(batch_size))
        if len(chunks) > _batch_count(len(order), batch_size):
            chunks[-2:] = [torch.cat(chunks[-2:])]
        for chosen in chunks:
            # several times as fast as indexing, which serves any number of dimensions
            yield inputs.index_select(0, chosen), targets.index_select(0, chosen)
    else:
        yield from zip(inputs.split(batch_size), targets.split(batch_size), strict=True)


def _checked_pair(name: str, examples: Sequence[Any]) -> tuple[Tensor, Tensor]:
    if len(examples) != 2:
        raise InputError(f"{name} data has {len(examples)} parts; expected (inputs, targets)")
    try:
        inputs, targets = (torch.as_tensor(part) for part in examples)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name} data cannot be made into tensors: {error}") from None
    if len(inputs) != len(targets):
        raise InputError(f"{name} data has {len(inputs)} inputs and {len(targets)} targets")
    if not len(targets):
        raise InputError(f"{name} data is empty; expected at least one example")
    _require_finite(name, inputs, targets)
    return inputs, targets


def _first_batch(name: str, examples: Any) -> tuple[Tensor, Tensor]:
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
    if not (
        isinstance(batch, tuple | list)
        and len(batch) == 2
        and all(isinstance(part, Tensor) for part in batch)
    ):
        raise InputError(
            f"a batch of the {name} data is {type(batch).__name__}; expected (inputs, targets), "
            "both tensors"
        )
    _require_finite(name, *batch)
    return batch[0], batch[1]


def _require_finite(name: str, inputs: Tensor, targets: Tensor) -> None:
    for what, tensor in (("inputs", inputs), ("targets", targets)):
        # the sum is NaN or inf as soon as one entry is, and takes no memory of the data's size
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise InputError(f"{name} {what} hold NaN or inf; clean or drop those examples")
