"""Progress of a cell, as its folder shows it."""

import os

from ellzero.files import write_atomically
from ellzero.study.watch import LONGEST_LOOK, Watch


def test_whatever_a_run_writes_is_progress(tmp_path):
    for name in ("metrics.jsonl", "checkpoint.safetensors", "record.json"):
        for _ in range(2):  # new, and in the place of the one before
            os.utime(tmp_path, ns=(0, 0))
            watch = Watch(tmp_path, now=0.0)
            assert watch.look(now=8.0) == 8.0
            write_atomically(tmp_path / name, b"")
            assert watch.look(now=9.0) == 0.0
            assert watch.look(now=10.0) == 1.0


def test_a_folder_that_is_made_is_progress_and_one_that_is_missing_is_none(tmp_path):
    watch = Watch(tmp_path / "cell", now=0.0)
    assert watch.look(now=8.0) == 8.0
    (tmp_path / "cell").mkdir()
    assert watch.look(now=9.0) == 0.0


def test_progress_ends_a_stall_that_was_told_of(tmp_path):
    watch = Watch(tmp_path, now=0.0)
    watch.is_known_to_stall = True
    watch.look(now=1.0)
    assert watch.is_known_to_stall
    os.utime(tmp_path, ns=(0, 0))
    watch.look(now=2.0)
    assert not watch.is_known_to_stall


def test_a_time_in_which_nobody_looked_does_not_count(tmp_path):
    watch = Watch(tmp_path, now=0.0)
    assert watch.look(now=7200.0) == LONGEST_LOOK
    assert watch.look(now=7201.0) == LONGEST_LOOK + 1.0
