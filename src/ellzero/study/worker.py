"""A worker: a process that runs the cells it is told of, one after another.

Orders come on standard input, a line of JSON each; a line of JSON goes out when a cell has ended.
When standard input closes, the worker ends at once: the run it is in can be resumed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ellzero.data.data import Data
from ellzero.errors import BudgetError, BusyError, InputError, WriteError
from ellzero.factories import build_data, build_model
from ellzero.recipe import Factory, Recipe
from ellzero.run_folder import (
    RunFolder,
    clear_folder,
    fail,
    has_checkpoint,
    locked,
    remove_half_written,
)
from ellzero.scheme import compress
from ellzero.stopping import Stopping

STOP = signal.SIGTERM
"""The signal that the runner sends; a standard input that closes has the same effect."""

WAIT_SECONDS = 60
"""For so long a worker waits for another one to end its batch and let go of a cell."""


def main() -> None:
    """Run what standard input says, until it closes."""
    # what a user's own code prints must not mix with the answers; it goes to the log
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # a process started in the background may have been told to ignore what is to stop it
    signal.signal(STOP, signal.SIG_DFL)
    stopping = Stopping()
    stopping.install()
    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    try:
        stopping.handle()
        threading.Thread(target=_listen, args=(orders,), daemon=True).start()
        while (order := orders.get()) is not None:
            answers.write(json.dumps({"warning": _warning(order)}) + "\n")
            answers.flush()
    except KeyboardInterrupt:
        pass  # the run that it was in can go on
    finally:
        # the listener interrupts whatever this thread is at, also where nothing is left to stop
        stopping.ignore()


def _warning(order: dict[str, Any]) -> str | None:
    """Do what is ordered; what there is to warn of that no record says."""
    try:
        run_cell(Path(order["folder"]), order["recipe"])
    except InputError as error:
        return f"{order['folder']} is left alone: {error}"
    except WriteError as error:
        return str(error)
    return None


def _listen(orders: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    orders.put(None)
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, STOP)  # a signal of the system ends also what it waits for


def run_cell(folder: Path, table: dict[str, Any]) -> str | None:
    """Run one cell by its recipe's table, or go on where it stopped; why it failed, or None.

    A failure is written into the cell's record as well.

    Raises:
        BusyError: another process is at work in the cell, which is left alone.
        WriteError: it failed and its record cannot say so, as on a full disk.
    """
    try:
        recipe = Recipe.parse(table)
        status = _made_ready(folder)
        if status == "done":  # by the process that was waited for
            return None
        data = _data(json.dumps(recipe.data and recipe.data.model_dump()))
        model = build_model(recipe.model, recipe.seed)
        resume = status == "resumable"
        compress(model, data, recipe, folder=folder, resume=resume, progress=False)
    except BusyError:
        raise
    except Exception as error:
        with suppress(OSError):  # a full disk takes no log either
            traceback.print_exc()
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        try:  # another try would miss the budget again
            fail(folder, message, "missed" if isinstance(error, BudgetError) else "failed")
        except WriteError as reason:
            raise WriteError(
                f"{folder} failed: {message}; its record does not say so: {reason}"
            ) from error
        return message
    return None


def _made_ready(folder: Path) -> Literal["done", "resumable", "empty"]:
    """What a cell's folder holds once half-written files and what cannot go on are removed.

    Waits for the worker of a killed study to let go of the cell.

    Raises:
        BusyError: it did not, within `WAIT_SECONDS`.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while folder.is_dir():
        try:
            with locked(folder):
                return _cleared(folder)
        except BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
    return "empty"


def _cleared(folder: Path) -> Literal["done", "resumable", "empty"]:
    remove_half_written(folder)
    status = RunFolder.at(folder).status
    if status == "done":
        return "done"
    if status in ("running", "interrupted") and has_checkpoint(folder):
        return "resumable"
    clear_folder(folder)
    return "empty"


@lru_cache(maxsize=1)  # the cells of a study share their data
def _data(factory: str) -> Data:
    return build_data(Factory.model_validate(json.loads(factory)) if factory != "null" else None)


if __name__ == "__main__":
    main()
