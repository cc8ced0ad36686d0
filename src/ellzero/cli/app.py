"""The application: its commands, and what a user's mistake looks like."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TextIO

from cyclopts import App, CycloptsError

import ellzero
from ellzero.cli.bench import bench
from ellzero.cli.compare import compare
from ellzero.cli.evaluate import evaluate
from ellzero.cli.export import export
from ellzero.cli.inspect import inspect
from ellzero.cli.report import report
from ellzero.cli.run import run
from ellzero.errors import EllzeroError, EllzeroWarning, UserCodeError

# they import what they need when they run, so that --help is quick
COMMANDS = (run, evaluate, inspect, compare, report, export, bench)

app = App(
    name="ellzero",
    help="Make PyTorch networks small, on purpose and measurably.",
    version=ellzero.__version__,
    result_action="return_value",
)
for _command in COMMANDS:
    app.command(_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, by default with the arguments of the process.

    A user's mistake is one line on standard error: exit code 2 for how the command was written, 1
    for what it was given. So is each warning of ellzero.
    """
    try:
        with _warnings_in_one_line():
            app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(f"{error} See `ellzero --help`.", 2)
    except EllzeroError as error:
        if isinstance(error, UserCodeError) and error.__cause__ is not None:
            # the user's own code failed: their traceback is what they need
            traceback.print_exception(error.__cause__)
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # the reader of a pipe has gone, so there is nobody left to tell; a flush would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # no permission, no space
        _fail(error, 1)
    except Exception as error:  # what the user's own loss, score or network raised in training
        traceback.print_exception(error)
        _fail(f"{type(error).__name__}: {error}", 1)
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
        text = " ".join(str(message).split())
        if not issubclass(category, EllzeroWarning):
            show_other(message, category, filename, lineno, file, line)
        elif text not in shown:
            shown.add(text)
            print(f"ellzero: warning: {text}", file=sys.stderr)  # a bar there stays below it

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _fail(message: object, code: int) -> NoReturn:
    print(f"ellzero: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(code)
