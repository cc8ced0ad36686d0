"""Masks as integers, by which training steps multiply the weights: one fast pass, NaN included."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ellzero.chunks import chunks
from ellzero.selection import Selection
from ellzero.sharding import local
from ellzero.tensors import INTEGERS


class Bits:
    """Masks as 0 and 1, by which the bits of a weight are multiplied as an integer.

    0 times NaN is NaN, but 0 times its bits is 0; and a bool mask takes several times longer. Each
    is made at its first use, in the memory order and with the bytes of its weight. Of a sharded
    weight they are those of the part that is here.
    """

    def __init__(self, weights: Selection, masks: Mapping[str, Tensor]) -> None:
        self._weights, self._masks = weights, masks
        self._bits: dict[Tensor, Tensor] = {}
        self._views: dict[Tensor, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Bits:
        return Bits(copy.deepcopy(self._weights, memo), copy.deepcopy(self._masks, memo))

    def of(self, w: Tensor) -> Tensor | None:
        """The bits of a weight as it is now, of its shape here; None where it has no mask."""
        bits, dtype = self._bits.get(w), INTEGERS[w.dtype.itemsize]
        if bits is None or bits.dtype != dtype or bits.device != w.device:
            name = self._weights.name_of(w)
            if name is None:
                return None
            bits = torch.empty_like(local(w), dtype=dtype, requires_grad=False)
            self._bits[w] = bits.copy_(local(self._masks[name]))
        return bits

    @torch.no_grad()
    def apply(self, weights: Iterable[Tensor]) -> None:
        """Set to zero what is pruned of these weights, in place; others stay as they are."""
        masked = [(self._view(w, b), b) for w in weights if (b := self.of(w)) is not None]
        _multiply(masked)

    @torch.no_grad()
    def apply_to_gradients(self) -> None:
        """Set the gradients of pruned weights to zero.

        A sparse gradient stays as it is: what it moves is put right after the step.
        """
        masked = [
            (local(w.grad).view(b.dtype), b)
            for w in self._weights.values()
            if w.grad is not None
            and w.grad.layout is torch.strided
            and (b := self.of(w)) is not None
        ]
        _multiply(masked)

    def clear(self) -> None:
        """Forget what was made, as the masks are others now, or to free its memory."""
        self._bits, self._views = {}, {}

    def _view(self, w: Tensor, bits: Tensor) -> Tensor:
        """The weight as integers; made once, for that takes longer than to multiply a small one."""
        view, part = self._views.get(w), local(w)
        if view is None or view.data_ptr() != part.data_ptr() or view.dtype != bits.dtype:
            view = self._views[w] = part.detach().view(bits.dtype)
        return view


def _multiply(masked: list[tuple[Tensor, Tensor]]) -> None:
    if masked:
        torch._foreach_mul_(*map(list, zip(*masked, strict=True)))  # pyright: ignore[reportPrivateImportUsage]


@torch.no_grad()
def fill_zeros(w: Tensor, mask: Tensor) -> None:
    """Set a weight to zero where it is masked, in place; for once, as it makes no bits.

    Of a sharded weight that is the part which is here; the mask is sharded as it is.
    """
    for part, kept in chunks(local(w), local(mask)):
        part.masked_fill_(~kept, 0)
