"""Randomness: reseeded at every epoch, so that there is no random state to store or to resume."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_epoch(seed: int, stage: str, round_: int, epoch: int) -> None:
    """Seed torch, numpy and Python for one epoch; each (stage, round, epoch) has its own stream."""
    digest = hashlib.sha256(f"{seed}/{stage}/{round_}/{epoch}".encode()).digest()
    number = int.from_bytes(digest[:4], "little")
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


@contextmanager
def settings(threads: int | None, device: torch.device) -> Iterator[None]:
    """Settings for a training on this thread; the caller gets its own back when the block ends.

    Strong penalties leave thousands of weights below 1e-38, which a CPU computes with many times
    slower than with others; inside the block it takes them for zero.
    """
    before = torch.get_num_threads()
    flushed = bool(torch.full((), 1e-39) * 1 == 0)
    torch.set_flush_denormal(True)
    numpy_state, python_state = np.random.get_state(), random.getstate()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(before)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
