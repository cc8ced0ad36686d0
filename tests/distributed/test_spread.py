"""A whole run in two processes lies within the spread of what seeds come to in one."""

from __future__ import annotations

import warnings
from importlib.resources import files
from pathlib import Path

import pytest

import ellzero as ez
from ellzero.errors import EllzeroWarning
from ellzero.factories import build_data, build_model

LENGTHS = ["reference.epochs=4", "train.epochs=8", "finetune.epochs=4", "threads=1", "device='cpu'"]


def _test_score(seed: int) -> float:
    demo = Path(str(files("ellzero") / "demo.toml"))
    recipe = ez.Recipe.read(demo, [*LENGTHS, f"seed={seed}"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EllzeroWarning)
        model = build_model(recipe.model, seed)
        result = ez.compress(model, build_data(recipe.data), recipe)
    test = result.record.compressed.test
    assert test is not None
    return test.score


@pytest.mark.slow
def test_a_run_on_digits_in_two_processes_is_one_among_those_of_other_seeds(run_in):
    alone = [_test_score(seed) for seed in range(3)]
    first, second = run_in(2, _test_score, 0, timeout=300)
    assert first == second
    spread = max(alone) - min(alone)
    assert min(alone) - spread <= first <= max(alone) + spread, (alone, first)
