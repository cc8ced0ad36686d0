"""The worker's process by itself."""

import subprocess
import sys

import pytest

import hand_made
from ellzero.errors import BusyError
from ellzero.run_folder import RunFolder, fail, locked

DROPPED = """
import _thread, signal, sys, time
from ellzero.study import worker

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.unraisablehook = worker._interrupt_again

class Finalized:
    def __del__(self):
        _thread.interrupt_main()  # raised in here, where Python drops every error

try:
    Finalized()
    for _ in range(1000):
        time.sleep(0.01)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_that_falls_into_a_finalizer_still_comes():
    ended = subprocess.run(
        [sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("interrupted\n", "")


def test_a_failure_is_not_written_while_another_process_holds_the_record(tmp_path):
    record = hand_made.run(tmp_path, "cell", status="running") / "record.json"
    before = record.read_bytes()
    with locked(record.parent), pytest.raises(BusyError, match="another process is at work in"):
        fail(record.parent, "it went wrong")
    assert record.read_bytes() == before
    fail(record.parent, "it went wrong")
    assert RunFolder.at(record.parent).error == "it went wrong"
