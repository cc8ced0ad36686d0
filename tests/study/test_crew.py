"""Workers that die, hang, or leave others behind: the crew with processes that do so on purpose."""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ellzero.errors import EllzeroWarning
from ellzero.recipe import Recipe
from ellzero.run_folder import RunFolder, locked
from ellzero.study import crew as crew_module
from ellzero.study import pool, process
from ellzero.study.crew import Crew, Job
from ellzero.study.pool import ended
from ellzero.study.process import LocalWorker
from ellzero.study.progress import StudyBar

STAND_IN = """
# What a cell's name says, a word for each time that it is tried.
import json, os, signal, subprocess, sys, time
from pathlib import Path

for line in sys.stdin:
    folder = Path(json.loads(line)["folder"])
    tries = len(list(folder.parent.glob(folder.name + ".*")))
    Path(f"{folder}.{tries}").write_text(str(os.getpid()))
    does = folder.name.split("-")[tries]
    if does == "dies":
        os._exit(7)
    if does == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "leaves":  # a process that holds the pipe
        child = subprocess.Popen(["sleep", "60"], stdout=1)
        Path(f"{folder}.child").write_text(str(child.pid))
        os._exit(7)
    if does == "mute":  # its output closes, and it stays
        os.close(1)
        time.sleep(60)
    if does == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if does == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(f"{folder}.deaf").touch()
        while True:
            time.sleep(60)
    if does == "waits":
        time.sleep(0.6)
    print(json.dumps({"warning": "a word" if does == "warns" else None}), flush=True)
    if does == "naps":
        os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    """Processes that start at once, and a runner that has little patience."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    command = (sys.executable, "-I", "-S", str(tmp_path / "stand_in.py"))
    monkeypatch.setattr(process, "COMMAND", command)
    for module in (process, crew_module):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    for name in ("CLOSE", "TERMINATE", "KILL"):
        monkeypatch.setattr(pool, f"{name}_SECONDS", 0.3)
    monkeypatch.setattr(process, "KILL_SECONDS", 0.3)


def is_there(pid: int) -> bool:
    with suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def gone(path: Path) -> bool:
    """The process that left its number here goes away."""
    deadline = time.monotonic() + 10
    while is_there(int(path.read_text())) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_there(int(path.read_text()))


def run(folder: Path, *cells: str, stalled_minutes: float = 0, include: str = "x") -> None:
    """Run cells by one worker."""
    with crew_in(folder, stalled_minutes) as crew:
        crew.run("stage", [jobs(folder, *cells, include=include)])


def crew_in(folder: Path, stalled_minutes: float = 0) -> Crew:
    with (folder / "log").open("ab") as log:
        return Crew([LocalWorker(log.fileno())], 1, StudyBar(False), stalled_minutes)


def jobs(folder: Path, *cells: str, include: str = "x") -> list[Job]:
    recipe = Recipe.parse({"prune": {"sparsity": 0.5, "include": [include]}})
    return [Job(folder / cell, lambda: recipe, 1) for cell in cells]


@contextmanager
def interrupted(*begun: Path):
    """The main thread is interrupted as soon as each of these files is there."""

    def interrupt():
        for path in begun:
            deadline = time.monotonic() + 30
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            signal.raise_signal(signal.SIGINT)

    started = time.monotonic()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()
    assert time.monotonic() - started < 10


def test_a_cell_whose_worker_died_is_tried_once_more(tmp_path):
    with pytest.warns(EllzeroWarning) as said:
        run(tmp_path, "dies-works", "killed-works", "works")
    assert [str(warning.message) for warning in said] == [
        f"{tmp_path}/dies-works: its process ended with exit code 7; it is tried once more",
        f"{tmp_path}/killed-works: its process was ended by SIGKILL; it is tried once more",
    ]
    assert len(list(tmp_path.glob("*works.*"))) == 2 + 2 + 1
    assert RunFolder.at(tmp_path / "dies-works").status == "missing"  # a real one says more


def test_the_second_death_is_a_failure_on_record_and_the_next_cell_is_run(tmp_path):
    with pytest.warns(EllzeroWarning, match="tried once more"):
        run(tmp_path, "dies-killed", "works")
    cell = RunFolder.at(tmp_path / "dies-killed")
    assert (cell.status, cell.error) == (
        "failed",
        "its process was ended by SIGKILL, at the second try; workers.log may tell why",
    )
    assert (tmp_path / "works.0").exists()


def test_a_record_that_another_process_holds_is_not_written(tmp_path):
    (tmp_path / "dies-dies").mkdir()
    with locked(tmp_path / "dies-dies"), pytest.warns(EllzeroWarning) as said:
        run(tmp_path, "dies-dies")
    assert "its record does not say so: another process is at work" in str(said[-1].message)
    assert RunFolder.at(tmp_path / "dies-dies").status == "missing"


def test_what_a_worker_warns_of_is_passed_on(tmp_path):
    with pytest.warns(EllzeroWarning, match=r"^a word$"):
        run(tmp_path, "warns")


def test_what_a_dead_worker_started_is_ended_and_does_not_hold_the_runner(tmp_path):
    with pytest.warns(EllzeroWarning, match="exit code 7; it is tried once more"):
        run(tmp_path, "leaves-works")
    assert gone(tmp_path / "leaves-works.child")


def test_a_worker_that_closes_its_output_and_stays_is_killed(tmp_path):
    with pytest.warns(EllzeroWarning, match="its process closed its output and was killed; it is"):
        run(tmp_path, "mute-works")
    assert gone(tmp_path / "mute-works.0")


def test_a_cell_without_progress_is_warned_of_then_its_worker_is_killed(tmp_path):
    started = time.monotonic()
    with pytest.warns(EllzeroWarning) as said:
        run(tmp_path, "stops-works", stalled_minutes=0.01)
    assert 1.2 < time.monotonic() - started < 10
    assert [str(warning.message) for warning in said] == [
        f"{tmp_path}/stops-works has made no progress for 0.01 minutes; after as long again its "
        "process is killed (stalled_minutes in the study sets the limit)",
        f"{tmp_path}/stops-works: its process made no progress for 0.02 minutes and was killed; it "
        "is tried once more",
    ]
    assert gone(tmp_path / "stops-works.0")


@pytest.mark.parametrize("cell", ["stops", "deaf"])
def test_an_interrupt_ends_a_worker_that_hangs(tmp_path, cell):
    begun = tmp_path / ("deaf.deaf" if cell == "deaf" else "stops.0")
    with interrupted(begun):
        run(tmp_path, cell)
    assert gone(tmp_path / f"{cell}.0")
    assert RunFolder.at(tmp_path / cell).status == "missing"  # it can go on, so it has not failed


def test_nothing_is_tried_once_more_after_a_stop(tmp_path):
    with crew_in(tmp_path) as crew:
        (job,) = jobs(tmp_path, "dies-works")
        crew._stopped = True  # as it may be told in the moment of the death
        crew._try(crew._workers[0], job.folder, job.recipe())
        crew._stopped = False
    assert [path.name for path in tmp_path.glob("dies-works*")] == ["dies-works.0"]


def test_a_second_interrupt_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "CLOSE_SECONDS", 60.0)
    with interrupted(tmp_path / "stops.0", tmp_path / "stops.0"):
        run(tmp_path, "stops")
    assert gone(tmp_path / "stops.0")


def test_an_order_that_a_stopped_worker_does_not_read_holds_nobody(tmp_path):
    longer_than_a_pipe = "x" * 500_000
    with interrupted(tmp_path / "naps.0"):
        run(tmp_path, "naps", "works", include=longer_than_a_pipe)
    assert gone(tmp_path / "naps.0")
    assert not (tmp_path / "works.0").exists()


def test_a_process_that_cannot_be_killed_is_not_waited_for(tmp_path, monkeypatch):
    crew = crew_in(tmp_path)
    with monkeypatch.context() as patch, interrupted(tmp_path / "stops.0"), crew:
        patch.setattr(os, "killpg", lambda group, signal: None)
        crew.run("stage", [jobs(tmp_path, "stops")])
    pid = int((tmp_path / "stops.0").read_text())
    assert is_there(pid)
    os.kill(pid, signal.SIGKILL)
    assert ended(crew._workers, 10)


@pytest.mark.parametrize(("rest_seconds", "rests"), [(0.1, 1), (60, 0)])
def test_a_worker_rests_that_is_idle_for_long(tmp_path, monkeypatch, rest_seconds, rests):
    rested = []

    class Resting(LocalWorker):
        def rest(self) -> None:
            rested.append(self)

    monkeypatch.setattr(crew_module, "REST_SECONDS", rest_seconds)
    with (tmp_path / "log").open("ab") as log:
        workers = [Resting(log.fileno()) for _ in range(2)]
        with Crew(workers, 1, StudyBar(False), 0) as crew:
            crew.run("stage", [jobs(tmp_path, "works"), jobs(tmp_path, "waits")])
            assert len(rested) == rests
            crew.run("next", [jobs(tmp_path, "works-works")])
    assert (tmp_path / "works-works.0").exists()
