"""A cell's folder in two places: what changed in one of them, to be written in the other."""

from __future__ import annotations

import json
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ellzero.errors import InputError
from ellzero.files import write_atomically
from ellzero.run_folder import CHECKPOINT, CHECKPOINTS, PREVIOUS, RECIPE, RECORD, WRITTEN

MIRRORED = tuple(name for name in WRITTEN if name != PREVIOUS)
"""Files that go from place to place. The last checkpoint suffices, as nothing tears it underway.

The record comes before the networks: one that says `done` is read before what it tells of.
"""


@dataclass(frozen=True)
class Changes:
    """What is to be done to a folder, to hold what another one holds.

    Args:
        written: files, new or changed, by their names.
        removed: names of files that are gone.
        log: what was printed meanwhile.
    """

    written: Mapping[str, bytes]
    removed: tuple[str, ...] = ()
    log: bytes = b""

    def __bool__(self) -> bool:
        return bool(self.written or self.removed or self.log)

    def apply(self, folder: Path) -> None:
        """Do it.

        Raises:
            InputError: a file that no run writes.
            WriteError: a file cannot be written.
        """
        for name in {*self.written, *self.removed} - set(MIRRORED):
            raise InputError(f"a worker sent the file {name!r}, which no run writes")
        for name in sorted(self.written, key=RECORD.__eq__):  # what it tells of comes before it
            write_atomically(folder / name, self.written[name])
        for name in self.removed:
            for gone in CHECKPOINTS if name in CHECKPOINTS else (name,):
                (folder / gone).unlink(missing_ok=True)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder that go with a cell to where it is run."""
    paths = {name: _path(folder, name) for name in MIRRORED}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


class Mirror:
    """Tells what has changed in a folder since it was asked last; several threads may ask.

    Args:
        folder: where the cell is run; what it holds now is known elsewhere.
        homes: what paths in its recipe and its record are elsewhere.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> mirror = Mirror(folder, {str(folder): "/home/cell"})
        >>> _ = (folder / "record.json").write_text(json.dumps({"folder": str(folder)}))
        >>> dict(mirror.changes().written)
        {'record.json': b'{\\n  "folder": "/home/cell"\\n}\\n'}
        >>> bool(mirror.changes())
        False
    """

    def __init__(self, folder: Path, homes: Mapping[str, str]) -> None:
        self._folder = folder
        self._homes = homes
        self._lock = threading.Lock()
        self._known = {name: _stamp(_path(folder, name)) for name in MIRRORED}

    def changes(self) -> Changes:
        """What has changed; a file that changes meanwhile is told of again."""
        with self._lock:
            written, removed = {}, []
            for name in MIRRORED:
                path = _path(self._folder, name)
                stamp = _stamp(path)
                if stamp == self._known[name]:
                    continue
                if stamp is None:
                    removed.append(name)
                else:
                    try:
                        content = path.read_bytes()
                    except FileNotFoundError:  # gone or renamed by now, as the next look tells
                        continue
                    written[name] = self._at_home(name, content)
                self._known[name] = stamp
            return Changes(written, tuple(removed))

    def _at_home(self, name: str, content: bytes) -> bytes:
        if name == RECIPE:
            table = tomllib.loads(content.decode())
            return tomli_w.dumps(with_paths(table, self._homes)).encode()
        if name == RECORD:
            document = with_paths(json.loads(content), self._homes)
            return (json.dumps(document, indent=2) + "\n").encode()
        return content


def with_paths(document: Any, paths: Mapping[str, str]) -> Any:
    """A document of tables and lists in which some texts, paths, are replaced.

    Example:
        >>> with_paths({"file": "/a/b", "list": ["/a/b", 1]}, {"/a/b": "/c"})
        {'file': '/c', 'list': ['/c', 1]}
    """
    if isinstance(document, str):
        return paths.get(document, document)
    if isinstance(document, Mapping):
        return {key: with_paths(value, paths) for key, value in document.items()}
    if isinstance(document, list):
        return [with_paths(value, paths) for value in document]
    return document


def _path(folder: Path, name: str) -> Path:
    """Where a folder has what goes by this name.

    While a checkpoint is written, the one before it is the last one, under its other name.
    """
    path = folder / name
    return folder / PREVIOUS if name == CHECKPOINT and not path.exists() else path


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What is another one when a file takes the place of the one before."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size
