"""Which parameters a recipe penalizes and prunes, and why it leaves the others out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ellzero.recipe import Recipe
from ellzero.selection import Selection
from ellzero.weights import Weight, named_weights


@dataclass(frozen=True)
class Parameter:
    """A parameter of the network.

    Args:
        name: its first name.
        kind: of its layer, as `ez.select` has it.
        shape: of the tensor.
        count: of its numbers.
        penalized: by what, in the regularized training; by nothing where it is left out.
        pruned: whether it is.
        reason: why it is left out; empty where it is not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    count: int
    penalized: tuple[str, ...]
    pruned: bool
    reason: str


def parameters(model: nn.Module, selection: Selection, recipe: Recipe) -> Iterator[Parameter]:
    """Every parameter of a network, once, in its order; `selection` is what the recipe selects."""
    trains = recipe.train.file is None and recipe.train.epochs != 0
    methods = tuple(_acting(recipe)) if trains else ()
    order = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    weights = [weight for _, weight in named_weights(model)]
    for weight in sorted(weights, key=lambda weight: order[id(weight.parameter)]):
        is_selected = selection.name_of(weight.parameter) is not None
        yield Parameter(
            weight.name,
            weight.kind,
            tuple(weight.parameter.shape),
            weight.parameter.numel(),
            methods if is_selected else (),
            is_selected,
            "" if is_selected else _reason(weight, recipe),
        )


def _acting(recipe: Recipe) -> Iterator[str]:
    """The methods of the regularized training, without those that a 0 switches off."""
    train = recipe.to_table()["train"]
    for name, settings in {**train.get("penalty", {}), **train.get("gates", {})}.items():
        terms = settings if isinstance(settings, list) else [settings]
        if any(term.get("strength") != 0 and term.get("beta") != 0 for term in terms):
            yield name


def _reason(weight: Weight, recipe: Recipe) -> str:
    if not weight.parameter.requires_grad:
        return "frozen"
    if "bias" in weight.name.rpartition(".")[2]:
        return "bias"
    if weight.kind in ("embedding", "normalization"):
        return weight.kind
    return (
        "not in prune.include, or in prune.exclude"
        if (recipe.prune.include or recipe.prune.exclude)
        else "of a kind that is not known"
    )
