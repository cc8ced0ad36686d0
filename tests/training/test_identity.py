"""Which run a file is of: a network that a study's cell starts from is the one it is taken for."""

from pathlib import Path
from typing import Any

import pytest

import ellzero as ez
from ellzero.errors import InputError
from ellzero.model_file import read_metadata
from ellzero.training.identity import require_origin
from small import classification, mlp, recipe

NAMED = {
    "name": "reference-seed0",
    "model": {"name": "lenet-300-100", "dropout": 0.1},
    "data": {"name": "mnist", "data_root": "here"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run whose recipe names a network and data, which `compress` does not look at."""
    folder = tmp_path_factory.mktemp("origin") / "run"
    ez.compress(mlp(), classification(), recipe(**NAMED), folder=folder)
    return folder


@pytest.mark.parametrize("name", ["reference.safetensors", "trained.safetensors"])
def test_a_file_of_the_run_it_is_taken_for(name, folder):
    elsewhere = {**NAMED, "name": "cell", "data": {"name": "mnist", "data_root": "there"}}
    require_origin(folder / name, "reference-seed0", recipe(**elsewhere))


@pytest.mark.parametrize(
    ("name", "tables", "said"),
    [
        ("reference-seed1", {}, "its recipe is 'reference-seed0'; expected 'reference-seed1'"),
        ("reference-seed0", {"seed": 1}, "its seed is 0; expected 1"),
        ("reference-seed0", {"model": "lenet-300-100"}, "its network is {.*0.1}; expected {.*}"),
        ("reference-seed0", {"data": "fashion-mnist"}, "its data is {.*'mnist'.*expected .*fash"),
    ],
)
def test_a_file_of_another_run_is_refused(
    name: str, tables: dict[str, Any], said: str, folder: Path
):
    for file in ("reference.safetensors", "trained.safetensors"):
        with pytest.raises(InputError, match=rf"{file} says that {said}.* It is of another run"):
            require_origin(folder / file, name, recipe(**{**NAMED, **tables}))


def test_the_result_does_not_say_it_so_its_bytes_are_what_they_were(folder):
    assert {"recipe", "seed"} & read_metadata(folder / "model.safetensors").keys() == set()


def test_a_file_that_says_nothing_is_taken(tmp_path):
    ez.save(mlp(), tmp_path / "given.safetensors")
    require_origin(tmp_path / "given.safetensors", "reference-seed0", recipe(**NAMED))
