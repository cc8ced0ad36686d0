"""Records: what a run leaves behind in its folder; `compress` writes it, reports only read it."""

from __future__ import annotations

import gzip
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from ellzero.errors import InputError
from ellzero.files import check_format, write_atomically, write_json
from ellzero.selection import Selection

FORMAT = 1
"""Version of record.json; a record of a newer one is refused by readers."""

RECIPE = "recipe.toml"
RECORD = "record.json"
METRICS = "metrics.jsonl"
MODEL = "model.safetensors"
REFERENCE = "reference.safetensors"
TRAINED = "trained.safetensors"
ANSWERS = "answers.safetensors"
CHECKPOINT = "checkpoint.safetensors"

WRITTEN = (RECIPE, RECORD, METRICS, MODEL, f"{MODEL}.gz", REFERENCE, TRAINED, ANSWERS, CHECKPOINT)
"""All that a run may write."""


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
        InputError: the folder is in use, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make output folder {folder}: {error.strerror}") from None
    if any(folder.iterdir()):
        raise InputError(
            f"output folder {folder} is in use; name another one, or go on with what it holds by "
            f"`ellzero run --resume {folder}`"
        )
    return folder


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep other processes from working in the folder at the same time.

    Raises:
        InputError: another process is at work in it.
    """
    if folder is None:
        yield
        return
    path = folder / ".lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"another process is at work in {folder}; wait for it, or stop it"
        ) from None
    try:
        yield
    finally:
        if os.name == "posix":  # where it stays otherwise; who waits for it notices
            path.unlink(missing_ok=True)
        lock.release()


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the one JSON record of a run."""
    write_json(folder / RECORD, record)


def fail(folder: Path, error: str, status: str = "failed") -> None:
    """Write into a run's record that it failed, and why; where there is no record, make one."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        record = read_record(folder)
    except InputError:
        record = {"format": FORMAT, "folder": str(folder), "versions": versions()}
    write_record(folder, {**record, "status": status, "error": error})


def clear_folder(folder: Path) -> None:
    """Remove what a run left behind; other files stay."""
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)


def write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write a line of JSON per epoch, all anew, so that a reader never sees half a line."""
    lines = "".join(json.dumps(metrics) + "\n" for metrics in history)
    write_atomically(folder / METRICS, lines.encode())


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        InputError: no record; not JSON; of a newer version.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{folder} holds no run: there is no {RECORD} in it") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(record, dict) or not {"format", "status"} <= record.keys():
        raise InputError(f"{path} is no record of a run")
    check_format(path, record["format"], FORMAT)
    return record


def write_model(folder: Path, content: bytes) -> int:
    """Write the compressed network, and the same file gzipped; the gzipped one's size in bytes."""
    packed = gzip.compress(content, compresslevel=9, mtime=0)
    write_atomically(folder / MODEL, content)
    write_atomically(folder / f"{MODEL}.gz", packed)
    return len(packed)


SMALLEST, LARGEST, PER_DECADE = -8, 2, 10
"""The histogram of magnitudes runs from 1e-8 to 1e2, in this many bins a decade."""


def magnitudes(weights: Selection) -> dict[str, Any]:
    """Histogram of the selected weights' magnitudes: count of zeros, and of each bin of log10 |w|.

    Magnitudes beyond either end are counted in the bin at that end.
    """
    counts = torch.zeros((LARGEST - SMALLEST) * PER_DECADE, dtype=torch.int64)
    zeros = 0
    for w in weights.values():
        found = w.detach().abs()
        found = found[found > 0].float()
        zeros += w.numel() - found.numel()
        bins = found.log10_().sub_(SMALLEST).mul_(PER_DECADE).clamp_(0, len(counts) - 1)
        counts += torch.bincount(bins.long(), minlength=len(counts)).cpu()
    return {
        "zeros": zeros,
        "smallest": SMALLEST,
        "per_decade": PER_DECADE,
        "counts": counts.tolist(),
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("ellzero", "torch", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def sizes(model: nn.Module, weights: Selection) -> dict[str, Any]:
    """How much is left: of the selected weights, and of all parameters, selected or not.

    A tied parameter counts once, a frozen one too; what is not selected counts as left. The ratios
    are None where nothing is left.
    """
    nonzeros = sum(int(torch.count_nonzero(w)) for w in weights.values())
    parameters = sum(p.numel() for p in model.parameters())
    left = parameters - (weights.numel - nonzeros)
    return {
        "weights": weights.numel,
        "nonzeros": nonzeros,
        "sparsity": 1 - nonzeros / weights.numel,
        "nonzero_ratio": weights.numel / nonzeros if nonzeros else None,
        "parameters": parameters,
        "parameters_left": left,
        "parameter_ratio": parameters / left if left else None,
        "float32_bytes": 4 * parameters,
    }


def layer_table(weights: Selection) -> list[dict[str, Any]]:
    """A row per selected weight: name, kind, shape, count of weights, nonzeros, density."""
    rows = []
    for weight in weights.weights:
        w = weight.parameter
        nonzeros = int(torch.count_nonzero(w))
        rows.append(
            {
                "name": weight.name,
                "kind": weight.kind,
                "shape": list(w.shape),
                "weights": w.numel(),
                "nonzeros": nonzeros,
                "density": nonzeros / w.numel() if w.numel() else 0.0,
            }
        )
    return rows
