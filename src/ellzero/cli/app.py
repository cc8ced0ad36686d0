"""The application: its commands, and what a user's mistake looks like."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

from cyclopts import App, CycloptsError

import ellzero
from ellzero.cli.bench import bench
from ellzero.cli.check import check
from ellzero.cli.compare import compare
from ellzero.cli.doctor import doctor
from ellzero.cli.evaluate import evaluate
from ellzero.cli.export import export
from ellzero.cli.init import init
from ellzero.cli.inspect import inspect
from ellzero.cli.report import report
from ellzero.cli.run import run
from ellzero.cli.schema import schema
from ellzero.errors import EllzeroError, EllzeroWarning, UserCodeError
from ellzero.processes import is_loss_of_another, launched_rank
from ellzero.terminal import plain

# they import what they need when they run, so that --help is quick
COMMANDS = (init, check, run, evaluate, inspect, compare, report, export, bench, schema, doctor)

app = App(
    name="ellzero",
    help="Make PyTorch networks small, on purpose and measurably.",
    version=ellzero.__version__,
    result_action="return_value",
)
for _command in COMMANDS:
    app.command(_command)
app.register_install_completion_command(
    help="Install completion for the shell that this runs in (bash, zsh, fish, PowerShell).",
    add_to_startup=False,  # a user's startup files are theirs
)


def main(
    arguments: Sequence[str] | None = None, *, begin: Callable[[], None] = lambda: None
) -> NoReturn:
    """Run the command line, by default with the arguments of the process.

    A user's mistake is one line on standard error: exit code 2 for how the command was written, 1
    for what it was given. So is each warning of ellzero, and an interrupt, by 130 or the code that
    its exception has.

    Args:
        arguments: those after the program's name.
        begin: called when all is imported that takes long, before the command does anything.
    """
    try:
        with _warnings_in_one_line():
            command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
            if command in COMMANDS and command is not doctor:  # which tells if torch is broken
                import torch  # noqa: F401
            begin()
            command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        _fail(f"{error} See `ellzero --help`.", error, 2)
    except EllzeroError as error:
        if isinstance(error, UserCodeError) and error.__cause__ is not None:
            # the user's own code failed: their traceback is what they need
            traceback.print_exception(error.__cause__)
        _fail(error, error, 1)
    except KeyboardInterrupt as stop:
        _fail("interrupted", stop, getattr(stop, "code", 130))
    except BrokenPipeError:
        # the reader of a pipe has gone, so there is nobody left to tell; a flush would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # no permission, no space
        _fail(error, error, 1)
    except Exception as error:
        if is_loss_of_another(error):
            _fail("another process has ended, which tells why", error, 1)
        if _is_out_of_memory(error):
            _fail(f"out of memory: {error}".removesuffix(": "), error, 1)
        # what the user's own loss, score or network raised in training
        traceback.print_exception(error)
        _fail(f"{type(error).__name__}: {error}", error, 1)
    sys.exit(0)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show each warning of ellzero once and without a line of source; others as Python does."""
    shown: set[str] = set()
    show_other = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = plain(message)
        if not issubclass(category, EllzeroWarning):
            show_other(message, category, filename, lineno, file, line)
        elif text not in shown and not launched_rank():  # each process would say the same
            shown.add(text)
            with suppress(OSError):  # a terminal that has gone
                print(f"ellzero: warning: {text}", file=sys.stderr)  # a bar there stays below it

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _is_out_of_memory(error: Exception) -> bool:
    # torch says so of the CPU by a RuntimeError, of a GPU by its OutOfMemoryError
    return isinstance(error, MemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )


def _fail(message: object, error: BaseException, code: int) -> NoReturn:
    """End with one line: the message, and what a command noted of what it keeps."""
    line = "; ".join([str(message), *getattr(error, "__notes__", ())])
    rank = launched_rank()
    if rank is not None:
        line = f"rank {rank}: {line}"
    with suppress(OSError):  # a terminal that has gone
        print(f"ellzero: {plain(line)}", file=sys.stderr)
    sys.exit(code)
