"""The lock on a folder: one process at a time, and none that outlives its process."""

import subprocess
import sys

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


def test_a_lock_that_cannot_be_taken_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ez.InputError, match=rf"cannot take the lock {tmp_path}/\.lock: Is a dir"):
        lock(tmp_path)


def test_no_folder_needs_no_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with locked(None), locked(None):
        assert not list(tmp_path.iterdir())
