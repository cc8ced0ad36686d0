"""The exact selection of the largest magnitudes, of plain and sharded tensors together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ellzero.chunks import ordered_chunks
from ellzero.errors import InputError
from ellzero.sharding import before_and_total, group_of, like, local, nonzeros, summed
from ellzero.tensors import INTEGERS

CHUNK = 1 << 20  # weights looked at in one go, so that no copy of a large tensor is made

DIGIT_BITS = 16  # of the radix selection: a histogram of 65,536 counts a pass


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
        return [above(w, 0) for w in tensors]
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
        counts = dict(zip(masks, nonzeros([*masks.values()]), strict=True))
        short = [i for i in free if counts[i] < least[i]]
        if not short:
            return [(fixed | masks)[index] for index in range(len(tensors))]
        fixed |= {index: largest([tensors[index]], least[index])[0] for index in short}


def above(w: Tensor, threshold: float) -> Tensor:
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
