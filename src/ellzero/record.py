"""Records: what a run tells of itself, as frozen types, and how its weights are measured for it.

In JSON a record is one flat table. A study's report holds the records and the metrics of all its
runs, so what occurs often in them has slots, which take a quarter of a model's memory.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)
from pydantic.dataclasses import dataclass as validated
from torch import nn

from ellzero.selection import Selection
from ellzero.sharding import local, summed

FORMAT = 1
"""Version of record.json; a record of a newer one is refused by readers."""

Status = Literal["running", "interrupted", "failed", "missed", "done"]
"""`missed`: no network within the budget was found."""

Stage = Literal["reference", "train", "finetune"]

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
BOUND = 1e100
"""Figures beyond it overflow in the sums and axes of a report; no float32 is that large."""


def _bounded(figure: float) -> float:
    if not -BOUND <= figure <= BOUND:
        raise ValueError(f"beyond {BOUND:g}, or no finite number")
    return figure


Finite = Annotated[float, AfterValidator(_bounded)]
Ratio = Annotated[Finite, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Evaluation(NamedTuple):
    """What a network reached on one part of the data.

    Args:
        score: of the task, higher is better; of classes the accuracy, a fraction.
        loss: the mean over the examples, without a penalty.

    Example:
        >>> Evaluation(score=0.98, loss=0.07).better_than(Evaluation(score=0.98, loss=0.08))
        True
    """

    score: Finite
    loss: Finite

    @property
    def error_percent(self) -> float:
        """Wrong answers in percent, where the score is an accuracy."""
        return 100 * (1 - self.score)

    def better_than(self, other: Evaluation, *, by_loss: bool = False) -> bool:
        """Whether the score is higher, or equal at a lower loss; `by_loss` the other way round."""
        if by_loss:
            return (-self.loss, self.score) > (-other.loss, other.score)
        return (self.score, -self.loss) > (other.score, -other.loss)


def _known_figures(table: Any) -> Any:
    if not isinstance(table, Mapping):
        return table
    return {key: figure for key, figure in table.items() if key in Evaluation._fields}


EvaluationTable = Annotated[
    Evaluation, BeforeValidator(_known_figures), PlainSerializer(Evaluation._asdict)
]
"""An evaluation that is a table in JSON; keys that it does not know are left alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished step came to; `nonzeros` counts the selected weights that are left.

    `epochs` is how many it trained: fewer than the recipe says where a callback ended it.
    """

    stage: Stage
    round: Count
    nonzeros: Count
    score: Finite
    loss: Finite
    used: Finite | None = None
    within: bool | None = None
    epochs: Count | None = None


_NAMES: dict[frozenset[str], set[str]] = {}


class Entry(BaseModel):
    """An entry of a record: frozen; keys that it does not know are left alone."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _share_names(self) -> Self:
        """The names of what is set are one set in all entries alike; a report holds thousands."""
        names = self.model_fields_set
        object.__setattr__(
            self, "__pydantic_fields_set__", _NAMES.setdefault(frozenset(names), names)
        )
        return self

    def to_table(self) -> dict[str, Any]:
        """The entry as it stands in JSON; `model_validate` reads it."""
        return self.model_dump(mode="json", exclude_unset=True)


class Row:
    """The same for what occurs often: its subclasses are dataclasses with slots."""

    __slots__ = ()

    def to_table(self) -> dict[str, Any]:
        """The row as it stands in JSON, where its tuples are lists."""
        return asdict(cast("Any", self))


@validated(frozen=True, slots=True)
class EpochMetrics(Row):
    """A line of metrics.jsonl: where a run stands after an epoch.

    Args:
        stage: the stage of the epoch.
        round: the round of prune and fine-tune, from 1; 0 in other stages.
        epoch: from 1; 0 is the network as the pruning before the fine-tuning left it.
        train_loss: mean over the epoch, without the penalty; None where nothing was trained.
        penalty: its value after the epoch.
        validation_loss: after the epoch.
        validation_score: after the epoch.
        nonzeros: the selected weights that are not zero.
        learning_rate: the last one of the epoch.
        seconds: what the epoch took, its validation included.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> x, y = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> data, folder = ez.Data((x, y), (x, y)), tempfile.mkdtemp()
        >>> recipe = ez.Recipe.parse({"train": {"epochs": 1}, "prune": {"sparsity": 0.5}})
        >>> _ = ez.compress(torch.nn.Linear(4, 4), data, recipe, folder=folder)
        >>> last = ez.open_run(folder).metrics[-1]
        >>> last.stage, last.epoch, last.nonzeros
        ('finetune', 10, 8)
    """

    stage: Stage
    round: Count
    epoch: Count
    train_loss: float | None
    penalty: float
    validation_loss: float
    validation_score: float
    nonzeros: Count
    learning_rate: Finite
    seconds: Finite

    @property
    def is_finite(self) -> bool:
        """Whether all figures are finite, and of a size that a report can draw."""
        figures = (self.train_loss or 0, self.penalty, self.validation_loss, self.validation_score)
        return all(-BOUND <= figure <= BOUND for figure in figures)


class Evaluations(Entry):
    """What a network reached on validation data, and on test data where there are any."""

    validation: EvaluationTable
    test: EvaluationTable | None = None


class ChosenEvaluations(Evaluations):
    """What the chosen network reached, and in which epoch of its stage it was chosen."""

    epoch: Count


@validated(frozen=True, slots=True)
class Magnitudes(Row):
    """Histogram of weights' magnitudes: how many are zero, and how many in each bin of log10 |w|.

    The first bin begins at `smallest`, and a decade has `per_decade` of them; magnitudes beyond
    either end are counted in the bin at that end.
    """

    zeros: Count
    smallest: Annotated[int, Field(ge=-324, le=308)]
    per_decade: Annotated[int, Field(ge=1, le=1000)]
    counts: Annotated[tuple[Count, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _end_in_range(self) -> Self:
        end = self.smallest + len(self.counts) / self.per_decade
        if end > 308:
            raise ValueError(f"its bins end at 1e{end:g}, beyond what a float can be")
        return self


class TrainedWeights(Entry):
    """The weights after the regularized training, before any pruning."""

    magnitudes: Magnitudes


@validated(frozen=True, slots=True)
class Layer(Row):
    """A selected weight: its name, its kind, its shape, and how many of its values are not zero."""

    name: str
    kind: str
    shape: tuple[Count, ...]
    weights: Count
    nonzeros: Count
    density: Fraction


class Sizes(Entry):
    """How much is left: of the selected weights, and of all parameters, selected or not.

    A tied parameter counts once, a frozen one too; what is not selected counts as left. The ratios
    are None where nothing is left.
    """

    weights: Annotated[Count, Field(ge=1)]
    nonzeros: Count
    sparsity: Fraction
    nonzero_ratio: Ratio | None
    parameters: Count
    parameters_left: Count
    parameter_ratio: Ratio | None
    float32_bytes: Count


class Retry(Entry):
    """A divergence after which a stage began again with half its learning rate.

    Args:
        stage: the stage that diverged.
        round: its round of prune and fine-tune, from 1; 0 in other stages.
        epoch: the epoch in which it did, from 1.
        figure: what became NaN or infinite, a key of metrics.jsonl.
        factor: of the stage's learning rate in the recipe, from there on.

    Example:
        >>> Retry(stage="train", round=0, epoch=3, figure="train_loss", factor=0.5).sentence
        'train_loss became NaN or infinite in epoch 3 of train, which began again with 0.5 times \
its learning rate'
    """

    stage: Stage
    round: Count
    epoch: Count
    figure: str
    factor: Finite

    @property
    def sentence(self) -> str:
        """What happened, for a warning."""
        where = f"{self.stage} round {self.round}" if self.round > 1 else self.stage
        return (
            f"{self.figure} became NaN or infinite in epoch {self.epoch} of {where}, which began "
            f"again with {self.factor:g} times its learning rate"
        )


class Record(Entry):
    """What every run tells, from its beginning on.

    Args:
        format: version of the record.
        status: how far the run is.
        started: date and time, ISO 8601, UTC.
        folder: where the run lies, as it was given; None where it writes nothing.
        versions: of what a result depends on.
        recipe: all tables of the resolved recipe; `Recipe.parse` reads them.
        warnings: what makes the result mean less than it seems to, a sentence each.
        threads: CPU threads that it ran with last, also where the recipe leaves them out.
        processes: how many trained it together, if several did.
        retries: where it diverged and began a stage again, see `on_divergence` in a recipe.
        error: why the run failed.

    Example:
        >>> record = Record(format=1, status="failed", error="no space left")
        >>> record.to_table()
        {'format': 1, 'status': 'failed', 'error': 'no space left'}
    """

    format: Annotated[int, Field(ge=1)]
    status: Status
    started: str | None = None
    folder: Path | None = None
    versions: Mapping[str, str] = {}
    recipe: Mapping[str, Any] = {}
    warnings: tuple[str, ...] = ()
    threads: Count | None = None
    processes: Count | None = None
    retries: tuple[Retry, ...] = ()
    error: str | None = None

    def changed(self, **entries: Any) -> Self:
        """The record with other entries."""
        return self.model_copy(update=entries)


class FinishedRecord(Sizes, Record):
    r"""What a run tells that is done.

    Of `N` weights, `n` of them nonzero, and `P` parameters in all, the figures of size are

    .. math::

        \text{sparsity} = 1 - \frac{n}{N}, \qquad \text{nonzero ratio} = \frac{N}{n}, \qquad
        \text{file ratio} = \frac{4 P}{\text{bytes of the file}}

    Args:
        weights: selected weights, that is those which can be pruned.
        nonzeros: those of them that are not zero.
        sparsity: the fraction of zeros.
        nonzero_ratio: weights for each one that is left; None where none is.
        parameters: all numbers of the network, selected or not.
        parameters_left: the same without the zeros among the selected ones.
        parameter_ratio: of the two.
        float32_bytes: four for each parameter.
        reference: what the dense reference reached.
        compressed: what the compressed network reached.
        validation_score: of the compressed network.
        trained: its weights before any pruning.
        outcomes: of each step, in order.
        layers: a row for each selected weight.
        seconds: what the run took, interruptions left out.
        living_nonzeros: nonzeros that compaction does not prove dead; None where the network cannot
            be traced, as `living_note` tells then.
        inputs: how many inputs (or input channels) the network has.
        inputs_left: indices of those that something reads.
        scores_accuracy: whether the score is an accuracy, the share of right answers; None where an
            older record does not tell.
        reference_error_percent: wrong answers on test data, where the score is an accuracy.
        test_error_percent: the compressed network's.
        note: told where other than the asked number of weights is left.
        file: what `file_bytes` counts.
        file_bytes: bytes of the compressed network's file; None where nothing is written.
        file_ratio: `float32_bytes` over `file_bytes`.

    Example:
        >>> import torch, ellzero as ez
        >>> x, y = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> recipe = ez.Recipe.parse({"train": {"epochs": 1}, "prune": {"sparsity": 0.5}})
        >>> record = ez.compress(torch.nn.Linear(4, 4), ez.Data((x, y), (x, y)), recipe).record
        >>> record.nonzeros, record.nonzero_ratio
        (8, 2.0)
    """

    reference: Evaluations
    compressed: ChosenEvaluations
    validation_score: Finite
    trained: TrainedWeights | None = None
    outcomes: tuple[Outcome, ...]
    layers: tuple[Layer, ...]
    seconds: Finite
    living_nonzeros: Count | None = None
    inputs: Count | None = None
    inputs_left: tuple[Count, ...] | None = None
    living_note: str | None = None
    scores_accuracy: bool | None = None
    reference_error_percent: Finite | None = None
    test_error_percent: Finite | None = None
    note: str | None = None
    file: str | None = None
    file_bytes: Count | None = None
    file_ratio: Ratio | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_older_ones(cls, table: Any) -> Any:
        """What older records tell by other entries: their score's kind, their parameters' number.

        Those without test data do not tell the first.
        """
        if not isinstance(table, Mapping):
            return table
        if "scores_accuracy" not in table and table.get("test_error_percent") is not None:
            table = {**table, "scores_accuracy": True}
        if "parameters" in table:
            return table
        try:
            parameters = table["float32_bytes"] // 4
            left = parameters - (table["weights"] - table["nonzeros"])
        except (KeyError, TypeError):
            return table  # what is missing is named for each key
        ratio = parameters / left if left else None
        counted = {"parameters": parameters, "parameters_left": left, "parameter_ratio": ratio}
        return {**table, **counted}


SMALLEST, LARGEST, PER_DECADE = -8, 2, 10
"""The histogram of magnitudes runs from 1e-8 to 1e2, in this many bins a decade."""


def magnitudes(weights: Selection) -> Magnitudes:
    """Histogram of the selected weights' magnitudes; of sharded ones all processes call this."""
    size = (LARGEST - SMALLEST) * PER_DECADE
    of_each = []
    for w in weights.values():
        nonzeros = local(w).detach().abs()
        nonzeros = nonzeros[nonzeros > 0].float()
        bins = nonzeros.log10_().sub_(SMALLEST).mul_(PER_DECADE).clamp_(0, size - 1)
        of_each.append(torch.bincount(bins.long(), minlength=size).cpu())
    counts = torch.stack(summed(of_each, [*weights.values()])).sum(0)
    return Magnitudes(
        zeros=weights.numel - int(counts.sum()),
        smallest=SMALLEST,
        per_decade=PER_DECADE,
        counts=tuple(counts.tolist()),
    )


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("ellzero", "torch", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def sizes(model: nn.Module, weights: Selection) -> Sizes:
    """How much of a network is left."""
    nonzeros = sum(int(torch.count_nonzero(w)) for w in weights.values())
    parameters = sum(p.numel() for p in model.parameters())
    left = parameters - (weights.numel - nonzeros)
    return Sizes(
        weights=weights.numel,
        nonzeros=nonzeros,
        sparsity=1 - nonzeros / weights.numel,
        nonzero_ratio=weights.numel / nonzeros if nonzeros else None,
        parameters=parameters,
        parameters_left=left,
        parameter_ratio=parameters / left if left else None,
        float32_bytes=4 * parameters,
    )


def layer_table(weights: Selection) -> tuple[Layer, ...]:
    """A row for each selected weight."""
    rows = []
    for weight in weights.weights:
        w = weight.parameter
        nonzeros = int(torch.count_nonzero(w))
        rows.append(
            Layer(
                name=weight.name,
                kind=weight.kind,
                shape=tuple(w.shape),
                weights=w.numel(),
                nonzeros=nonzeros,
                density=nonzeros / w.numel() if w.numel() else 0.0,
            )
        )
    return tuple(rows)
