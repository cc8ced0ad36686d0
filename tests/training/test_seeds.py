"""Seeds: every epoch has its own stream, and the caller's states come back."""

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch

from ellzero.training.seeds import seed_epoch, settings

CPU = torch.device("cpu")


def numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return state[1].tolist()


def draws():
    return torch.rand(3).tolist() + np.random.rand(3).tolist() + [random.random()]


def test_each_epoch_has_its_own_numbers_and_the_same_ones_again():
    with settings(None, CPU):
        found = {}
        for key in itertools.product((0, 1), ("train", "finetune"), (1, 2), (0, 1, 11)):
            seed_epoch(*key)
            found[key] = draws()
        # all of torch's, numpy's and Python's numbers are different everywhere
        values = [value for numbers in found.values() for value in numbers]
        assert len(set(values)) == len(values)
        seed_epoch(1, "finetune", 2, 1)
        assert draws() == found[1, "finetune", 2, 1]


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_states_come_back(fails):
    threads = torch.get_num_threads()
    states = torch.get_rng_state(), numpy_state(), random.getstate()
    try:
        with settings(threads + 1, CPU):
            assert torch.get_num_threads() == threads + 1
            seed_epoch(0, "train", 0, 0)
            draws()
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy_state() == states[1]
    assert random.getstate() == states[2]
