"""Data: what a network is trained, validated and tested on, and how its outputs are judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ellzero.data.arrays import require_same_columns
from ellzero.data.batch import Batch
from ellzero.data.entries import Entries
from ellzero.data.inputs import Inputs, all_of, called, of_first, require_alike
from ellzero.data.objective import LossFunction, Objective
from ellzero.data.outputs import logits_of
from ellzero.data.part import Part
from ellzero.data.remedies import remedy
from ellzero.data.sources import Examples, source_of
from ellzero.data.tasks import TASKS, Labels, Task
from ellzero.errors import InputError, warn
from ellzero.modules import device_of, evaluating
from ellzero.preprocess import Preprocess

ONE_HOT = (
    "the targets are one-hot rows of floating numbers, which is taken for regression (mean squared "
    "error); for classification give their class numbers, targets.argmax(1)"
)

MULTI_HOT = (
    "the targets are rows of the floating numbers 0 and 1, which is taken for regression (mean "
    "squared error); for labels of which each is there or not give task='multi-label'"
)


class Data:
    """A data set in three parts, with the loss and the score by which networks are judged.

    A part is one of these, from the fastest on:

    - `(inputs, targets)`: tensors, numpy arrays or pandas frames of equal length; with weights of
      the examples `(inputs, targets, weights)`; or a dictionary of them;
    - a `torch.utils.data.Dataset` of such examples;
    - an iterable of batches that can be iterated over again, such as a `DataLoader` (which then
      sets batch size and shuffling itself), or a function that gives one.

    The inputs of a network that takes several are a tuple of tensors, or a dictionary by the names
    of its arguments; preprocessing and augmentation are of the first one. Of an example that is one
    dictionary `targets` names what is compared with the outputs; the others are inputs.

    What the targets mean is the `task`, which knows its loss and its score:

    ==================  ===========  ==========================  ====================  =============
    task                outputs      targets                     loss                  score
    ==================  ===========  ==========================  ====================  =============
    `"classification"`  (N, C)       integers (N,)               cross-entropy         accuracy
    `"tokens"`          (N, ..., C)  integers (N, ...), or -100  cross-entropy         accuracy
    `"segmentation"`    (N, C, ...)  integers (N, ...), or -100  cross-entropy         accuracy
    `"regression"`      (N, ...)     (N, ...)                    mean squared error    that times -1
    `"multi-label"`     (N, L)       0 or 1, (N, L)              binary cross-entropy  micro F1
    ==================  ===========  ==========================  ====================  =============

    A target of -100 is ignored; the binary cross-entropy is that of logits.

    Without one floating targets mean regression (a warning says so where they are rows of 0 and 1),
    integers (N,) classification, and integers (N, ...) what the shape of the outputs fits.

    Args:
        train: what the weights are trained on.
        validation: what every choice is made on.
        test: what is measured once, at the end; None where there is none.
        task: what the targets mean, by its name in the table.
        targets: the key, or keys, of a dictionary that are its targets.
        weights: the key of a dictionary that is its weights: what each example counts, >= 0. A part
            may lack it.
        loss: maps a batch's (outputs, targets) to a 0-d tensor that autograd can differentiate. It
            is also given `inputs` and `weights` if it names these after the first two. "model": the
            network is called with the targets, too, and what it gives has a `loss`.
        score: the same, higher is better; batches are averaged by their length. Or an object with
            `update(predictions, targets)`, `compute()` and `reset()`, as torchmetrics has them,
            which sees the whole set, as probabilities where the task has labels; or "loss", the
            loss times -1.
        preprocess: applied to each batch of inputs; travels with saved models.
        augment: changes each batch of raw training inputs while a network is trained, and no
            others; an `ez.Augment`, or a function of yours from a batch to one of the same length.
        classes: names of the classes; they travel with saved models.
        workers: processes that read a `Dataset` ahead of the training; 0 reads it in this one. They
            start anew for each epoch, so that what is random in them is the same after a resume.
        steps_per_epoch: batches of an epoch to train on, the first ones; left out, all there are.
            Endless data need it.

    Raises:
        InputError: empty data; members of unequal length; NaN or inf; labels that are negative or
            beyond `classes`; targets that are not of the task; weights that are negative, all 0, or
            that a loss of the user's own does not take; a loss of the user's own without a score or
            a task (torch's cross-entropy needs none); `workers` or `steps_per_epoch` that is no
            such number.

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
        task: str | None = None,
        targets: str | Sequence[str] = "labels",
        weights: str | None = None,
        loss: LossFunction | Literal["model"] | None = None,
        score: Any = None,
        preprocess: Preprocess | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        classes: Sequence[str] | None = None,
        workers: int = 0,
        steps_per_epoch: int | None = None,
    ) -> None:
        if type(workers) is not int or workers < 0:
            raise InputError(f"workers is {workers!r}; expected a whole number >= 0")
        if steps_per_epoch is not None and (
            type(steps_per_epoch) is not int or steps_per_epoch < 1
        ):
            raise InputError(
                f"steps_per_epoch is {steps_per_epoch!r}; expected a whole number >= 1"
            )
        self.preprocess = preprocess
        self.classes = None if classes is None else tuple(classes)
        self._entries = Entries(targets if isinstance(targets, str) else tuple(targets), weights)

        def part(name: str, examples: Examples, **options: Any) -> Part:
            source = source_of(name, examples, self._entries, workers)
            return Part(name, source, preprocess, **options)

        self.train = part("train", train, augment=augment, steps=steps_per_epoch)
        self.validation = part("validation", validation)
        self.test = None if test is None else part("test", test)
        require_same_columns(train=train, validation=validation, test=test)
        for p in self.parts[1:]:
            require_alike(self.train.first.inputs, p.first.inputs, p.name)
        weighted = any(p.first.weights is not None for p in self.parts)
        if weights is not None and not weighted:
            raise InputError(f"weights is {weights!r}, which no part of the data has")
        self.objective = Objective(
            task, loss, score, self.train.first.targets, has_weights=weighted
        )
        self._outputs: int | None = None
        self._require(None if self.classes is None else len(self.classes))
        if self.doubt is not None:
            warn(self.doubt)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The train, validation and test parts, as far as there are any."""
        return tuple(p for p in (self.train, self.validation, self.test) if p is not None)

    @property
    def example(self) -> Inputs:
        """The inputs of one example as the network takes them, preprocessed, as a batch of one."""
        return self._prepared(self.train.first.inputs)

    def _prepared(self, inputs: Inputs) -> Inputs:
        return inputs if self.preprocess is None else of_first(self.preprocess, inputs)

    def outputs(self, network: Callable[..., Any], batch: Batch) -> Any:
        """What a network gives for a batch."""
        if not self.objective.is_models:
            return called(network, batch.inputs)
        return called(network, batch.inputs, **self._entries.named(batch.targets))

    def loss(
        self, outputs: Any, targets: Any, *, inputs: Any = None, weights: Tensor | None = None
    ) -> Tensor:
        """The mean loss of a batch, 0-d; by the weights of its examples if there are any."""
        return self.objective.loss(outputs, Batch(inputs, targets, weights))

    def check_fit(self, model: nn.Module) -> None:
        """Make sure that a network can take the data, by the first example of each part.

        Raises:
            InputError: the network fails on a batch, or has fewer outputs than there are labels;
                its outputs are not of the shape that the loss and the score of the task compare
                with the targets.
        """
        for part in self.parts:
            self._check_part(model, part)

    def _check_part(self, model: nn.Module, part: Part) -> None:
        device = device_of(model)
        raw = part.first.each(lambda x: x.to(device))
        batch = Batch(self._prepared(raw.inputs), raw.targets, raw.weights)
        try:
            with evaluating(model), torch.no_grad():
                outputs = self.outputs(model, batch)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            shown = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in all_of(raw.inputs))
            told = " ".join(str(error).split())
            raise InputError(
                f"{type(model).__name__} cannot take the data, {part.name} inputs of {shown}: "
                f"{told}{remedy(model, batch, error)}"
            ) from error
        self.objective.check(outputs, batch)
        task = self.objective.task
        if isinstance(task, Labels):
            logits = logits_of(outputs)
            if logits.ndim > 1:
                self._outputs = logits.shape[task.class_dim]
                self._require(self._outputs)

    def _require(self, classes: int | None) -> None:
        """Require targets that are of the task, and labels below a number of classes."""
        task = self.objective.task
        # a loss of the user's may give labels a meaning of its own, such as -1 for "ignore"
        if self.objective.is_own and not self.objective.is_told:
            return
        if task is None:  # labels of several things an example, some of which may be ignored
            task = TASKS["segmentation"]
        for part in self.parts:
            part.require(lambda targets: task.wrong(targets, classes))

    @property
    def task(self) -> Task | None:
        """What the targets mean; None beside a loss that does not tell, or until outputs do."""
        return self.objective.task

    @property
    def is_classification(self) -> bool:
        """Whether the targets are labels, of an example or of each token or pixel."""
        return self.objective.is_of_labels

    @property
    def class_count(self) -> int | None:
        """How many classes there are by their names, or else by the outputs of a network."""
        return self._outputs if self.classes is None else len(self.classes)

    @property
    def doubt(self) -> str | None:
        """What is doubtful about targets that are taken for regression, as far as is known yet."""
        tally = self.train.tally if self.objective.is_inferred_regression else None
        if tally is None or not tally.multi_hot:
            return None
        return ONE_HOT if tally.one_hot else MULTI_HOT

    @property
    def scores_accuracy(self) -> bool:
        """Whether the score is the accuracy, so that errors can be given in percent."""
        return self.objective.scores_accuracy


def require_data(data: object) -> None:
    """Make sure that a value is an `ez.Data`.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(data, Data):
        raise InputError(
            f"data is {type(data).__name__}; expected ez.Data(train, validation, test), each part "
            "(inputs, targets), a Dataset or a DataLoader"
        )
