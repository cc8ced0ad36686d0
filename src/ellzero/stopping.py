"""Signals that tell a process to end: at once while there is nothing to lose, then as an exception.

Only the standard library is imported here, for a signal may come during all other imports.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from contextlib import suppress
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

PATIENCE_SECONDS = 0.05
"""After so long a stop that Python dropped is raised again, outside of where it drops errors."""


class Stopped(KeyboardInterrupt):
    """The process was told to end, by Ctrl-C or another signal; what handles Ctrl-C handles it.

    Args:
        number: of the signal.

    Example:
        >>> Stopped(signal.SIGTERM).code
        143
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number
        """What the process ends with, as a shell has it."""


class Stopping:
    """What signals do to this process, from `install` to `ignore`.

    A signal ends the process at once, until `handle` is called; then it raises `Stopped`. While
    that exception is on its way, and while something handles it, further signals do nothing, so
    that what it makes a run write is written whole. One that was dropped on the way (in a
    finalizer, or by C code) is raised again. A signal that the process was told to ignore, as by
    nohup, stays ignored.
    """

    def __init__(self) -> None:
        self._at_once = True
        self._ending = False
        self._raised: weakref.ref[Stopped] | None = None
        self._handled = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]

    def install(self) -> None:
        """From here on signals end the process at once."""
        for number in self._handled:
            signal.signal(number, self._receive)
        sys.unraisablehook = _tell_of_others
        if hasattr(os, "register_at_fork"):  # the children of the user's code are not ours to stop
            os.register_at_fork(after_in_child=self._restore)

    def handle(self) -> None:
        """From here on they raise."""
        self._at_once = False

    def ignore(self) -> None:
        """From here on they do nothing: all is done, and the exit code stands."""
        for number in self._handled:
            signal.signal(number, signal.SIG_IGN)
        self._raised = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._ending:
            return
        if self._at_once:
            self._ending = True
            with suppress(OSError):  # a terminal that has gone
                os.write(2, b"ellzero: interrupted\n")
            os._exit(128 + number)
        if self._raised is not None and self._raised() is not None:
            return
        stopped = Stopped(number)

        def again(_: weakref.ref[Stopped]) -> None:
            main = threading.main_thread().ident
            threading.Timer(PATIENCE_SECONDS, signal.pthread_kill, [main, number]).start()

        self._raised = weakref.ref(stopped, again)
        try:
            raise stopped
        finally:
            del stopped  # or its own traceback would keep it alive

    def _restore(self) -> None:
        for number in self._handled:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


def _tell_of_others(dropped: sys.UnraisableHookArgs) -> None:
    """Say nothing of a stop that was dropped, for it comes again."""
    exception: Any = dropped.exc_type
    if exception is not Stopped:
        sys.__unraisablehook__(dropped)
