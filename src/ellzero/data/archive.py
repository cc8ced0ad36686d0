"""Files of a folder or an archive, one after the other, within limits; nothing is unpacked."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from ellzero.errors import InputError
from ellzero.progress import shown_progress

MIB = 1 << 20
GIB = 1 << 30

_MOST_FILES = 5_000_000  # ImageNet has 1.3 million
_TAR_HEADERS = MIB  # of one file, such as its long name; tarfile keeps them in memory
_XZ_MEMORY = 128 * MIB  # the dictionary of `xz -9` has 64
_GLOBAL_HEADERS = 64  # of a tar file, for all files after them; tarfile keeps these, too
_BAR_STEPS = 200
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # also NotImplementedError: a kind of compression
    struct.error,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)
"""What the standard library raises on a damaged or hostile archive."""


def read_files(
    path: Path, wanted: Callable[[str], bool], *, largest: int, total: int
) -> Generator[tuple[str, bytes], None, None]:
    """The names and contents of the files of a folder, .zip, .tar, .tar.gz or .tar.xz.

    Names are relative, with `/`. Hidden files (a part of the name starts with a dot) and macOS'
    `__MACOSX` are passed over. The order is the archive's; that of a folder is sorted. What kind of
    archive it is, its first bytes say. Checksums come last, so that what was read counts only once
    the iteration has ended; `contextlib.closing` closes the archive where it does not get there.

    Args:
        path: the folder or archive.
        wanted: whether a file is read, by its name.
        largest: most bytes of one file.
        total: most bytes of all that is read, decompressed.

    Raises:
        InputError: nothing there, or no such archive; damaged or cut short; a name that leaves the
            folder, stands there twice or is not in UTF-8; a link or device in an archive; a folder
            that links lead to twice; encrypted; beyond a limit.
    """
    budget = _Budget(path, largest, total)
    kind = _kind(path)
    files = {"folder": _folder, "zip": _zip}.get(kind, _tar)
    seen: set[str] = set()
    try:
        with shown_progress(shown=True) as bar:
            task, shown = bar.add_task(path.name, total=_BAR_STEPS, note=""), 0
            for name, read, done in files(path, budget):
                if int(done * _BAR_STEPS) > shown:  # to update it for each small file takes long
                    shown = int(done * _BAR_STEPS)
                    bar.update(task, completed=shown)
                if len(seen) >= _MOST_FILES:
                    raise InputError(f"{path} has more than {_MOST_FILES:,} files")
                if name in seen:
                    raise InputError(f"{path} has {name!r} twice")
                seen.add(name)
                if not _is_hidden(name) and wanted(name):
                    if name.encode(errors="ignore").decode() != name:  # bytes kept as surrogates
                        raise InputError(f"{path}: the name {name!r} is not in UTF-8")
                    yield name, read()
    except InputError:
        raise
    except _DAMAGE as error:
        hint = "" if kind == "folder" else "; fetch it again"
        raise InputError(f"{path} cannot be read: {error or type(error).__name__}{hint}") from error


class _Budget:
    """How much may be read of an archive."""

    def __init__(self, path: Path, largest: int, total: int) -> None:
        self.path, self.largest, self._total, self._left = path, largest, total, total

    def require(self, name: str, size: int) -> None:
        """Make sure that a file is not too large, before it is read."""
        if size > self.largest:
            raise InputError(
                f"{self.path}: {name!r} has {size:,} bytes; expected at most {self.largest:,}"
            )

    def spend(self, size: int) -> None:
        """So many bytes were read."""
        self._left -= size
        if self._left < 0:
            raise InputError(f"{self.path} holds more than {self._total:,} bytes; nothing is read")


_Files = Iterator[tuple[str, Callable[[], bytes], float]]
"""The name of a file, what reads it, and the fraction of the archive that lies before it."""


def looked_for(path: Path) -> str:
    """Where a file that is not there was looked for, as the end of an error message.

    Example:
        >>> looked_for(Path("/nowhere.csv"))
        ''
    """
    if path.is_absolute():
        return ""
    return f" in {Path.cwd()}, the folder you work in; work in the one that it counts from"


def _kind(path: Path) -> str:
    try:
        if path.is_dir():
            return "folder"
        if not path.is_file():
            raise InputError(f"{path} is no folder and no file{looked_for(path)}")
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for kind, magic in (("zip", b"PK"), ("gz", b"\x1f\x8b"), ("xz", b"\xfd7zXZ\x00")):
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return "tar"
    raise InputError(f"{path} is no folder, .zip, .tar, .tar.gz or .tar.xz")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder(path: Path, budget: _Budget) -> _Files:
    def reader(file: Path, name: str) -> Callable[[], bytes]:
        def read() -> bytes:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
                raise InputError(f"{file} is no regular file")
            budget.require(name, status.st_size)
            budget.spend(status.st_size)
            return file.read_bytes()

        return read

    files = list(_walk(path))
    for index, file in enumerate(files):
        name = file.relative_to(path).as_posix()
        yield name, reader(file, name), index / len(files)


def _walk(path: Path) -> Iterator[Path]:
    """The files below a folder, hidden folders' apart; links are followed."""

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        # people put data together with links, and these may lead in circles
        if (status.st_dev, status.st_ino) in seen:
            raise InputError(f"{folder} leads to a folder that was read already, by a link")
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(folder, file) for file in sorted(files))


def _zip(path: Path, budget: _Budget) -> _Files:
    def reader(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            if entry.flag_bits & 1:
                raise InputError(f"{path}: {entry.filename!r} is encrypted")
            # the other kinds let the file say how much memory they take
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(f"{path}: {entry.filename!r} is neither stored nor deflated")
            budget.require(entry.filename, entry.file_size)
            budget.spend(entry.file_size)
            with archive.open(entry) as file:
                content = file.read(entry.file_size + 1)
            if len(content) != entry.file_size:
                raise EOFError(f"{entry.filename!r} is cut short")
            return content

        return read

    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if not entries:
            raise ValueError("it is empty")
        for index, entry in enumerate(entries):
            name = _inside(path, entry.filename)
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(f"{path}: {entry.filename!r} is a link or device")
            # a damaged length of a comment swallows the entries after it
            if b"PK\1\2" in entry.extra + entry.comment:
                raise ValueError(f"the entry of {name!r} is damaged")
            if not entry.filename.endswith("/") or entry.file_size:
                yield name, reader(archive, entry), index / len(entries)


def _tar(path: Path, budget: _Budget) -> _Files:
    def reader(file: IO[bytes], name: str, size: int) -> Callable[[], bytes]:
        def read() -> bytes:
            budget.require(name, size)
            return file.read()

        return read

    with path.open("rb") as raw:
        length = path.stat().st_size
        content: Any = _Metered(_decompressed(raw), budget)
        content.allow(_TAR_HEADERS)
        with tarfile.open(fileobj=content, mode="r|") as archive:
            while entry := archive.next():
                archive.members = []  # pyright: ignore  (nothing goes back to them)
                if len(archive.pax_headers) > _GLOBAL_HEADERS:
                    raise InputError(f"{path} has more than {_GLOBAL_HEADERS} global headers")
                name = _inside(path, entry.name)
                if not entry.isdir():
                    file = archive.extractfile(entry) if entry.isreg() else None
                    if file is None or entry.issparse():
                        raise InputError(f"{path}: {name!r} is no regular file")
                    content.allow(entry.size + _TAR_HEADERS)
                    yield name, reader(file, name, entry.size), raw.tell() / length
                    while file.read(MIB):  # what nobody wanted
                        pass
                content.allow(_TAR_HEADERS)
            end = archive.offset
        content.read_rest()
        # for tarfile an archive ends at a header that is damaged or cut off, too
        if content.position < end + tarfile.BLOCKSIZE:
            raise EOFError("it is cut short")
        if content.last > end:
            raise ValueError(f"it is damaged at byte {end:,}")


def _inside(path: Path, name: str) -> str:
    """The name without `./` and `//`, which does not lead out of the archive."""
    steps = [step for step in name.split("/") if step not in ("", ".")]
    if name.startswith("/") or "\\" in name or ":" in name[:2] or ".." in steps:
        raise InputError(f"{path}: the name {name!r} leads out of the archive")
    return "/".join(steps)


class _Metered:
    """A stream of which only so much may be read at a time."""

    def __init__(self, stream: BinaryIO, budget: _Budget) -> None:
        self._stream, self._budget = stream, budget
        self._allowed = 0
        self.position = 0
        """How many bytes were read."""
        self.last = 0
        """The position after the last byte that was not 0."""

    def allow(self, size: int) -> None:
        """So many bytes may be read until the next call, beside what tarfile reads ahead."""
        self._allowed = size + tarfile.RECORDSIZE

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._budget.spend(len(content))
        self._allowed -= len(content)
        if self._allowed < 0:
            raise InputError(f"{self._budget.path} has a file with too large a header")
        if start := content.rstrip(b"\0"):
            self.last = self.position + len(start)
        self.position += len(content)
        return content

    def read_rest(self) -> None:
        """Go to the end, where checksums are compared."""
        content = b"\0"
        while content:
            self.allow(MIB)
            content = self.read(MIB)


def _decompressed(file: BinaryIO) -> BinaryIO:
    start = file.read(2)
    file.seek(0)
    if start == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)  # pyright: ignore[reportReturnType]
    return io.BufferedReader(_XZ(file)) if start == b"\xfd7" else file


class _XZ(io.RawIOBase):
    """The content of an .xz file within bounded memory, which `lzma.open` does not promise."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore
        while True:
            rest = b""
            if self._decompressor.eof:  # another stream may follow, after zeros
                rest = self._decompressor.unused_data.lstrip(b"\0")
                while not rest:
                    padding = self._file.read(MIB)
                    if not padding:
                        return 0
                    rest = padding.lstrip(b"\0")
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
            elif self._decompressor.needs_input:
                rest = self._file.read(MIB)
                if not rest:
                    raise EOFError("it is cut short")
            content = self._decompressor.decompress(rest, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
