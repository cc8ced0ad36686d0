"""The processes that the other tests here run in."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from ranks import RankError


def _sum_of_ranks(base: int) -> tuple[int, int, int]:
    total = torch.tensor(base + dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), int(total)


def _raise_on_the_last() -> None:
    if dist.get_rank() == dist.get_world_size() - 1:
        raise KeyError("a key of rank 1")
    dist.barrier()


def _killed() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def _sleep() -> None:
    time.sleep(30)


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_run_in_one_group(run_in, size):
    total = sum(range(10, 10 + size))
    assert run_in(size, _sum_of_ranks, 10) == [(rank, size, total) for rank in range(size)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_raise_on_the_last, r"(?s)rank 1 of 2 failed.*_raise_on_the_last.*KeyError: 'a key"),
        (_killed, "rank 1 ended with exit code -9"),
    ],
)
def test_what_fails_in_a_rank_is_told_and_the_next_call_works(run_in, function, message):
    with pytest.raises(RankError, match=message):
        run_in(2, function)
    assert len(run_in(2, _sum_of_ranks, 0)) == 2


def test_a_rank_that_hangs_is_ended(run_in):
    run_in(2, _sum_of_ranks, 0)  # so that no time goes to the start of the processes
    with pytest.raises(RankError, match=r"ranks \[0, 1\] took too long"):
        run_in(2, _sleep, timeout=0.2)
