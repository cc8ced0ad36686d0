"""The state of a run: everything that changes, and all that a checkpoint has to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch
from torch import Tensor, nn

from ellzero.pruning import Masks
from ellzero.recipe import Recipe
from ellzero.recipe_stages import Distilled
from ellzero.record import EpochMetrics, Evaluation, Outcome, Retry, TrainedWeights
from ellzero.regularizers import BoundGates, Regularizer
from ellzero.selection import Selection
from ellzero.sharding import nonzeros
from ellzero.training.average import Average
from ellzero.training.distillation import Teacher
from ellzero.training.parallel import copied, forward_of, restore
from ellzero.training.plan import Step


@dataclass(frozen=True)
class Snapshot:
    """A network at one moment: its state_dict and what it reached in validation.

    The tensors are on the CPU of rank 0; other processes have none.
    """

    tensors: dict[str, Tensor]
    evaluation: Evaluation
    nonzeros: int
    epoch: int


@dataclass
class State:
    """The state of a run; made fresh by `State(...)`, from a file by `checkpoint.load`."""

    model: nn.Module
    weights: Selection
    start: dict[str, Tensor]
    outcomes: tuple[Outcome, ...] = ()
    step: Step | None = None
    epoch: int = 0
    optimizer: torch.optim.Optimizer | None = None
    regularizer: Regularizer | None = None
    forward: Callable[..., Tensor] | None = None
    """The network as the training calls it: compiled, replicated, or as it is."""
    teacher: Teacher | None = None
    """The reference, where the step learns from its outputs."""
    average: Average | None = None
    """Of all that the step trains; where there is one, it is the network that counts."""
    masks: Masks | None = None
    history: list[EpochMetrics] = field(default_factory=list)
    seconds: float = 0.0
    """Time of the run up to the last checkpoint, for a resumed run to go on from."""
    reference: Snapshot | None = None
    base: Snapshot | None = None
    """What the next round prunes: the trained network, or the last one within the budget."""
    trained: TrainedWeights | None = None
    """What the record tells of the weights after the regularized training, before any pruning."""
    best: Snapshot | None = None
    """The best so far at the asked sparsity (of the reference: at all)."""
    retries: tuple[Retry, ...] = ()
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When the run began: date and time, ISO 8601, UTC."""

    @property
    def rate_factor(self) -> float:
        """What the stage's learning rate is multiplied by: a half for each time it diverged."""
        assert self.step is not None
        return 0.5 ** sum(retry.stage == self.step.stage for retry in self.retries)

    @property
    def nonzeros(self) -> int:
        """Count of the selected weights that are not zero."""
        return sum(nonzeros([*self.weights.values()]))

    @property
    def gates(self) -> BoundGates | None:
        """The gates at work in this step, if it has any."""
        return None if self.regularizer is None else self.regularizer.gates

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network that counts inside the block: the average of the weights, if there is one."""
        with nullcontext() if self.average is None else self.average.in_place():
            yield

    def snapshot(self, evaluation: Evaluation) -> Snapshot:
        """The network that counts, as it stands."""
        with self.averaged():
            return Snapshot(copied(self.model), evaluation, self.nonzeros, self.epoch)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put the network back to what it was, by the tensors of rank 0."""
        restore(self.model, tensors)

    def settle(self) -> None:
        """End the step's training: the network is the average, and gates are plain weights."""
        if self.average is not None:
            self.average.put()
            self.average = None
        if self.regularizer is not None:
            self.regularizer.finalize()

    def equip(self, recipe: Recipe) -> None:
        """Give the step that begins an optimizer, and what else it needs, of its own."""
        assert self.step is not None
        table = self.step.table(recipe)
        self.optimizer = table.make_optimizer(self.model)
        self.forward = forward_of(self.model, compile=recipe.compile)
        self.regularizer = None
        train = recipe.train if self.step.stage == "train" else None
        gates = train and train.gates
        if table.penalty is not None or gates is not None:
            self.regularizer = Regularizer(
                self.model,
                table.penalty,
                gates=gates,
                weights=self.weights,
                layer_scale=train and train.layer_scale,
                ramp=train and train.ramp,
                compile=recipe.compile,
            )
        self.teacher = None
        settings = table.distillation if isinstance(table, Distilled) else None
        if settings is not None and settings.weight:
            assert self.reference is not None
            self.teacher = Teacher(
                self.model, self.reference.tensors, settings, compile=recipe.compile
            )
        self.average = None
        if table.ema_decay:
            trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
            own = {} if self.gates is None else self.gates.own
            of_gates = {f"gates/{name}": tensor for name, tensor in own.items()}
            self.average = Average(table.ema_decay, {**trained, **of_gates})
