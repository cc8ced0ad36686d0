"""Magnitude pruning: the small weights go, and the count of those that stay is exact."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ellzero.errors import InputError, is_number, warn
from ellzero.pruning.masks import Masks
from ellzero.pruning.ranking import above, largest
from ellzero.selection import Selection, selected
from ellzero.sharding import like, local, summed
from ellzero.sharding import nonzeros as nonzeros_of

Scope = Literal["global", "layer"]

LISTED = 10  # layers that a warning names


def prune(
    model: nn.Module,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    nonzeros: int | None = None,
    scope: Scope = "global",
    keep_per_layer: int | None = None,
    weights: Selection | None = None,
) -> Masks:
    """Set the weights of smallest magnitude to zero, and return the masks of what is left.

    Exactly one of the three says how far to go. The count is exact, ties included: among equal
    magnitudes those that come first in the network stay. Weights that are zero already are never
    kept; where fewer are nonzero than asked for, a warning says so and the mask is the nonzeros. A
    sparse network can be pruned further. A warning names the layers of which nothing is left.

    Weights that FSDP2 shards are ranked over all ranks, which have to call this together: the masks
    are those of one process. The network that DDP wraps is pruned on each rank by itself; as its
    weights are equal, the masks are.

    Args:
        model: the network; its selected weights change in place.
        sparsity: fraction of zeros in [0, 1); of n weights `round(sparsity n)` go, never all.
        threshold: weights with `|w| <= threshold` go.
        nonzeros: count of weights that stay, at least 1.
        scope: `"global"` ranks all selected weights together; `"layer"` prunes each layer to the
            sparsity on its own.
        keep_per_layer: of each layer at least so many weights stay, its largest, or all nonzeros of
            a layer that has fewer; the others make up for it, so that the count stays exact (with a
            threshold it grows).
        weights: what is pruned, from `ez.select`; by default what it selects by default.

    Returns:
        Masks, True = keep.

    Raises:
        InputError: none or several of the three; one out of range; a weight that is NaN; weights of
            another network; fewer weights than weight normalization needs, one a row, or than are
            to be kept of the layers.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[0.5, -3.0, 0.1, 2.0]]))
        >>> masks = ez.prune(model, sparsity=0.5)
        >>> model.weight.data
        tensor([[ 0., -3.,  0.,  2.]])
    """
    weights = selected(model, weights)
    asked = {"sparsity": sparsity, "threshold": threshold, "nonzeros": nonzeros}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            f"prune got {' and '.join(given) or 'nothing to go by'}; "
            "expected exactly one of sparsity, threshold, nonzeros"
        )
    if scope not in get_args(Scope):
        raise InputError(f"scope is {scope!r}; expected 'global' or 'layer'")

    least = minimums(weights.values(), keep_per_layer)

    bad = summed([_has_bad(local(w).detach()) for w in weights.values()], [*weights.values()])
    for (name, w), is_bad in zip(weights.items(), bad, strict=True):
        if is_bad:
            raise InputError(f"{name} {tuple(w.shape)} holds NaN or inf; it cannot be ranked")

    if threshold is not None:
        if not is_number(threshold) or not 0 <= threshold < math.inf:
            raise InputError(f"threshold is {threshold!r}; expected a finite number >= 0")
        tensors = ranked(weights)
        kept = [above(w, float(threshold)) for w in tensors]
        for index, (count, fewest) in enumerate(zip(nonzeros_of(kept), least, strict=True)):
            if count < fewest:
                kept[index] = largest([tensors[index]], fewest)[0]
        wanted = sum(nonzeros_of(kept))
    elif scope == "layer":
        if sparsity is None:
            raise InputError("nonzeros counts over all layers; with scope='layer' give sparsity")
        counts = [kept_count(w.numel(), sparsity) for w in weights.values()]
        counts = [max(pair) for pair in zip(counts, least, strict=True)]
        kept = [largest([w], n)[0] for w, n in zip(ranked(weights, *counts), counts, strict=True)]
        wanted = sum(counts)
    else:
        wanted = nonzeros if sparsity is None else kept_count(weights.numel, sparsity)
        if isinstance(wanted, Integral) and not isinstance(wanted, bool):
            wanted = int(wanted)  # numpy's integers are no int
        if type(wanted) is not int or not 1 <= wanted <= weights.numel:
            raise InputError(
                f"nonzeros is {wanted!r}; expected a whole number in 1..{weights.numel}"
            )
        kept = largest(ranked(weights, wanted), wanted, least)

    masks = Masks(weights, dict(zip(weights, kept, strict=True)))
    counts = dict(zip(masks, nonzeros_of(kept), strict=True))
    total = sum(counts.values())
    if total < wanted:
        warn(f"{wanted} weights were to be kept, but only {total} are nonzero; the mask is those")
    empty = [name for name, mask in masks.items() if mask.numel() and not counts[name]]
    if empty:
        shown = ", ".join(empty[:LISTED]) + ", ..." * (len(empty) > LISTED)
        warn(
            f"{len(empty)} of {len(masks)} layers have no weight left: {shown}; what they give is "
            "the same for every input. keep_per_layer=1 keeps a weight of each"
        )
    masks.apply()
    return masks


def minimums(weights: Collection[Tensor], keep_per_layer: int | None) -> list[int]:
    """How many have to stay of each layer.

    Raises:
        InputError: a number that is none.

    Example:
        >>> minimums([torch.zeros(3, 2), torch.zeros(1, 2)], 4)
        [4, 2]
    """
    count = 0 if keep_per_layer is None else keep_per_layer
    if type(count) is not int or count < 0:
        raise InputError(f"keep_per_layer is {count!r}; expected a whole number >= 0")
    return [min(count, w.numel()) for w in weights]


def kept_count(numel: int, sparsity: float) -> int:
    """How many of `numel` weights stay at a sparsity in [0, 1): all but `round(sparsity numel)`.

    At least one stays, unless there are none.

    Raises:
        InputError: a sparsity outside [0, 1).

    Example:
        >>> kept_count(1000, 0.985)
        15
    """
    require_sparsity(sparsity)
    return max(numel - round(sparsity * numel), min(numel, 1))


def require_sparsity(sparsity: float) -> None:
    """Make sure that a number is a sparsity.

    Raises:
        InputError: it is outside [0, 1); of a percentage with the fraction that it is.

    Example:
        >>> require_sparsity(98)
        Traceback (most recent call last):
        ellzero.errors.InputError: sparsity is 98; expected a number in [0, 1); did you mean 0.98?
    """
    if is_number(sparsity) and 0 <= sparsity < 1:
        return
    percent = is_number(sparsity) and 10 <= sparsity < 100
    meant = f"; did you mean {sparsity / 100:g}?" if percent else ""
    raise InputError(f"sparsity is {sparsity!r}; expected a number in [0, 1){meant}")


@torch.no_grad()
def ranked(weights: Selection, *counts: int) -> list[Tensor]:
    """The weights as pruning ranks them: where none may go, as large as can be.

    Weight normalization divides each row by its norm, so the largest weight of each row stays.

    Args:
        weights: the selected weights.
        counts: how many are to stay, of each weight or, where it is one number, of all.

    Raises:
        InputError: fewer are to stay than have to.
    """
    needed = least(weights)
    for count, stays in zip(counts, [sum(needed)] if len(counts) == 1 else needed, strict=False):
        if count < stays:
            raise InputError(
                f"{count} weights are to stay, but under weight normalization {stays} rows need "
                "one each, or they are NaN; keep more, or remove it before pruning "
                "(torch.nn.utils.parametrize.remove_parametrizations)"
            )
    tensors = []
    for weight in weights.weights:
        w = weight.parameter.detach()
        if weight.normalized and w.numel():
            part = local(w)
            magnitudes = part.abs()
            top = magnitudes == magnitudes.amax(weight.normalized, keepdim=True)
            w = like(part.masked_fill(top & (part != 0), torch.finfo(w.dtype).max), w)
        tensors.append(w)
    return tensors


def least(weights: Selection) -> list[int]:
    """How many have to stay of each weight: one for each norm that normalization divides by."""
    return [
        math.prod(n for d, n in enumerate(w.parameter.shape) if d not in w.normalized)
        if w.normalized and w.parameter.numel()
        else 0
        for w in weights.weights
    ]


def _has_bad(w: Tensor) -> Tensor:
    """1 where a weight is NaN or infinite among these, 0 else: a 0-d tensor."""
    if not w.numel():
        return torch.zeros((), dtype=torch.int64, device=w.device)
    # the smallest and the largest are NaN as soon as one weight is
    return torch.stack(torch.aminmax(w)).isfinite().logical_not().any().long()
