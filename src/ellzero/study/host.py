"""The part of a study's worker that is on another machine: a process, and a folder for its cell."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ellzero.recipe import Recipe
from ellzero.study.mirror import Changes, Mirror, with_paths
from ellzero.study.pool import POLL_SECONDS, WorkerDied
from ellzero.study.process import LocalWorker

LONGEST_LOOK = 10.0
"""Seconds after which `changes` answers, also where there is nothing to tell."""


@dataclass(frozen=True)
class Ended:
    """What became of a cell.

    Args:
        changes: the last ones.
        warning: as of `Worker.run`.
        death: how its process died, if it did.
    """

    changes: Changes
    warning: str | None = None
    death: str | None = None


class Host:
    """Runs cells in a process of its own machine; methods are called by several threads.

    No file system is shared: a cell's files come with the order, and what it writes is asked for.
    """

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the host
        self._told = 0  # bytes of the log
        self._mirror: Mirror | None = None
        self._over = threading.Event()  # no cell is run
        self._over.set()
        self._lock = threading.Lock()  # changes are told in their order
        self._worker = LocalWorker(self._log.fileno())

    def begin(self) -> None:
        """Nothing; it can be waited for until there is room for this host."""

    def run(
        self,
        folder: str,
        recipe: Mapping[str, Any],
        files: Mapping[str, bytes],
        networks: Mapping[str, bytes],
    ) -> Ended:
        """Run one cell.

        Args:
            folder: of the cell, where it is at home.
            recipe: its table.
            files: what the cell's folder holds already.
            networks: the files that the recipe names, by their paths at home.
        """
        with tempfile.TemporaryDirectory(prefix="ellzero-cell-") as root:
            place = Path(root, Path(folder).name)
            place.mkdir()
            places = {folder: str(place)}
            for number, (path, content) in enumerate(networks.items()):
                places[path] = str(Path(root, f"{number}.safetensors"))
                Path(places[path]).write_bytes(content)
            for name, content in files.items():
                (place / name).write_bytes(content)
            self._mirror = Mirror(place, {there: home for home, there in places.items()})
            self._over.clear()
            warning = death = None
            try:
                warning = self._worker.run(place, Recipe.parse(with_paths(recipe, places)))
            except WorkerDied as died:
                death = str(died)
            with self._lock:
                ended = Ended(
                    self._changes(), warning and warning.replace(str(place), folder), death
                )
                self._mirror = None
                self._over.set()
            return ended

    def changes(self) -> Changes:
        """What the cell has written since this was asked last.

        Waits for something to tell, but for no longer than the cell is run, nor `LONGEST_LOOK`.
        """
        deadline = time.monotonic() + LONGEST_LOOK
        while True:
            is_over = self._over.wait(POLL_SECONDS)
            with self._lock:
                changes = self._changes()
            if changes or is_over or time.monotonic() > deadline:
                return changes

    def _changes(self) -> Changes:
        if self._mirror is None:
            return Changes({})
        log = self._log.fileno()
        printed = os.pread(log, os.fstat(log).st_size - self._told, self._told)
        self._told += len(printed)
        return replace(self._mirror.changes(), log=printed)

    def close(self) -> None:
        """Let the process end, and the cell write its checkpoint."""
        self._worker.close()

    def terminate(self) -> None:
        """Ask the process to end in another way."""
        self._worker.terminate()

    def kill(self, because: str) -> None:
        """End the process without asking."""
        self._worker.kill(because)
