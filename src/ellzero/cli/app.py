"""The application: its commands, and what a user's mistake looks like."""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

from cyclopts import App

import ellzero

COMMANDS = ("run", "evaluate", "inspect")

app = App(
    name="ellzero",
    help="Make PyTorch networks small, on purpose and measurably.",
    version=ellzero.__version__,
    result_action="return_value",
)
for _command in COMMANDS:
    app.command(f"ellzero.cli.{_command}:{_command}", name=_command)


def main() -> NoReturn:
    """Run the command line; a user's mistake is one line on standard error and exit code 1."""
    from ellzero.errors import EllzeroError

    try:
        app()
    except EllzeroError as error:
        if type(error).__name__ == "SourceError" and error.__cause__ is not None:
            # the user's own code failed: their traceback is what they need
            traceback.print_exception(error.__cause__)
        print(f"ellzero: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("ellzero: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    sys.exit(0)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
