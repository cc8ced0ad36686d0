"""A scheme at work on a network that a trainer of another library trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ellzero.errors import InputError, warn
from ellzero.frameworks.scheme import Scheme
from ellzero.pruning import Hold, Masks, prune, ranked
from ellzero.pruning.hold import Optimizers, each, require_owned
from ellzero.regularizers import Regularizer
from ellzero.selection import Selection, select

PRUNINGS = 100
"""The most prunings of a gradual schedule; each ranks all weights."""


class Sparsifier:
    """What a scheme does at the events of a trainer, of which each library has its own names.

    `begin_step` comes before the first forward pass of each optimizer step, `add_gradient` after
    its last backward pass and before clipping, `finish` at the end. The decoupled step and the
    masks are hooks of the optimizers, so whatever looks at the weights after a step sees them done.

    Args:
        scheme: what is to be done.
        model: the network.
        optimizers: what moves its weights. Where they are several, each has a regularizer for the
            weights that it moves.
        steps: how many optimizer steps the trainer takes in all.
        state: what `state_dict` gave, for a training that goes on.

    Raises:
        InputError: a selected weight that no optimizer moves, or two do; a pruning that cannot be
            done; gates or a layer scale with several optimizers.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparsifier = Sparsifier(Scheme(penalty=ez.L1(0.1), sparsity=0.9), model, optimizer, 4)
        >>> for step in range(4):
        ...     _ = sparsifier.begin_step(step)
        ...     optimizer.zero_grad()
        ...     model(torch.ones(1, 10)).sum().backward()
        ...     sparsifier.add_gradient()
        ...     optimizer.step()
        >>> sparsifier.finish()
        >>> int(model.weight.count_nonzero())
        10
    """

    def __init__(
        self,
        scheme: Scheme,
        model: nn.Module,
        optimizers: Optimizers,
        steps: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        settings = scheme.recipe.prune
        self.optimizers = each(optimizers)
        self.weights = select(model, include=settings.include, exclude=settings.exclude)
        self.masks: Masks | None = None
        self.is_pruned = False
        """Whether the regularized training is over, so that all masks stay as they are."""
        self._scheme, self._steps = scheme, steps
        self._prune_step = min(round(scheme.prune_at * steps), steps - 1)
        self._step: int | None = None
        self._drawn = False
        self._shares = self._shared_out()
        ranked(self.weights, *settings.targets(self.weights.values()))  # says now what would fail
        self._regularizers = self._regularizers_of_stage()
        self._hold: Hold | None = None
        if state is not None:
            self._load(state)
        self._attach()

    def begin_step(self, step: int) -> bool:
        """Before the first forward pass of an optimizer step; prune if it is time for that.

        A second time for the same step does nothing.

        Args:
            step: how many steps have been taken.

        Returns:
            Whether the regularized training has ended just now, and the fine-tuning begins.
        """
        if step == self._step:
            return False
        self._step = step
        begins_finetuning = self._prune_if_due(step)
        done, of = (0, self._prune_step) if not self.is_pruned else (self._prune_step, self._steps)
        for regularizer in self._regularizers.values():
            regularizer.progress = (step - done) / max(of - done, 1)
            regularizer.before_forward()
            self._drawn = regularizer.gates is not None
        return begins_finetuning

    def add_gradient(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Add the penalty's gradient to the weights that this optimizer moves, or to all."""
        self._drawn = False
        for mover, regularizer in self._regularizers.items():
            if optimizer is None or mover is optimizer:
                regularizer.add_gradient()

    @contextmanager
    def finalized(self) -> Iterator[None]:
        """The network as it would be at the end of the regularized training, for a validation.

        Raises:
            InputError: gates have put a draw into the weights, which the rest of the step needs.
        """
        self._require_plain("a validation")
        with ExitStack() as stack:
            for regularizer in self._regularizers.values():
                stack.enter_context(regularizer.finalized())
            yield

    def finish(self) -> None:
        """End the training; a warning where the network is not what was asked for."""
        masks = self.masks
        if not self.is_pruned:
            for regularizer in self._regularizers.values():
                regularizer.finalize()
            taken = 0 if self._step is None else self._step + 1
            warn(
                f"the training ended after {taken} of {self._steps} steps, before the pruning at "
                f"step {self._prune_step}: the network has not come to the asked sparsity"
            )
        elif masks is not None and any(bool(self.weights[n][~m].any()) for n, m in masks.items()):
            masks.apply()
            warn(
                "something other than the optimizer moved pruned weights, such as an average of "
                "the weights or a file that was loaded; they are zero again"
            )
        self.close()

    def close(self) -> None:
        """Let go of the optimizers, and put the weights back that a draw of gates is in."""
        for regularizer in self._regularizers.values():
            regularizer.restore()
        self._drawn = False
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Masks, what the regularizers learned, and the stage; the weights are the trainer's.

        Raises:
            InputError: gates have put a draw into the weights, which would be saved in their place.
        """
        self._require_plain("a checkpoint")
        return {
            "is_pruned": self.is_pruned,
            "masks": None if self.masks is None else self.masks.state_dict(),
            "regularizers": [r.state_dict() for r in self._regularizers.values()],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.is_pruned = state["is_pruned"]
        if state["masks"] is not None:
            self.masks = Masks(self.weights, state["masks"])
        self._regularizers = self._regularizers_of_stage()
        regularizers = self._regularizers.values()
        if len(regularizers) != len(state["regularizers"]):
            raise InputError(
                f"the checkpoint has the state of {len(state['regularizers'])} regularizers, the "
                f"scheme has {len(regularizers)}; go on with the scheme that the training began by"
            )
        for regularizer, entry in zip(regularizers, state["regularizers"], strict=True):
            regularizer.load_state_dict(entry)

    def _shared_out(self) -> dict[torch.optim.Optimizer, Selection]:
        """The selected weights that each optimizer moves, of those that move any."""
        moved = {o: {w for g in o.param_groups for w in g["params"]} for o in self.optimizers}
        require_owned(self.weights, set().union(*moved.values()))
        for name, w in self.weights.items():
            if sum(w in owned for owned in moved.values()) > 1:
                raise InputError(
                    f"{name} is moved by several optimizers, so it is unclear which step its "
                    "penalty belongs to; give it to one, or exclude it"
                )
        parts = {o: [w for w in self.weights.weights if w.parameter in moved[o]] for o in moved}
        shares = {o: Selection(self.weights.model, part) for o, part in parts.items() if part}
        for option in ("gates", "layer_scale"):
            if len(shares) > 1 and getattr(self._scheme, option) is not None:
                raise InputError(
                    f"{option} is of all selected weights together, and {len(shares)} optimizers "
                    "move them, each in steps of its own; select weights of one of them"
                )
        return shares

    def _regularizers_of_stage(self) -> dict[torch.optim.Optimizer, Regularizer]:
        train, finetune = self._scheme.recipe.train, self._scheme.recipe.finetune
        if self.is_pruned:
            penalty, options = finetune.penalty, {}
        else:
            penalty = train.penalty
            options = {name: getattr(train, name) for name in ("gates", "layer_scale", "ramp")}
        if penalty is None and options.get("gates") is None:
            return {}
        model = self.weights.model
        return {
            optimizer: Regularizer(model, penalty, weights=share, **options)
            for optimizer, share in self._shares.items()
        }

    def _prune_if_due(self, step: int) -> bool:
        """Prune where the schedule says so; whether the regularized training has ended by that."""
        if self.is_pruned:
            return False
        if step >= self._prune_step:
            self._detach()
            for regularizer in self._regularizers.values():
                regularizer.finalize()
            self.masks = self._pruned(1.0)
            self.is_pruned = True
            self._regularizers = self._regularizers_of_stage()
            self._attach()
            return True
        gradual = self._scheme.recipe.prune.gradual
        if gradual is not None and step % max(self._prune_step // PRUNINGS, 1) == 0:
            fraction = gradual(step / self._prune_step)
            if fraction > 0:
                self._detach()
                self.masks = self._pruned(fraction)
                self._attach()
        return False

    def _pruned(self, fraction: float) -> Masks:
        """Prune this fraction of the way to the asked sparsity."""
        settings, numel = self._scheme.recipe.prune, self.weights.numel
        goal: dict[str, Any]
        if settings.scope == "layer":
            assert settings.sparsity is not None
            goal = {"sparsity": fraction * settings.sparsity}
        else:
            target = settings.target(numel)
            assert target is not None
            goal = {"nonzeros": numel - round(fraction * (numel - target))}
        options = {"scope": settings.scope, "keep_per_layer": settings.keep_per_layer}
        return prune(self.weights.model, **goal, **options, weights=self.weights)

    def _attach(self) -> None:
        """Hook into the optimizers: the masks first, then the decoupled step, as in a loop."""
        if self.masks is not None:
            self._hold = self.masks.hold([*self._shares])
        self._hooks = [
            optimizer.register_step_post_hook(lambda o, *_, r=regularizer: r.step(o))
            for optimizer, regularizer in self._regularizers.items()
        ]

    def _detach(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _require_plain(self, what: str) -> None:
        if self._drawn:
            raise InputError(
                f"{what} between the batches of one optimizer step, while the weights hold a draw "
                "of the gates; do it after whole steps, or train without accumulation or gates"
            )
