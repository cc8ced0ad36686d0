"""Studies that are killed, or of which cells fail: what stays, and what the next call does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import ellzero as ez
from ellzero.recipe import Recipe
from ellzero.run_folder import locked
from ellzero.study.results import Results
from ellzero.study.worker import run_cell
from own_study import a_study, assert_equal_networks, figures, records, stamps

KEYS: dict[str, Any] = {
    "seeds": [0, 1],
    "sparsities": [0.75, 0.9],
    "methods": {"magnitude": {}, "gradual": {}, "l1": {"strengths": [1e-4, 3e-2]}},
}

SCRIPT = """
import sys
import ellzero as ez
try:
    ez.compare(ez.Study.read(sys.argv[2]), sys.argv[1], workers=2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def whole(project):
    """What the study comes to if nothing happens to it."""
    (project / "compare.py").write_text(SCRIPT)
    study = a_study(**KEYS)
    (project / "study.toml").write_text(study.to_toml())
    return ez.compare(study, "whole", progress=False)


def start(folder: str, study: str = "study.toml") -> subprocess.Popen[str]:
    """The same study in a process of its own, and slowly."""
    return subprocess.Popen(
        [sys.executable, "compare.py", folder, study],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OWN_PAUSE": "0.05"},
    )


def workers_here() -> list[int]:
    """Worker processes in the current folder, which no other test's are in."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
            if b"ellzero.study.worker" in command and (process / "cwd").resolve() == Path.cwd():
                found.append(int(process.name))
        except OSError:
            continue  # it has ended, or is none
    return found


def until(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def statuses(folder: str) -> list[str]:
    return [run.status for run in Results.read(Path(folder)).runs]


def begun(folder: str, done: int) -> bool:
    """So many cells are done, and another one is in the midst of it."""
    if not (Path(folder) / "study.toml").is_file():
        return False
    found = statuses(folder)
    return found.count("done") >= done and "running" in found


needs_proc = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")


@pytest.mark.slow
@needs_proc
def test_a_killed_study_leaves_no_worker_and_goes_on(whole):
    process = start("killed")
    until(lambda: begun("killed", 5))
    assert len(workers_here()) == 2
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not workers_here(), 30)
    found = statuses("killed")
    assert found.count("done") >= 5
    assert "missing" in found
    assert "interrupted" in found
    assert "running" not in found
    before = stamps(Path("killed"))
    done = {name for name, r in records(Path("killed")).items() if r["status"] == "done"}
    results = ez.compare(whole.study, "killed", workers=2, progress=False)
    assert figures(results) == figures(whole)
    assert_equal_networks(Path("killed"), whole.folder)
    after = stamps(Path("killed"))
    for path, at in before.items():
        if path.parts[1] in done:
            assert after[path] == at


@needs_proc
def test_an_interrupted_study_saves_its_cells_and_goes_on(whole):
    process = start("interrupted")
    until(lambda: begun("interrupted", 3))
    # meanwhile nobody else may work in the folder
    with pytest.raises(ez.InputError, match="another process is at work in interrupted"):
        ez.compare(whole.study, "interrupted", progress=False)
    until(lambda: begun("interrupted", 3))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 130
    assert workers_here() == []
    found = statuses("interrupted")
    assert "interrupted" in found
    assert not {"running", "failed", "unreadable"} & set(found)
    stopped = [n for n, r in records(Path("interrupted")).items() if r["status"] == "interrupted"]
    for name in stopped:
        cell = Path("interrupted/cells") / name
        # one that had only just begun has neither: it starts from the beginning
        assert (cell / "checkpoint.safetensors").is_file() or not (cell / "metrics.jsonl").exists()
    assert "Traceback" not in Path("interrupted/workers.log").read_text()
    assert not Path("interrupted/.lock").exists()
    # with one worker, which has more threads
    results = ez.compare(whole.study, "interrupted", workers=1, progress=False)
    assert figures(results) == figures(whole)
    assert_equal_networks(Path("interrupted"), whole.folder)
    for name in stopped:
        assert not (Path("interrupted/cells") / name / "checkpoint.safetensors").exists()


@pytest.mark.slow
@needs_proc
def test_workers_that_are_killed_and_stopped_change_nothing(whole):
    process = start("struck")
    until(lambda: begun("struck", 3))
    os.kill(workers_here()[0], signal.SIGKILL)
    until(lambda: begun("struck", 5) and len(workers_here()) == 2)
    os.kill(workers_here()[0], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "its process was ended by SIGKILL; it is tried once more" in said
    assert workers_here() == []
    assert not {"failed", "unreadable"} & set(statuses("struck"))
    # the next one goes on, and nobody ends it: a worker that hangs does not stay in its way
    stalls = whole.study.model_copy(update={"stalled_minutes": 0.4})
    Path("stalls.toml").write_text(stalls.to_toml())
    process = start("struck", "stalls.toml")
    until(lambda: begun("struck", 6) and len(workers_here()) == 2)
    os.kill(workers_here()[0], signal.SIGSTOP)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0
    assert "has made no progress for 0.4 minutes" in said
    assert "made no progress for 0.8 minutes and was killed; it is tried once more" in said
    assert workers_here() == []
    results = Results.read(Path("struck"))
    assert results.failures() == []
    assert figures(results) == figures(whole)
    assert_equal_networks(Path("struck"), whole.folder)


def broken_study() -> ez.Study:
    """One that fails in four ways as long as the file `broken` is there."""
    return a_study(
        {"model": {"name": "own_project:network", "bad_seed": 13}},
        seeds=[0, 13],
        sparsities=[0.9],
        methods={
            "raises": {"train": {"batch_size": 7}},
            "magnitude": {},
            "dies": {"train": {"batch_size": 11}},
            "l1": {"strengths": [1e-4, 1e-3], "train": {"batch_size": 15}},
            "nan": {"train": {"batch_size": 13}},
            "explodes": {"train": {"learning_rate": 1e30}},
            "last": {"train": {"batch_size": 20}},
        },
    )


@pytest.fixture(scope="module")
def broken(whole):
    """The broken study, by one worker, which has to outlive all that."""
    Path("broken").touch()
    with pytest.warns(ez.EllzeroWarning, match="exit code 7; it is tried once more"):
        results = ez.compare(broken_study(), "broken-study", progress=False)
    Path("broken").unlink()
    return results


def test_a_cell_that_fails_does_not_stop_the_others(broken):
    errors = {found.folder.name: str(found.error) for found in broken.failures()}
    of_seed_0 = {name: error for name, error in errors.items() if "seed0" in name}
    assert set(of_seed_0) == {
        f"{method}-seed0-sparsity-0.9" for method in ("raises", "dies", "nan", "explodes")
    }
    assert errors["raises-seed0-sparsity-0.9"] == "RuntimeError: a batch of seven"
    died = errors["dies-seed0-sparsity-0.9"]
    assert died == "its process ended with exit code 7, at the second try; workers.log may tell why"
    for name in ("nan", "explodes"):
        assert errors[f"{name}-seed0-sparsity-0.9"].startswith("DivergenceError: ")
    done = {name for name, record in records(broken.folder).items() if record["status"] == "done"}
    assert done == {
        "reference-seed0",
        "magnitude-seed0-sparsity-0.9",
        "l1-0.0001-seed0-sparsity-0.9",
        "l1-0.001-seed0-sparsity-0.9",
        "last-seed0-sparsity-0.9",
    }
    assert [row.method for row in broken.rows()] == ["magnitude", "l1", "last"]
    log = (broken.folder / "workers.log").read_text()
    assert "RuntimeError: a batch of seven" in log
    # the first worker, and one more after each of the two deaths
    assert log.count("the user's module is imported") == 3


def test_the_cells_of_a_reference_that_failed_say_so(broken):
    errors = {found.folder.name: str(found.error) for found in broken.failures()}
    assert "ArithmeticError: a seed I do not like" in errors["reference-seed13"]
    strength = broken.chosen("l1", broken.study.targets[0]).strength
    others = {name for name in errors if "seed13" in name} - {"reference-seed13"}
    assert others == {
        "magnitude-seed13-sparsity-0.9",
        f"l1-{strength:g}-seed13-sparsity-0.9",
        "last-seed13-sparsity-0.9",
    }
    for name in others:
        assert "the reference of seed 13 failed" in errors[name]
        assert "reference-seed13" in errors[name]
        record = json.loads((broken.folder / "cells" / name / "record.json").read_text())
        assert record["status"] == "failed"


def test_failed_cells_are_tried_anew_and_done_ones_stay(broken):
    folder = Path("mended")
    shutil.copytree(broken.folder, folder)
    # as a worker leaves it that is killed while it writes
    (folder / "cells/dies-seed0-sparsity-0.9/.record.json.0a1b2c3d").write_text('{"form')
    before = stamps(folder)
    done = {name for name, record in records(folder).items() if record["status"] == "done"}
    results = ez.compare(broken_study(), folder, progress=False)
    after = stamps(folder)
    assert {p: t for p, t in before.items() if p.parts[1] in done} == {
        p: t for p, t in after.items() if p.parts[1] in done
    }
    # the learning rate is what it was
    assert [f.folder.name for f in results.failures()] == ["explodes-seed0-sparsity-0.9"]
    rows = {row.method: len(row.cells) for row in results.rows()}
    assert rows == dict.fromkeys(("raises", "magnitude", "dies", "l1", "nan", "last"), 2)
    assert not list((folder / "cells").glob("*/.*"))
    for record in records(folder).values():
        assert ("error" in record) == (record["status"] == "failed")


@pytest.mark.slow
def test_where_all_of_the_first_seed_fails_nothing_else_is_run(project):
    Path("broken").touch()
    study = a_study(
        {"model": {"name": "own_project:network", "bad_seed": 13}},
        seeds=[13, 0],
        sparsities=[0.9],
        methods={"magnitude": {}},
    )
    results = ez.compare(study, "first-fails", progress=False)
    Path("broken").unlink()
    assert results.rows() == []
    found = {found.folder.name: found.status for found in results.cells.values()}
    assert found == {
        "magnitude-seed13-sparsity-0.9": "missing",
        "magnitude-seed0-sparsity-0.9": "missing",
    }
    # that reference needs no tuning, and is there for the next call
    assert [found.status for found in results.references] == ["failed", "done"]


@pytest.mark.slow
def test_records_that_cannot_be_read_are_left_as_they_are(whole):
    folder = Path("damaged")
    shutil.copytree(whole.folder, folder)
    half = folder / "cells/magnitude-seed1-sparsity-0.9"
    newer = folder / "cells/gradual-seed1-sparsity-0.75"
    gone = folder / "cells/gradual-seed1-sparsity-0.9"
    (half / "record.json").write_text((half / "record.json").read_text()[:100])
    record = json.loads((newer / "record.json").read_text())
    (newer / "record.json").write_text(json.dumps({**record, "format": 2}))
    (newer / "recipe.toml").write_text("of_a_newer_version = 1")
    (gone / "record.json").unlink()
    before = {p: p.read_bytes() for cell in (half, newer) for p in cell.iterdir()}
    results = ez.compare(whole.study, folder, progress=False)
    assert {p: p.read_bytes() for cell in (half, newer) for p in cell.iterdir()} == before
    assert {(f.folder, f.status) for f in results.failures()} == {
        (half, "unreadable"),
        (newer, "unreadable"),
    }
    assert all("record.json" in str(found.error) for found in results.failures())
    assert results.cells[gone.name].finished
    assert_equal_networks(folder, whole.folder)
    assert {r.method: len(r.cells) for r in results.rows() if r.target.name == "sparsity-0.9"} == {
        "magnitude": 1,
        "gradual": 2,
        "l1": 2,
    }


def test_a_cell_that_another_worker_still_holds_is_waited_for(whole):
    folder = Path("held")
    shutil.copytree(whole.folder, folder)
    cell = folder / "cells/magnitude-seed0-sparsity-0.9"
    recipe = Recipe.read(cell / "recipe.toml")
    (cell / "record.json").unlink()
    holds, let_go = threading.Event(), threading.Event()

    def hold():
        with locked(cell):
            holds.set()
            let_go.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holds.wait(60)
    threading.Timer(0.3, let_go.set).start()
    assert run_cell(cell, recipe.to_table()) is None  # in this process, as a worker does
    assert let_go.is_set()
    holder.join()
    assert figures(Results.read(folder)) == figures(whole)


@pytest.mark.slow
def test_a_cell_that_missed_its_budget_is_not_run_again(project):
    study = a_study(
        seeds=[0],
        sparsities=[],
        budgets=[{"max_loss_increase": 0.0}],
        methods={"magnitude": {"train": {"learning_rate": 30.0}, "prune": {"rounds": 1}}},
    )
    results = ez.compare(study, "missed", progress=False)
    (found,) = results.failures()
    assert found.status == "missed"
    assert "none of 1 rounds stayed within the budget" in str(found.error)
    assert "reference.file" not in str(found.error)  # a study gives it already
    before = stamps(Path("missed"))
    again = ez.compare(study, "missed", progress=False)
    assert [failed.status for failed in again.failures()] == ["missed"]
    assert stamps(Path("missed")) == before
