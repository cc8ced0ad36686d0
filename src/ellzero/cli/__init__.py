"""The command line: one file a command, which only translates to the library."""

import sys
from typing import NoReturn

from ellzero.stopping import Stopping


def main() -> NoReturn:
    """Run the command line with the arguments of the process; a signal is one line, too."""
    stopping = Stopping()
    stopping.install()
    try:
        try:
            from ellzero.cli.app import main as run

            run(begin=stopping.handle)
        finally:
            stopping.ignore()
    except KeyboardInterrupt as stop:  # between the end of the command and that of its process
        stopping.ignore()
        print("ellzero: interrupted", file=sys.stderr)
        sys.exit(getattr(stop, "code", 130))
