"""The worker's process by itself."""

import errno
import io
import os
import re
import subprocess
import sys
import threading
import time

import pytest

import ellzero as ez
import hand_made
from ellzero.errors import BusyError
from ellzero.run_folder import RunFolder, fail, locked
from ellzero.study import worker

DROPPING = """
import sys, time
from ellzero.study import worker

def drops_every_error(folder, table):
    try:
        print("at work", flush=True)
        time.sleep(100)
    except BaseException:  # as C code does, or a finalizer
        pass
    time.sleep(100)

worker.run_cell = drops_every_error
worker.main()
"""


@pytest.mark.parametrize("how", ["input that closes", "SIGTERM"])
def test_a_stop_that_a_cell_drops_still_ends_the_worker(how):
    process = subprocess.Popen(
        [sys.executable, "-c", DROPPING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write('{"folder": "cell", "recipe": {}}\n')
    process.stdin.flush()
    assert process.stderr.readline() == "at work\n"
    time.sleep(0.3)  # so that it waits, for what only a signal ends
    if how == "SIGTERM":
        process.terminate()
    try:
        out, err = process.communicate(timeout=80)  # which closes its input
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")


def test_a_failure_is_not_written_while_another_process_holds_the_record(tmp_path):
    record = hand_made.run(tmp_path, "cell", status="running") / "record.json"
    before = record.read_bytes()
    with locked(record.parent), pytest.raises(BusyError, match="another process is at work in"):
        fail(record.parent, "it went wrong")
    assert record.read_bytes() == before
    fail(record.parent, "it went wrong")
    assert RunFolder.at(record.parent).error == "it went wrong"


@pytest.fixture
def table():
    """The recipe of a cell that cannot be made: it says so at once, and writes that."""
    made_of = {"model": "lenet-300-100", "data": "no_such:data", "prune": {"sparsity": 0.5}}
    return ez.Recipe.parse(made_of).to_table()


def test_a_cell_that_another_process_keeps_is_left_alone(tmp_path, monkeypatch, table):
    monkeypatch.setattr(worker, "WAIT_SECONDS", 0)
    cell = hand_made.run(tmp_path, "cell", status="running")
    before = (cell / "record.json").read_bytes()
    order = {"folder": str(cell), "recipe": table}
    with locked(cell):
        warning = worker._warning(order)
    assert warning is not None
    assert warning.startswith(f"{cell} is left alone: another process is at work in {cell};")
    assert (cell / "record.json").read_bytes() == before
    assert worker._warning(order) is None  # its record says it
    assert "no_such" in str(RunFolder.at(cell).error)


def test_a_full_disk_ends_a_cell_with_a_sentence_and_no_worker(tmp_path, monkeypatch, table):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = io.StringIO()
    monkeypatch.setattr(log, "write", full)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(sys, "stderr", log)
        warning = worker._warning({"folder": str(tmp_path / "cell"), "recipe": table})
    assert warning is not None
    assert re.fullmatch(
        rf"{tmp_path}/cell failed: .*no_such.*; its record does not say so: "
        rf"cannot write {tmp_path}/cell/record\.json: No space left on device",
        warning,
    )


def test_a_cell_that_another_process_kept_and_lets_go_of_has_not_failed(
    tmp_path, monkeypatch, table
):
    def kept(folder):  # until this very moment
        raise BusyError("it is kept")

    monkeypatch.setattr(worker, "_made_ready", kept)
    cell = hand_made.run(tmp_path, "cell")
    before = (cell / "record.json").read_bytes()
    with pytest.raises(BusyError, match="it is kept"):
        worker.run_cell(cell, table)
    assert (cell / "record.json").read_bytes() == before


def test_a_cell_that_another_process_has_done_meanwhile_is_not_run_again(tmp_path, table):
    cell = hand_made.run(tmp_path, "cell")
    before = {path: path.read_bytes() for path in cell.iterdir()}
    holds = threading.Event()

    def hold():
        with locked(cell):
            holds.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holds.wait(60)
    assert worker.run_cell(cell, table) is None
    holder.join()
    assert {path: path.read_bytes() for path in cell.iterdir()} == before
