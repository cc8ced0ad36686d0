"""Only the core is installed: every command works, or names the extra that it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import MODULE

EXTRAS = [
    *("mlxtend", "pandas", "PIL", "pooch"),
    *("matplotlib", "constriction", "onnx", "onnxscript", "onnxruntime", "scipy"),
    *("ray", "tensorboard", "pytorch_lightning", "transformers", "accelerate", "sklearn"),
]
"""The packages that the extras bring; jinja2 comes with torch."""

RECIPE = """
model = "own_project:network"
data = "own_project:data"
reference.epochs = 1
train.epochs = 1
finetune.epochs = 1
prune.sparsity = 0.5
"""

STUDY = """
seeds = [0]
sparsities = [0.5]
methods.magnitude = {}
recipe = {model = "own_project:network", data = "own_project:data"}
"""

PROGRAM = """
import contextlib, io, json, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        blocked = name.partition(".")[0] in BLOCKED
        return None if blocked else super().find_spec(name, path, target)

BLOCKED, COMMANDS = json.loads(sys.argv[1])
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from ellzero.cli.app import main
told = []
for command in COMMANDS:
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(command.split())
        except SystemExit as stop:
            lines = [x for x in err.getvalue().splitlines() if "warning: " not in x]
            told.append([stop.code, lines])
print(json.dumps(told))
"""

WORKS = (
    "run mine.toml --output done",
    "evaluate done",
    "inspect done",
    "export done --c done-c",
    "run --help",
    "--version",
)

NEEDS = {
    "run": "pip install 'ellzero[data]'",
    "run mine.toml --set data=mnist-5k": "pip install 'ellzero[data]'",
    "run mine.toml --set data={name='image-folder',path='images'}": "pip install 'ellzero[data]'",
    "run mine.toml --set tensorboard=true": "pip install 'ellzero[tensorboard]'",
    "report done": "pip install 'ellzero[report]'",
    "compare study.toml": "pip install 'ellzero[report]'",
    "export done --onnx done.onnx": "pip install 'ellzero[export]'",
    "export done --ellz both.ellz --onnx both.onnx": "pip install 'ellzero[export]'",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    """The exit code and the lines of each command, in one process that finds no extra."""
    folder: Path = tmp_path_factory.mktemp("core")
    (folder / "own_project.py").write_text(MODULE)
    (folder / "mine.toml").write_text(RECIPE)
    (folder / "study.toml").write_text(STUDY)
    for name in ("train/a", "train/b"):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "1.png").write_bytes(b"no picture")
    commands = [*WORKS, *NEEDS]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([EXTRAS, commands])],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (folder / "both.ellz").exists()  # what cannot be written whole is not begun
    return dict(zip(commands, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("command", WORKS)
def test_the_core_alone_is_enough(command, told):
    assert told[command] == (0, [])


@pytest.mark.parametrize("command", NEEDS)
def test_what_needs_an_extra_names_it(command, told):
    code, lines = told[command]
    assert code == 1
    assert len(lines) == 1, lines
    assert NEEDS[command] in lines[0]
