"""Signals: one line, one exception that is never lost and never disturbed by another one."""

import signal
import subprocess
import sys
import textwrap

import pytest
import torch

import ellzero as ez
from ellzero.stopping import SIGNALS

BEGIN = """
import os, signal, sys, time
from ellzero.stopping import SIGNALS, Stopped, Stopping

stopping = Stopping()
stopping.install()
"""
HANDLE = BEGIN + "stopping.handle()\n"


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_process_that_has_begun_nothing_at_once(number):
    """Where an exception could be lost: C code that is imported makes other errors of it."""
    done = run(
        BEGIN
        + f"""
try:
    os.kill(os.getpid(), {number})
    time.sleep(60)
except BaseException:
    print("no exception")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        128 + number,
        "",
        "ellzero: interrupted\n",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_then_it_raises_and_others_do_nothing_while_it_is_handled(number):
    done = run(
        HANDLE
        + f"""
try:
    try:
        os.kill(os.getpid(), {number})
        time.sleep(60)
    finally:  # on its way
        for other in SIGNALS:
            os.kill(os.getpid(), other)
except KeyboardInterrupt as stop:
    for other in SIGNALS:
        os.kill(os.getpid(), other)
    time.sleep(0.2)
    print("saved", stop.code)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"saved {128 + number}\n", "")


DROPPED = {
    "in a finalizer": """
class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

Finalized()
""",
    "by code that goes on after any error": """
try:
    signal.raise_signal(signal.SIGTERM)
except:
    pass
""",
    "as what another error came of": """
try:
    signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt as stop:
    try:
        raise ImportError("of C code") from stop
    except ImportError:
        pass
""",
}


@pytest.mark.parametrize("drop", DROPPED)
def test_a_stop_that_was_dropped_is_raised_again(drop):
    done = run(
        HANDLE
        + f"""
try:
{textwrap.indent(DROPPED[drop], "    ")}
    time.sleep(60)
except KeyboardInterrupt as stop:
    print("again", stop.code)
    stopping.ignore()
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "again 143\n", "")


def test_after_the_end_of_the_command_nothing_is_raised():
    done = run(
        HANDLE
        + """
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    stopping.ignore()
for number in SIGNALS:
    signal.raise_signal(number)
time.sleep(0.2)
print("done")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_what_is_ignored_already_stays_so():
    done = run(
        "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        + HANDLE
        + """
signal.raise_signal(signal.SIGHUP)
print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_child_of_the_users_code_ends_as_any_other():
    done = run(
        HANDLE
        + """
child = os.fork()
if not child:
    signal.raise_signal(signal.SIGTERM)
    os._exit(0)
print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{int(signal.SIGTERM)}\n", "")


def test_the_command_line_imports_little_before_signals_are_handled():
    """What is imported before that, a Ctrl-C ends with a traceback."""
    done = run("""
import sys
before = set(sys.modules)
from ellzero.cli import main
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
""")
    modules = set(done.stdout.split())
    assert "ellzero" in modules
    assert not modules - sys.stdlib_module_names - {"ellzero"}
    assert not modules & {"importlib_metadata", "email", "zipfile", "inspect", "logging"}


def test_a_library_call_installs_no_handler():
    before = [signal.getsignal(number) for number in SIGNALS]
    x, y = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
    recipe = ez.Recipe.parse({"train": {"epochs": 1}, "prune": {"sparsity": 0.5}})
    ez.compress(torch.nn.Linear(4, 4), ez.Data((x, y), (x, y)), recipe)
    assert [signal.getsignal(number) for number in SIGNALS] == before
