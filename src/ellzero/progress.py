"""Progress of whatever takes over two seconds: a bar on a terminal, lines of text elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ellzero.terminal import plain

LINE_SECONDS = 30.0
"""Without a terminal there is a line every so many seconds."""

_SPEED_SECONDS = 600.0  # how far back the speed is measured: an epoch may take minutes


def shown_progress(*, shown: bool) -> Progress:
    """Progress on standard error: what, how far, time left, a note.

    On a terminal a bar, which goes away when it is done; elsewhere, as in a log, a line of
    text every 30 seconds, the first after as long. What is not `shown` counts all the same.
    """
    stream = _Stream(sys.stderr)
    if shown and not stream.isatty():
        return Lines(stream.write)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(file=stream),  # pyright: ignore[reportArgumentType]
        speed_estimate_period=_SPEED_SECONDS,
        transient=True,
        disable=not shown,
    )


def waiting(what: str, *, shown: bool) -> Progress:
    """A bar that moves without an end in sight, for one call that cannot tell how far it is."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(file=_Stream(sys.stderr)),  # pyright: ignore[reportArgumentType]
        transient=True,
        disable=not (shown and sys.stderr.isatty()),
    )
    bar.add_task(what, total=None)
    return bar


class Lines(Progress):
    """Progress as lines of text, for logs: `train 3/60: 12 %, 0:04:10 left; score 0.9712`.

    Args:
        write: takes a line, with its end.
        clock: seconds, from any start.

    Example:
        >>> seconds = iter(range(1000))
        >>> lines = Lines(print, clock=lambda: next(seconds))
        >>> lines.add_task("training", total=100, note="score 0.9")
        0
    """

    def __init__(
        self, write: Callable[[str], object], *, clock: Callable[[], float] = monotonic
    ) -> None:
        super().__init__(get_time=clock, speed_estimate_period=_SPEED_SECONDS, disable=True)
        self._write, self._written = write, clock()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self._write_if_due(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._write_if_due(task_id)

    def _write_if_due(self, task_id: TaskID) -> None:
        now = self.get_time()
        if now - self._written >= LINE_SECONDS:
            self._written = now
            self._write(plain(_line(self._tasks[task_id])) + "\n")


def _line(task: Task) -> str:
    parts = []
    if task.total:
        parts.append(f"{task.percentage:.0f} %")
    if task.time_remaining is not None:
        parts.append(f"{timedelta(seconds=int(task.time_remaining))} left")
    told = "; ".join(text for text in (", ".join(parts), task.fields["note"]) if text)
    return f"{task.description}: {told}" if told else task.description


class _Stream:
    """A stream whose terminal or reader may go away: no run ends of that."""

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
