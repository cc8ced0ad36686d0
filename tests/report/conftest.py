"""A small study and a run in it, made once; each test gets a copy to spoil."""

import shutil
from pathlib import Path

import pytest

import ellzero as ez
from ellzero.study.results import cell_folder, reference_folder
from ellzero.study.study import Study
from small import classification, mlp

LABEL = 'l1 <script>alert("x")</script> | $x_$'


def study() -> Study:
    return Study.parse(
        {
            "name": "small",
            "seeds": [0, 1],
            "sparsities": [0.5, 0.75],
            "recipe": {
                "device": "cpu",
                "reference": {"epochs": 3},
                "train": {"epochs": 3, "batch_size": 16, "learning_rate": 0.02},
                "finetune": {"epochs": 2},
            },
            "methods": {
                "magnitude": {},
                "l1": {"label": LABEL, "strengths": [1e-4, 1e-2]},
                "l0+l2": {"strengths": [1e-4, 1e-2]},
                "hoyer-square": {"strengths": [1e-4, 1e-3]},
                "hard-concrete": {"strengths": [1e-4, 1e-3]},
            },
        }
    )


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "small"
    folder.mkdir()
    told, data = study(), classification()
    (folder / "study.toml").write_text(told.to_toml())
    (folder / "cells").mkdir()
    for seed in told.seeds:
        run = reference_folder(folder, seed)
        ez.compress(mlp(seed=seed), data, told.reference_recipe(seed), folder=run)
    for cell in told.cells():
        dense = reference_folder(folder, cell.training.seed) / "reference.safetensors"
        model = mlp(seed=cell.training.seed)
        recipe, run = told.cell_recipe(cell), cell_folder(folder, cell)
        ez.compress(model, data, recipe, reference=dense, folder=run)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A study's folder."""
    return shutil.copytree(made, tmp_path / "small")


@pytest.fixture
def run(folder: Path) -> Path:
    """A run's folder."""
    return folder / "cells" / "l0+l2-0.01-seed0-sparsity-0.75"


@pytest.fixture
def label() -> str:
    """What one of the methods is called."""
    return LABEL
