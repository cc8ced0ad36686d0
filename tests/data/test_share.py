"""Shares of batches: every example counts once, whatever the number of processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ellzero.data.batch import Batch
from ellzero.data.share import Share, drawn_alike


@given(length=st.integers(1, 40), ranks=st.integers(1, 9), least=st.integers(1, 2))
def test_each_example_counts_at_one_process_and_none_computes_too_few(length, ranks, least):
    counted: list[int] = []
    sizes = []
    for rank in range(ranks):
        share = Share(rank, ranks, least)
        mine = range(length)[share.of(length)]
        assert len(mine) >= min(least, length)
        if share.counts(length):
            counted += mine
            sizes.append(len(mine))
    assert counted == list(range(length))
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_is_cut_with_its_weights():
    batch = Batch(torch.arange(5), torch.arange(5) * 10, torch.arange(5.0))
    cut = Share(1, 2).cut(batch)
    assert (cut.inputs.tolist(), cut.targets.tolist()) == ([3, 4], [30, 40])
    assert cut.weights is not None
    assert cut.weights.tolist() == [3.0, 4.0]
    assert cut.counts
    assert not Share(2, 3).cut(batch.each(lambda x: x[:2])).counts


@pytest.mark.parametrize("between", [0, 3])
def test_batches_are_drawn_alike_whatever_is_drawn_between_them(between):
    def batches():
        for _ in range(3):
            yield Batch(torch.rand(2), torch.rand(2))

    drawn = []
    for amount in (1, between):
        torch.manual_seed(0)
        drawn.append([])
        for batch in drawn_alike(batches()):
            drawn[-1].append(batch.inputs)
            torch.rand(amount)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
