"""Run folders: what a run leaves behind, and how it is written and read.

`compress` writes it, reports only read it.
"""

from __future__ import annotations

import gzip
import json
import os
import reprlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from ellzero.documents import MOST_JSON_BYTES, brief, parse_json, read_text
from ellzero.errors import BusyError, InputError
from ellzero.files import check_format, write_atomically, write_json
from ellzero.record import FORMAT, EpochMetrics, FinishedRecord, Record, Status, versions

LOCK = ".lock"
RECIPE = "recipe.toml"
RECORD = "record.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
REFERENCE = "reference.safetensors"
TRAINED = "trained.safetensors"
ANSWERS = "answers.safetensors"
CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = "checkpoint-previous.safetensors"
TENSORBOARD = "tensorboard"
"""A folder of events, one for each stage."""

CHECKPOINTS = (CHECKPOINT, PREVIOUS)
"""Where a run can go on, the last one first; gone when it is done."""

WRITTEN = (
    RECIPE, RECORD, METRICS, MODEL, f"{MODEL}.gz", REFERENCE, TRAINED, ANSWERS, *CHECKPOINTS
)  # fmt: skip
"""All files that a run may write, TensorBoard's apart."""


def new_folder(root: Path, name: str) -> Path:
    """Make `root/name-1`, or the first number that is free."""
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = root / f"{name}-{number}"
        try:
            folder.mkdir()  # fails where another run has just taken the number
        except FileExistsError:
            number += 1
        else:
            return folder


def take_folder(folder: Path) -> Path:
    """Make a named folder for a run, or take it where it is empty.

    Raises:
        InputError: the folder is not empty, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make output folder {folder}: {error.strerror}") from None
    left = [path for path in folder.iterdir() if path.name != LOCK and not _is_half_written(path)]
    if left:  # what a run leaves that was killed before it wrote anything whole does not count
        is_run = (folder / RECORD).is_file()
        go_on = f", or go on with its run by `ellzero run --resume {folder}`" if is_run else ""
        raise InputError(f"output folder {folder} is not empty; name another one{go_on}")
    return folder


def require_resumable(folder: Path) -> None:
    """Make sure that a run can go on in this folder, or begin anew where it saved nothing yet.

    A record that is missing or damaged is in nobody's way: a new one is written.

    Raises:
        InputError: no folder, or no recipe in it; a run that is done, or that may have been.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder} to resume")
    if RunFolder.at(folder).status == "done":
        raise InputError(f"the run in {folder} is done; there is nothing to resume")
    if not (folder / RECIPE).is_file():
        raise InputError(f"{folder} cannot be resumed: there is no {RECIPE} in it")
    if not has_checkpoint(folder) and (folder / MODEL).exists():
        raise InputError(
            f"{folder} cannot be resumed: there is no {CHECKPOINT} in it, and its {MODEL} would be "
            "lost if the run began anew; run its recipe in a new folder"
        )


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in this folder can go on, rather than begin anew."""
    return any((folder / name).is_file() for name in CHECKPOINTS)


def remove_half_written(folder: Path) -> None:
    """Remove what killed processes had begun to write; only under the folder's lock."""
    for path in folder.iterdir():
        if _is_half_written(path):
            path.unlink()


def _is_half_written(path: Path) -> bool:
    """Whether a file is the temporary one of an atomic write, `.NAME.hex`."""
    return path.name.startswith(".") and path.stem[1:] in WRITTEN


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep other processes from working in the folder at the same time.

    Raises:
        BusyError: another process is at work in it.
        InputError: the folder cannot be written to; something else than a file has the lock's name.
    """
    if folder is None:
        yield
        return
    path = folder / LOCK
    lock = FileLock(path, timeout=0)
    try:
        _require_own_file(path)
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"another process is at work in {folder}; wait for it, or stop it"
        ) from None
    except OSError as error:
        what = f"take the lock {path}" if os.path.lexists(path) else f"write to folder {folder}"
        raise InputError(f"cannot {what}: {error.strerror}") from None
    try:
        yield
    finally:
        if os.name == "posix":  # where it stays otherwise; who waits for it notices
            with suppress(OSError):  # a lock's file that nobody holds does no harm
                path.unlink()
        lock.release()


def _require_own_file(path: Path) -> None:
    """Refuse a lock that is a link or no file: who put it there means another one, or a trap."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        raise InputError(
            f"cannot take the lock {path}: it is a link, a folder, a pipe or a device, expected a "
            "file with no other name, or none; remove it"
        )


def write_record(folder: Path, record: Record) -> None:
    """Write the one JSON record of a run."""
    write_json(folder / RECORD, record.to_table())


def fail(folder: Path, error: str, status: Status = "failed") -> None:
    """Write into a run's record that it failed, and why; where there is no record, make one.

    Raises:
        BusyError: another process is at work in the folder, and the record is that one's.
        InputError: the lock's file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        try:
            record = read_record(folder)
        except InputError:
            record = Record(format=FORMAT, status=status, folder=folder, versions=versions())
        write_record(folder, record.changed(status=status, error=error))


def clear_folder(folder: Path) -> None:
    """Remove what a run left behind; other files stay."""
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)
    clear_events(folder / TENSORBOARD)


def clear_events(folder: Path) -> None:
    """Remove TensorBoard's events from a folder, and the folders that are empty then."""
    if folder.is_symlink():  # what is behind a link was not written by a run
        return
    for path in sorted(folder.rglob("*"), reverse=True):  # what is within a folder comes first
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # other files are in it
                path.rmdir()
        elif path.name.startswith("events.out.tfevents."):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def write_metrics(folder: Path, history: Sequence[EpochMetrics]) -> None:
    """Write a line of JSON per epoch, all anew, so that a reader never sees half a line."""
    lines = "".join(json.dumps(metrics.to_table()) + "\n" for metrics in history)
    write_atomically(folder / METRICS, lines.encode())


def read_record(folder: Path) -> Record:
    """The record of a run; a `FinishedRecord` if it is done.

    Raises:
        InputError: no record; not JSON; of a newer version; an entry that is missing or wrong.
    """
    path = folder / RECORD
    try:
        table = parse_json(read_text(path, MOST_JSON_BYTES))
    except OSError:
        raise InputError(f"{folder} holds no run: there is no {RECORD} in it") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(table, dict) or not {"format", "status"} <= table.keys():
        raise InputError(f"{path} is no record of a run")
    check_format(path, table["format"], FORMAT)
    kind = FinishedRecord if table["status"] == "done" else Record
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise InputError(f"{path} is not whole: {brief(problems)}") from None


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What a folder holds of a run: its record if it can be read, or else why it cannot.

    Args:
        folder: the folder.
        status: how far the run is; `missing` where there is no record.
        record: None where it is missing or cannot be read.
        error: why the run failed, or why its record cannot be read.

    Example:
        >>> import tempfile, ellzero as ez
        >>> study = ez.Study.parse({"sparsities": [0.9], "methods": {"magnitude": {}}})
        >>> ez.Results.read(tempfile.mkdtemp(), study).references[0].status
        'missing'
    """

    folder: Path
    status: Status | Literal["missing", "unreadable"]
    record: Record | None = None
    error: str | None = None

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        """What a folder holds of a run.

        Raises:
            InputError: as `read_record` raises.
        """
        record = read_record(folder)
        return cls(folder, record.status, record, record.error)

    @classmethod
    def at(cls, folder: Path) -> RunFolder:
        """The same where there may be none, or none that can be read."""
        try:
            if not (folder / RECORD).exists():
                return cls(folder, "missing")
            return cls.read(folder)
        except (InputError, OSError) as error:  # no permission, a name that is too long
            return cls(folder, "unreadable", error=str(error))

    @property
    def finished(self) -> FinishedRecord | None:
        """The record of a run that is done; None as long as it is not."""
        return self.record if isinstance(self.record, FinishedRecord) else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the run warns of, and why its metrics cannot be read where they cannot."""
        told = () if self.record is None else self.record.warnings
        _, problem = self._metrics
        return told if problem is None else (*told, problem)

    @property
    def metrics(self) -> tuple[EpochMetrics, ...]:
        """The run's metrics so far, read once; none where the file cannot be read."""
        return self._metrics[0]

    @cached_property
    def _metrics(self) -> tuple[tuple[EpochMetrics, ...], str | None]:
        """The metrics, and why they cannot be read where they are there and cannot."""
        path = self.folder / METRICS
        try:
            lines = read_text(path, MOST_JSON_BYTES).splitlines()
            return tuple(map(_epoch, lines)), None
        except FileNotFoundError:
            return (), None
        except ValidationError as error:
            problem = _problem(error.errors()[0])
        except (OSError, ValueError) as error:
            problem = str(error)
        return (), f"{path} cannot be read, so its epochs are left out: {problem}"


def write_model(folder: Path, content: bytes) -> int:
    """Write the compressed network, and the same file gzipped; the gzipped one's size in bytes."""
    packed = gzip.compress(content, compresslevel=6, mtime=0)  # 9 takes many times as long
    write_atomically(folder / MODEL, content)
    write_atomically(folder / f"{MODEL}.gz", packed)
    return len(packed)


_EPOCH = TypeAdapter(EpochMetrics)


def _epoch(line: str) -> EpochMetrics:
    metrics = _EPOCH.validate_json(line)
    if not metrics.is_finite:
        raise InputError(f"a figure of epoch {metrics.epoch} is no finite number, or too large")
    return metrics


def _problem(item: Mapping[str, Any]) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "missing":
        return f"no {key}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key} is {reprlib.repr(item['input'])}; {message}"
