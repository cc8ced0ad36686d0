"""A disk that is full, memory that ends: one line, which says what is kept and how to go on."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ellzero.run_folder import CHECKPOINT, MODEL, PREVIOUS, RECIPE, RECORD, WRITTEN

Fill = Callable[[str], Callable[[], None]]


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Lets the disk be full from the write of a file on; gives what makes room again."""
    replace = os.replace

    def fill(name: str) -> Callable[[], None]:
        full = False

        def replacing(source: Path, target: Path) -> None:
            nonlocal full
            full = full or target.name == name
            if full and source.name.startswith(f".{target.name}."):  # a name alone takes no room
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        monkeypatch.setattr(os, "replace", replacing)
        return lambda: monkeypatch.setattr(os, "replace", replace)

    return fill


def expected(name: str) -> str:
    """What a run says that finds the disk full when it writes a file."""
    kept = f"made/{CHECKPOINT} is saved, go on with `ellzero run --resume made`"
    if name == RECIPE:
        kept = "nothing was saved yet in made"
    if name in (RECORD, CHECKPOINT):
        kept = "nothing was saved yet, `ellzero run --resume made` begins anew"
    return f"ellzero: cannot write made/{name}: No space left on device; {kept}"


def lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if not line.startswith("ellzero: warning: ")]


@pytest.mark.filterwarnings("ignore:made has no checkpoint:ellzero.errors.EllzeroWarning")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == MODEL else pytest.mark.slow)
        for name in WRITTEN
        if name != PREVIOUS  # which is only given its name
    ],
)
def test_a_full_disk_is_one_line_that_says_how_to_go_on(name, ellzero, project, fill):
    assert ellzero("run", "mine.toml", "--output", "undisturbed", "--json").code == 0
    free = fill(name)
    run = ellzero("run", "mine.toml", "--output", "made", "--json")
    assert (run.code, run.out, lines(run.err)) == (1, "", [expected(name)])
    assert not list(Path("made").glob(".*"))
    free()
    again = ("mine.toml", "--output") if name == RECIPE else ("--resume",)
    assert ellzero("run", *again, "made", "--json").code == 0
    assert Path("made", MODEL).read_bytes() == Path("undisturbed", MODEL).read_bytes()


STUDY = """
seeds = [0]
sparsities = [0.5]
methods.magnitude = {}
recipe = {model = "own_project:network", data = "own_project:data"}
"""


def test_a_full_disk_of_a_study_is_one_line_that_says_how_to_go_on(ellzero, project, fill):
    Path("mine-study.toml").write_text(STUDY)
    fill("study.toml")
    line = ellzero("compare", "mine-study.toml", "--output", "made").says()
    assert line == (
        "ellzero: cannot write made/study.toml: No space left on device; made keeps what is done, "
        "and the same command goes on"
    )


GREEDY = """
class Greedy(nn.Linear):
    def forward(self, x):
        if self.training:
            {}
        return super().forward(x)

def greedy():
    return nn.Sequential(Greedy(6, 16), nn.ReLU(), nn.Linear(16, 3))
"""


@pytest.mark.parametrize(
    ("allocation", "message"),
    [
        ("bytearray(10**18)", ""),
        ("torch.empty(10**15)", ": [^;]*DefaultCPUAllocator: can't allocate memory[^;]*"),
        ("raise torch.OutOfMemoryError('CUDA out of memory.')", ": CUDA out of memory."),
    ],
)
def test_memory_that_ends_is_one_line(allocation, message, ellzero, project):
    with Path("own_project.py").open("a") as module:
        module.write(GREEDY.format(allocation))
    options = ("--set", "model=own_project:greedy", "--output", "made")
    line = ellzero("run", "mine.toml", *options).says()
    kept = "made/checkpoint.safetensors is saved, go on with `ellzero run --resume made`"
    assert re.fullmatch(f"ellzero: out of memory{message}; {kept}", line), line
    record = json.loads(Path("made", RECORD).read_text())
    assert record["status"] == "failed"
    assert record["error"]
