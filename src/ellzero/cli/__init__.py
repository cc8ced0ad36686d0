"""The command line: one file a command, which only translates to the library."""

from ellzero.cli.app import main

__all__ = ["main"]
