"""Progress: a bar with the time left for whatever takes over two seconds, on a terminal only."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress


def is_shown(progress: bool | None) -> bool:
    """Whether a bar is wanted; where nothing is said, on a terminal."""
    return sys.stderr.isatty() if progress is None else progress


def rich_bar(*, shown: bool) -> Progress:
    """A bar on standard error that goes away when it is done: what, how far, time left, a note."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=_Terminal(sys.stderr)),  # pyright: ignore[reportArgumentType]
        transient=True,
        disable=not shown,
    )


class _Terminal:
    """A stream whose terminal may go away, as when a connection is cut: no run ends of that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
