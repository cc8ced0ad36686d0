"""What a trainer of another library is to do: what of a recipe is not the trainer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ellzero.errors import InputError, is_number
from ellzero.penalties import Penalty
from ellzero.pruning import Scope
from ellzero.recipe import Recipe
from ellzero.regularizers import Gates, LayerScale
from ellzero.schedules import Schedule

TRAIN = ("penalty", "gates", "layer_scale", "ramp")
PRUNE = ("sparsity", "nonzeros", "gradual", "scope", "keep_per_layer", "include", "exclude")
"""The settings that stand in a recipe's tables of these names."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Train with a penalty, prune, fine-tune: what of it a trainer of another library is told.

    The trainer has its own epochs, batches, optimizer and learning rate. Its steps are divided in
    two: the regularized training, then the fine-tuning of what is left, which keeps the terms of
    the penalty that do not sparsify (l2). The names are those of a recipe, docs/recipes.md.

    Args:
        penalty: as of `ez.Regularizer`, of the forms `gradient` and `decoupled`; None: none.
        gates: `ez.HardConcrete` or `ez.PMMP`; None: none.
        layer_scale: as of `ez.Regularizer`.
        ramp: a schedule from 0 to 1 of all strengths over the regularized training.
        sparsity: fraction of zeros in [0, 1) at the end.
        nonzeros: how many weights stay, instead of a sparsity.
        prune_at: after which part of the trainer's steps the network is pruned, in [0, 1); at 0
            there is no regularized training.
        gradual: a schedule from 0 to 1, such as `ez.Schedule(0, 1, "cubic", after=0.2)`, by which
            the sparsity rises over the regularized training, in at most 100 steps.
        scope: as of `ez.prune`.
        keep_per_layer: as of `ez.prune`.
        include: patterns of names, as of `ez.select`.
        exclude: patterns of names, as of `ez.select`.

    Raises:
        InputError: what a recipe refuses; a penalty of the form `loss`; `prune_at` out of range.

    Example:
        >>> import ellzero as ez
        >>> scheme = Scheme(penalty=ez.L0(1e-5) + ez.L2(1e-6), sparsity=0.95, prune_at=0.6)
        >>> scheme.recipe.finetune.penalty
        L2(strength=1e-06, form='gradient')
    """

    penalty: Penalty | None = None
    gates: Gates | None = None
    layer_scale: LayerScale | None = None
    ramp: Schedule | None = None
    sparsity: float | None = None
    nonzeros: int | None = None
    prune_at: float = 0.5
    gradual: Schedule | None = None
    scope: Scope = "global"
    keep_per_layer: int | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    recipe: Recipe = field(init=False, repr=False, compare=False)
    """The recipe of the same settings, whose stages the trainer trains."""

    def __post_init__(self) -> None:
        if not is_number(self.prune_at) or not 0 <= self.prune_at < 1:
            raise InputError(f"prune_at is {self.prune_at!r}; expected a number in [0, 1)")
        if (self.sparsity is None) == (self.nonzeros is None):
            raise InputError(
                f"sparsity is {self.sparsity!r}, nonzeros {self.nonzeros!r}; expected exactly one"
            )
        train = {name: getattr(self, name) for name in TRAIN}
        prune = {name: getattr(self, name) for name in PRUNE}
        object.__setattr__(self, "recipe", Recipe.parse({"train": train, "prune": prune}))
        penalty = self.recipe.train.penalty  # read from a table, if it was one
        for term in () if penalty is None else penalty.terms:
            if term.form == "loss":
                raise InputError(
                    f"{type(term).__name__} has the form 'loss', which a loop of your own adds to "
                    "the loss; take the form 'gradient', which has the same gradient"
                )
