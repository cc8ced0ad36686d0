"""Masks in programs of several processes: DDP's replicas of a network have to be pruned alike.

DDP gives all ranks the weights of rank 0 when it wraps a network, and averages gradients from then
on. Masks that differ between ranks make weights differ, from the first step on and without a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ellzero.chunks import chunks
from ellzero.errors import InputError
from ellzero.selection import Selection
from ellzero.tensors import is_distributed


@torch.no_grad()
def require_replicas(weights: Selection, masks: Mapping[str, Tensor]) -> None:
    """Refuse to hold masks that are not those of the weights, or of another rank, under DDP.

    Nothing here waits for another rank, which need not hold masks at all. In a program of several
    processes each looks whether its own pruned weights are zero: they are not where ranks pruned
    other weights each and DDP then gave them those of rank 0. Where the weights were selected in a
    DDP model, ranks also compare their masks, through the store that they met by: the first to come
    to a hold leaves a digest there, the others compare theirs.

    Raises:
        InputError: one of these.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    for name, mask in masks.items():
        w = weights[name]
        if is_distributed(w):  # each part is there once, and has one mask
            continue
        if any(bool((part.ne(0) & ~kept).any()) for part, kept in chunks(w, mask)):
            raise InputError(
                f"{name} has weights that are not zero where the masks of rank {dist.get_rank()} "
                "prune them. DDP gives all ranks the weights of rank 0 when it wraps a network: "
                "prune it after that. Where these are the right masks, call masks.apply() first"
            )
    if weights.is_replicated:
        _require_equal(weights, masks)


def _require_equal(weights: Selection, masks: Mapping[str, Tensor]) -> None:
    """Compare the masks of this rank with those of the first rank that began the same hold."""
    content = hashlib.sha256()
    for name in weights:
        content.update(masks[name].contiguous().cpu().numpy().data)
    network = hashlib.sha256(repr([(n, tuple(w.shape)) for n, w in weights.items()]).encode())
    key = f"ellzero/masks/{network.hexdigest()}"
    store = dist.distributed_c10d._get_default_store()
    hold = store.add(f"{key}/rank-{dist.get_rank()}", 1)  # counts the holds of these weights
    digest = content.hexdigest()
    if store.compare_set(f"{key}/hold-{hold}", "", digest).decode() != digest:
        raise InputError(
            f"the masks of rank {dist.get_rank()} are not those of another rank, while DDP keeps "
            "the weights of all ranks equal; prune by the same numbers on all ranks"
        )
