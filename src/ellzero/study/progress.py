"""The progress of a study: epochs done of all epochs, with the time left."""

from __future__ import annotations

from pathlib import Path

from ellzero.progress import shown_progress
from ellzero.run_folder import METRICS


class StudyBar:
    """Counts the epochs of a study's cells, and shows them if `progress` says so."""

    def __init__(self, progress: bool) -> None:
        self._bar = shown_progress(shown=progress)
        self._task = self._bar.add_task("starting", total=None, note="")
        self._active: dict[Path, int] = {}
        self._finished = self._cells = self._failed = 0

    def expect(self, stage: str, epochs: int) -> None:
        """A stage begins, and from now on this many epochs are still to come."""
        self._bar.update(self._task, description=stage, total=self._finished + epochs)

    def begin(self, folder: Path, epochs: int) -> None:
        """A cell begins."""
        self._active[folder] = epochs

    def end(self, folder: Path, epochs: int, *, failed: bool) -> None:
        """A cell has ended."""
        self._active.pop(folder, None)
        self._finished += epochs
        self._cells += 1
        self._failed += failed

    def refresh(self) -> None:
        """Look at the metrics of the cells that run at the moment."""
        active = dict(self._active)  # the workers' threads change it meanwhile
        running = sum(min(_epochs(folder), work) for folder, work in active.items())
        failed = f", {self._failed} failed" if self._failed else ""
        note = f"{self._cells} cells done{failed}; now {', '.join(f.name for f in active)}"
        self._bar.update(self._task, completed=self._finished + running, note=note)

    def __enter__(self) -> StudyBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _epochs(folder: Path) -> int:
    try:
        return (folder / METRICS).read_bytes().count(b"\n")
    except OSError:
        return 0
