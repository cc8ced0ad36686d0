"""Whether a cell makes progress, as its folder shows."""

from __future__ import annotations

from pathlib import Path

LONGEST_LOOK = 10.0
"""Seconds that count at most between two looks, for whoever looks may have been stopped as well."""


class Watch:
    """How long a cell has made no progress.

    Whatever a run writes, metrics, checkpoints and records, takes its place in the folder when it
    is whole. So the folder's own time of change tells of all of it.

    Example:
        >>> import tempfile
        >>> watch = Watch(Path(tempfile.mkdtemp()) / "cell", now=100.0)
        >>> watch.look(now=105.0), watch.look(now=107.5)
        (5.0, 7.5)
        >>> watch.folder.mkdir()
        >>> watch.look(now=110.0)
        0.0
    """

    def __init__(self, folder: Path, now: float) -> None:
        self.folder = folder
        self.is_known_to_stall = False
        """Whether somebody has been told."""
        self._idle = 0.0
        self._last = now
        self._changed = _changed(folder)

    def look(self, now: float) -> float:
        """Seconds without progress, at this time of a clock that only goes forward."""
        changed = _changed(self.folder)
        if changed != self._changed:
            self._changed, self._idle, self.is_known_to_stall = changed, 0.0, False
        else:
            self._idle += min(now - self._last, LONGEST_LOOK)
        self._last = now
        return self._idle


def _changed(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:  # it is still to be made
        return None
