"""Operations on sequences and axes in C against PyTorch, over random shapes, by both compilers."""

from __future__ import annotations

import pytest

from c_programs import by_each_compiler, check_networks, needs_gcc, random_network
from ellzero import operations as ops
from random_layouts import random_layouts
from recurrent_networks import random_recurrent

pytestmark = needs_gcc
STORAGES = ("smallest", "fastest", "dense")


def test_all_that_changes_a_layout_is_drawn():
    """What the random networks together have, and those that other tests have."""
    drawn = {
        type(node.op)
        for make in (random_layouts, random_network, random_recurrent)
        for seed in range(100, 220)
        for node in make(seed).graph.nodes
    }
    # test_c_layers.py and test_masks.py have these
    assert {*ops.OPERATIONS.values()} - drawn == {ops.Select, ops.Cast}


@pytest.mark.parametrize("storage", STORAGES)
def test_random_layouts(tmp_path, storage):
    seeds = range(STORAGES.index(storage), 30, 3)
    check_networks(tmp_path, {f"net{seed}": random_layouts(seed) for seed in seeds}, storage)


@pytest.mark.slow
@by_each_compiler
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("batch", range(4))
def test_many_random_layouts(tmp_path, storage, batch, compiler):
    seeds = range(100 + 30 * batch, 130 + 30 * batch)
    networks = {f"net{seed}": random_layouts(seed) for seed in seeds}
    check_networks(tmp_path, networks, storage, compiler)
