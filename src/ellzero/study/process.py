"""A worker process on this machine, with a limit to every wait for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import IO

from ellzero.recipe import Recipe
from ellzero.study.pool import KILL_SECONDS, POLL_SECONDS, WorkerDied
from ellzero.study.watch import Watch

COMMAND = (sys.executable, "-m", "ellzero.study.worker")


class LocalWorker:
    """A worker process on this machine; a new one is started where one has died of a cell.

    A thread of the runner's gives it orders; its main thread watches and ends it.
    """

    def __init__(self, log: int) -> None:
        self._log = log
        self._closed = False
        self._lock = threading.Lock()  # no process is started after `close`
        self._start()

    def _start(self) -> None:
        self.watch: Watch | None = None
        """Of the cell that it runs at the moment."""
        self._killed_because: str | None = None
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # modules of the user's are found wherever the caller finds them
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            # Ctrl-C reaches the runner alone, which closes their input; and it is a group of
            # processes with whatever it starts, such as those that load the user's data
            start_new_session=True,
        )

    def run(self, folder: Path, recipe: Recipe) -> str | None:
        """Run one cell, or what comes before the process is closed; what there is to warn of.

        Raises:
            WorkerDied: it was not closed and did not come to the cell's end.
        """
        stdin = self._process.stdin
        assert stdin is not None
        order = {"folder": str(folder), "recipe": recipe.to_table()}
        self.watch = Watch(folder, time.monotonic())
        try:
            stdin.write(json.dumps(order) + "\n")
            stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it is gone, as reading will show
        answer = self._answer()
        self.watch = None
        if answer.endswith("\n"):
            return json.loads(answer)["warning"]
        if self._closed:
            return None
        death = self._death()
        self.release()
        with self._lock:
            if not self._closed:
                self._start()
        raise WorkerDied(death)

    def _answer(self) -> str:
        """The line that it answers; without its end, or empty, if the process ended before."""
        stdout = self._process.stdout
        assert stdout is not None
        is_over = False
        with DefaultSelector() as selector:
            selector.register(stdout, EVENT_READ)
            while not selector.select(0 if is_over else POLL_SECONDS):
                if is_over:  # what it has started holds the pipe, and perhaps the cell's lock
                    self._kill_group()
                    return ""
                is_over = self._killed_because is not None or self._process.poll() is not None
        return stdout.readline()

    def _death(self) -> str:
        if not self.wait(KILL_SECONDS):  # it closed its output and hangs
            self.kill("its process closed its output and was killed")
            self.wait(KILL_SECONDS)
        if self._killed_because is not None:
            return self._killed_because
        code = self._process.returncode
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"

    def rest(self) -> None:
        """A process that waits takes nothing from others."""

    def close(self) -> None:
        """Let the process end: at once if it is idle, else as an interrupted run."""
        with self._lock:
            self._closed = True
        # a stopped process may not have read its order, and closing waits for that
        threading.Thread(target=_close, args=(self._process.stdin,), daemon=True).start()

    def terminate(self) -> None:
        """Ask the process to end in another way."""
        self._process.terminate()

    def kill(self, because: str) -> None:
        """End the process, and what it has started, without asking."""
        self._killed_because = because
        if self._process.poll() is None:  # else the number may be another's by now
            self._kill_group()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: all of them have ended
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether the process ends within this time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.poll() is not None

    def release(self) -> None:
        """Close what led to a process that has ended."""
        _close(self._process.stdin)
        _close(self._process.stdout)


def _close(pipe: IO[str] | None) -> None:
    assert pipe is not None
    with suppress(BrokenPipeError, ValueError):  # an order never read; closed by two at once
        pipe.close()
