"""The lock on a folder: one process at a time, and none that outlives its process."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import ellzero as ez
from ellzero.run_folder import locked

HOLDER = """
import sys, time, filelock
with filelock.FileLock(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def lock(folder):
    with locked(folder):
        assert (folder / ".lock").is_file()


def test_it_goes_away_with_its_block(tmp_path):
    for _ in range(2):
        lock(tmp_path)
        assert not list(tmp_path.iterdir())


def test_a_lock_that_is_held_refuses_another_and_stays(tmp_path):
    with locked(tmp_path):
        for _ in range(2):
            with pytest.raises(ez.InputError, match=f"another process is at work in {tmp_path};"):
                lock(tmp_path)
        assert (tmp_path / ".lock").is_file()


def test_a_killed_process_leaves_no_lock(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / ".lock"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(ez.InputError, match="another process is at work"):
        lock(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    lock(tmp_path)
    assert not list(tmp_path.iterdir())


def symbolic_link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def dangling_link(path: Path, precious: Path) -> None:
    path.symlink_to(precious.with_name("none"))


def other_name(path: Path, precious: Path) -> None:
    os.link(precious, path)


def folder(path: Path, precious: Path) -> None:
    path.mkdir()


def pipe(path: Path, precious: Path) -> None:
    os.mkfifo(path)


def listening(path: Path, precious: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # which takes short names only


def device(path: Path, precious: Path) -> None:
    if os.geteuid():
        pytest.skip("only root makes devices")
    os.mknod(path, stat.S_IFCHR | 0o600, os.stat("/dev/null").st_rdev)


TRAPS = [symbolic_link, dangling_link, other_name, folder, pipe, listening, device]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_lock_that_is_no_file_is_refused_and_left_as_it_is(trap, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "run").mkdir()
    trap(tmp_path / "run/.lock", precious)
    before = (tmp_path / "run/.lock").lstat()
    with pytest.raises(ez.InputError, match=rf"^cannot take the lock {tmp_path}/run/\.lock: it is"):
        lock(tmp_path / "run")
    assert precious.read_text() == "precious"
    assert (tmp_path / "run/.lock").lstat() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "run"]


def test_a_link_that_comes_between_is_not_followed_and_nothing_emptied(tmp_path, monkeypatch):
    """What is done without the look at the file beforehand, which may be too early."""
    monkeypatch.setattr("ellzero.run_folder._require_own_file", lambda path: None)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name, make in (("symbolic", symbolic_link), ("hard", other_name)):
        (tmp_path / name).mkdir()
        make(tmp_path / name / ".lock", precious)
        with suppress(ez.InputError):
            lock(tmp_path / name)
        assert precious.read_text() == "precious"


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process may not write to, even as root."""
    user = os.geteuid()
    folder = Path(tempfile.mkdtemp())  # those above pytest's are closed to other users
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)  # nobody
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.rmdir()


def test_a_folder_that_is_read_only_is_what_the_message_names(read_only):
    message = f"^cannot write to folder {read_only}: Permission denied$"
    with pytest.raises(ez.InputError, match=message):
        lock(read_only)


STRESS = """
import sys, time
from pathlib import Path
from ellzero.errors import BusyError
from ellzero.run_folder import locked
folder, mine, until = Path(sys.argv[1]), sys.argv[2], time.monotonic() + 3
held = 0
while time.monotonic() < until:
    try:
        with locked(folder):
            (folder / "holder").write_text(mine)
            time.sleep(0)
            assert (folder / "holder").read_text() == mine, "two hold the lock"
            held += 1
    except BusyError:
        pass
print(held)
"""


@pytest.mark.slow
def test_processes_that_remove_the_lock_again_and_again_never_hold_it_together(tmp_path):
    command = [sys.executable, "-c", STRESS, tmp_path]
    processes = [
        subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE) for number in range(4)
    ]
    held = [int(process.communicate()[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(held) > 20


def test_no_folder_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with locked(None), locked(None):
        assert not list(tmp_path.iterdir())
