"""Files: a write is whole or nothing."""

import os
import stat
import sys

import pytest

from ellzero.files import write_atomically, write_json


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    for content in (b"one", b"", b"three"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    step, error, tmp_path, monkeypatch
):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(type(error)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# an interrupt just before `with` leaves the closing of the file to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_instruction_leaves_nothing_half_written(tmp_path):
    """Ctrl-C comes between any two instructions, so it is tried at each of them in turn."""
    path = tmp_path / "file"
    instruction = 0
    while True:
        path.write_bytes(b"old")
        countdown = instruction

        def trace(frame, event, argument):
            nonlocal countdown
            if frame.f_code is not write_atomically.__code__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                countdown -= 1
                if countdown == -1:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            write_atomically(path, b"new")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert list(tmp_path.iterdir()) == [path]
        if countdown >= 0:
            break  # the function was done before its turn came
        assert path.read_bytes() in (b"old", b"new")
        instruction += 1
    assert path.read_bytes() == b"new"
    assert instruction > 50


def test_the_users_umask_is_kept(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_without_nan(tmp_path):
    write_json(tmp_path / "file", {"a": [1, None]})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"a": float("nan")})
    assert (tmp_path / "file").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
