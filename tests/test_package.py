"""The package as users get it: its wheel, and its command line without the extras."""

import inspect
import os
import shutil
import subprocess
import sys
import tomllib
import typing
import zipfile
from pathlib import Path

import pytest

import ellzero
from ellzero.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
EXTRAS = (
    "mlxtend",
    "pooch",
    "matplotlib",
    "jinja2",
    "pandas",
    "scipy",
    "sklearn",
    "requests",
    "hypothesis",
    "constriction",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "pytorch_lightning",
    "transformers",
    "accelerate",
    "skorch",
)


RETURNED = [
    (name, returned)
    for name in ellzero.__all__
    if inspect.isfunction(function := getattr(ellzero, name))
    # one class, or several of which it gives one
    for hint in [typing.get_type_hints(function).get("return")]
    for returned in typing.get_args(hint) or (hint,)
    if inspect.isclass(returned) and returned.__module__.startswith("ellzero.")
]


def run(*command: str | Path, **options) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def without(modules: tuple[str, ...], *arguments: str) -> str:
    """Standard output of `python -m ellzero` where importing one of the modules fails."""
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({modules}));"
        f"sys.argv[1:] = {arguments}; runpy.run_module('ellzero', run_name='__main__')"
    )
    return run(sys.executable, "-W", "error", "-c", code)


@pytest.mark.parametrize(("function", "returned"), RETURNED)
def test_what_a_public_function_returns_is_public_too(function, returned):
    assert getattr(ellzero, returned.__name__, None) is returned


def test_the_public_functions_return_classes_of_ellzero():
    assert {"compact", "compress", "evaluate", "prune", "quantize", "select"} <= {
        n for n, _ in RETURNED
    }


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ellzero.__version__ == project["version"]


def test_help_works_with_the_core_alone():
    assert "run" in without(EXTRAS, "--help")


def test_version_works_with_the_core_alone():
    assert ellzero.__version__ in without(EXTRAS, "--version")


def test_help_says_what_each_command_does_and_does_not_wait_for_torch(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    rows = without(("torch",), "--help").splitlines()
    described = {words[1]: words[2:-1] for row in rows if len(words := row.split()) > 3}
    assert " ".join(described["inspect"]) == (
        "Show a network layer by layer: shape, weights, nonzeros, density."
    )
    for command in COMMANDS:
        assert len(described[command.__name__]) > 5


def test_the_wheel_has_every_file_and_works_unpacked(tmp_path):
    # Built from a copy, because a build leaves its folders beside the sources.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", tmp_path, source)

    (wheel,) = tmp_path.glob("ellzero-*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    shipped = {path.relative_to(unpacked) for path in (unpacked / "ellzero").rglob("*.*")}
    written = {
        path.relative_to(source / "src") for path in (source / "src" / "ellzero").rglob("*.*")
    }
    assert shipped == written
    assert Path("ellzero/py.typed") in shipped

    # -P and the working folder keep the checkout out of sight; the unpacked wheel comes first.
    code = (
        "import ellzero, ellzero.networks.lenet as lenet; print(ellzero.__file__);"
        "print(ellzero.__version__, type(lenet.lenet_300_100()).__name__)"
    )
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    file, facts = run(sys.executable, "-P", "-c", code, env=environment, cwd=tmp_path).splitlines()
    assert Path(file).is_relative_to(unpacked)
    assert facts == f"{ellzero.__version__} LeNet300100"
