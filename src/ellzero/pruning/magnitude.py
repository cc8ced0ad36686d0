"""Magnitude pruning: the small weights go, and the count of those that stay is exact."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from numbers import Integral
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ellzero.chunks import ordered_chunks
from ellzero.errors import InputError, is_number, warn
from ellzero.pruning.masks import Masks
from ellzero.selection import Selection, selected
from ellzero.sharding import before_and_total, group_of, like, local, summed
from ellzero.sharding import nonzeros as nonzeros_of
from ellzero.tensors import INTEGERS

Scope = Literal["global", "layer"]

CHUNK = 1 << 20  # weights looked at in one go, so that no copy of a large tensor is made
LISTED = 10  # layers that a warning names

DIGIT_BITS = 16  # of the radix selection: a histogram of 65,536 counts a pass


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
        kept = [_above(w, float(threshold)) for w in tensors]
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
    if not is_number(sparsity) or not 0 <= sparsity < 1:
        raise InputError(f"sparsity is {sparsity!r}; expected a number in [0, 1)")
    return max(numel - round(sparsity * numel), min(numel, 1))


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


@torch.no_grad()
def largest(
    tensors: Sequence[Tensor], count: int, least: Sequence[int] | None = None
) -> list[Tensor]:
    """Masks of the `count` entries of largest magnitude among all tensors together.

    Where a tensor is to keep at least so many, its largest ones count first, and what is left goes
    to the others.

    Exact: ties go to the earlier tensor and the lower flat index. Zeros are never kept, so fewer
    than `count` are marked where fewer are nonzero. Nothing larger than a chunk is made beside the
    masks, and weights in float32 are read three times. Sharded tensors are ranked together over all
    ranks, which have to call this together; what they exchange are histograms.

    Args:
        tensors: of floating dtype and any shape; finite. Those that are not sharded are the same on
            all ranks.
        count: how many to mark, >= 0.
        least: how many at least of each tensor.

    Returns:
        Bool tensors of the shapes given, sharded alike, True = among the largest.

    Raises:
        InputError: fewer are to be marked than the tensors are to keep together.
    """
    if least is not None and any(least):
        return _largest_with(tensors, count, least)
    numel = sum(w.numel() for w in tensors)
    if count == 0 or numel == 0:
        return [like(_zeros(local(w)), w) for w in tensors]
    dtype = tensors[0].dtype
    for w in tensors[1:]:
        dtype = torch.promote_types(dtype, w.dtype)
    bound, ties, equals = _kth_largest(tensors, min(count, numel), dtype)
    if not _as_number(bound, dtype) > 0:
        return [_above(w, 0) for w in tensors]
    masks = []
    all_stay = ties == equals  # the rule: without ties there is one
    parts = [local(w) for w in tensors]
    counts = {} if all_stay else _ties_of_shards(tensors, bound, dtype)
    for w, part in zip(tensors, parts, strict=True):
        if all_stay:
            mask, _ = _marked(part, bound, dtype, None)
        elif w in counts:
            before, in_all = counts[w]
            mask, _ = _marked(part, bound, dtype, max(ties - before, 0))
            ties = max(ties - in_all, 0)
        else:
            mask, marked = _marked(part, bound, dtype, ties)
            ties -= marked
        masks.append(like(mask, w))
    return masks


def _marked(w: Tensor, bound: int, dtype: torch.dtype, ties: int | None) -> tuple[Tensor, int]:
    """The mask of magnitudes above a bound, given by its bits, and of the first ones equal to it.

    Args:
        w: a plain tensor.
        bound: the bits of the magnitude, in this dtype.
        dtype: the widest of all tensors.
        ties: how many of those equal to it are marked; None for all.

    Returns:
        The mask, and how many equal ones it marks of those that were counted.
    """
    mask, left = _zeros(w), ties
    for kept, part in _with_blocks(mask, w):
        bits = _magnitude_bits(part, dtype)
        if left is None:
            torch.ge(bits, bound, out=kept)
            continue
        torch.gt(bits, bound, out=kept)
        if left:
            equal = (bits == bound).nonzero().view(-1)[:left]
            kept[equal] = True
            left -= len(equal)
    return mask, (ties or 0) - (left or 0)


def _ties_of_shards(
    tensors: Sequence[Tensor], bound: int, dtype: torch.dtype
) -> dict[Tensor, tuple[int, int]]:
    """Of each sharded tensor, how many entries equal the bound on the ranks before, and on all."""
    sharded = [w for w in tensors if group_of(w) is not None]
    counts = []
    for w in sharded:
        count = torch.zeros((), dtype=torch.int64, device=w.device)
        for part in ordered_chunks(local(w), CHUNK):
            count += (_magnitude_bits(part, dtype) == bound).count_nonzero()
        counts.append(count)
    return dict(zip(sharded, before_and_total(counts, sharded), strict=True))


def _largest_with(tensors: Sequence[Tensor], count: int, least: Sequence[int]) -> list[Tensor]:
    """As `largest`, but of each tensor at least so many."""
    if sum(least) > count:
        raise InputError(
            f"{count} weights are to stay, but {sum(least)} to be kept of the layers; keep more in "
            "all, or fewer of each layer"
        )
    fixed: dict[int, Tensor] = {}
    while True:  # each pass fixes a tensor at least, or ends
        free = [index for index in range(len(tensors)) if index not in fixed]
        left = count - sum(least[index] for index in fixed)
        masks = dict(zip(free, largest([tensors[index] for index in free], left), strict=True))
        counts = dict(zip(masks, nonzeros_of([*masks.values()]), strict=True))
        short = [i for i in free if counts[i] < least[i]]
        if not short:
            return [(fixed | masks)[index] for index in range(len(tensors))]
        fixed |= {index: largest([tensors[index]], least[index])[0] for index in short}


def _has_bad(w: Tensor) -> Tensor:
    """1 where a weight is NaN or infinite among these, 0 else: a 0-d tensor."""
    if not w.numel():
        return torch.zeros((), dtype=torch.int64, device=w.device)
    # the smallest and the largest are NaN as soon as one weight is
    return torch.stack(torch.aminmax(w)).isfinite().logical_not().any().long()


def _above(w: Tensor, threshold: float) -> Tensor:
    """The mask of magnitudes above a threshold, which need not be a number of the weights' dtype.

    A magnitude is above it where it is above the largest number of the dtype that is not.
    """
    bound = torch.tensor(threshold, dtype=torch.float64).to(w.dtype)
    if bound.double() > threshold:  # rounded up: the next one below is one less in its bits
        bound = _as_number(int(bound.view(INTEGERS[w.dtype.itemsize])) - 1, w.dtype)
    mask = _zeros(local(w))
    for kept, part in _with_blocks(mask, local(w)):
        torch.gt(part.abs(), float(bound), out=kept)
    return like(mask, w)


def _zeros(w: Tensor) -> Tensor:
    """A mask that keeps nothing, in the order of flat indices."""
    return torch.zeros(w.shape, dtype=torch.bool, device=w.device)


def _with_blocks(mask: Tensor, w: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of a weight, each with its part of a contiguous mask to write to."""
    flat, start = mask.view(-1), 0
    for part in ordered_chunks(w.detach(), CHUNK):
        yield flat[start : start + len(part)], part
        start += len(part)


def _kth_largest(tensors: Sequence[Tensor], count: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """The bits of the count-th largest magnitude, how many equal to it are to stay, and exist.

    A radix selection: magnitudes order as the integers that their bits spell, so histograms of one
    digit after the other, from the top, narrow the value down.
    """
    prefix, left, equals = 0, count, 0
    # one tensor of each group of ranks that tensors are sharded over stands for them all
    groups = {group_of(w): w for w in tensors}
    for shift in range(dtype.itemsize * 8 - DIGIT_BITS, -1, -DIGIT_BITS):
        histograms = {group: torch.zeros(1 << DIGIT_BITS, dtype=torch.int64) for group in groups}
        for w in tensors:
            counts = torch.zeros(1 << DIGIT_BITS, dtype=torch.int64, device=w.device)
            for part in ordered_chunks(local(w).detach(), CHUNK):
                digits = _magnitude_bits(part, dtype)
                # the first digit has nothing above it; a shift by the full width is undefined
                if shift + DIGIT_BITS < dtype.itemsize * 8:
                    digits = digits[(digits >> (shift + DIGIT_BITS)) == prefix]
                if shift:
                    digits = digits >> shift
                if prefix:
                    digits = digits & ((1 << DIGIT_BITS) - 1)
                counts += torch.bincount(digits, minlength=1 << DIGIT_BITS)
            histograms[group_of(w)] += counts.cpu()
        histogram = sum(summed([*histograms.values()], [*groups.values()]))
        assert isinstance(histogram, Tensor)
        at_least = histogram.flip(0).cumsum(0).flip(0)  # entries whose digit is this one or higher
        digit = int((at_least >= left).nonzero()[-1])
        equals = int(histogram[digit])
        left -= int(at_least[digit]) - equals
        prefix = (prefix << DIGIT_BITS) | digit
    return prefix, left, equals


def _as_number(bits: int, dtype: torch.dtype) -> Tensor:
    """The number that bits spell, 0-d: a denormal one is 0 to a thread that flushes them."""
    return torch.tensor(bits, dtype=INTEGERS[dtype.itemsize]).view(dtype)


def _magnitude_bits(part: Tensor, dtype: torch.dtype) -> Tensor:
    """The integers that the bits of `|w|` spell."""
    return part.to(dtype).abs().view(INTEGERS[dtype.itemsize])
