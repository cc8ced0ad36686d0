"""Data: what a network is trained, validated and tested on, and how its outputs are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.data.inputs import all_of, called, of_each, of_first
from ellzero.data.part import Examples, Part
from ellzero.errors import InputError, warn
from ellzero.modules import device_of, evaluating
from ellzero.preprocess import Preprocess

Metric = Callable[[Any, Any], Tensor]
"""Maps a batch's outputs and targets to a 0-d tensor, a mean over the batch."""

ONE_HOT = (
    "the targets are one-hot rows of floating numbers, which is taken for regression (mean squared "
    "error); for classification give their class numbers, targets.argmax(1)"
)


class Data:
    """A data set in three parts, with the loss and the score by which networks are judged.

    Each part is a pair of tensors `(inputs, targets)` of equal length (the fastest), a
    `torch.utils.data.Dataset` of such pairs, or an iterable of batches that can be iterated over
    again, such as a `DataLoader` (which then sets batch size and shuffling itself). The inputs of a
    network that takes several are a tuple of tensors, `((tokens, numbers), targets)`; preprocessing
    and augmentation are of the first one.

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
        augment: changes each batch of raw training inputs while a network is trained, and no
            others; an `ez.Augment`, or a function of yours from a batch to one of the same length.
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
        loss: Metric | None = None,
        score: Metric | None = None,
        preprocess: Preprocess | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        classes: Sequence[str] | None = None,
        workers: int = 0,
    ) -> None:
        if type(workers) is not int or workers < 0:
            raise InputError(f"workers is {workers!r}; expected a whole number >= 0")
        self.preprocess = preprocess
        self.classes = None if classes is None else tuple(classes)
        self.train = Part("train", train, preprocess, workers, augment)
        self.validation = Part("validation", validation, preprocess, workers)
        self.test = None if test is None else Part("test", test, preprocess, workers)
        self.is_classification = self.train.has_labels
        self.loss: Metric = loss or (
            cross_entropy if self.is_classification else nn.functional.mse_loss
        )
        self.score: Metric = score or (accuracy if self.is_classification else negative_mse)
        self._own_loss = loss is not None
        self._outputs: int | None = None
        if self.classes is not None:
            self._check_labels(len(self.classes))
        if self.is_one_hot:
            warn(ONE_HOT)

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
        device = device_of(model)
        inputs, targets = self.train.example
        inputs, targets = of_each(lambda x: x.to(device), inputs), targets.to(device)
        prepared = inputs if self.preprocess is None else of_first(self.preprocess, inputs)
        try:
            with evaluating(model), torch.no_grad():
                outputs = called(model, prepared)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shown = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in all_of(inputs))
            raise InputError(
                f"{type(model).__name__} cannot take the data, inputs of {shown}: {error}"
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


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C, ...) and labels (N, ...) of any integer type."""
    return nn.functional.cross_entropy(outputs, targets.long())


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction of examples whose largest output (dimension 1) is at the target's index."""
    return (outputs.argmax(1) == targets).to(torch.float32).mean()


def negative_mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error times -1, so that higher is better."""
    return -nn.functional.mse_loss(outputs, targets)
