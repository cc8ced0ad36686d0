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
from ellzero.progress import is_shown, rich_bar

MIB = 1 << 20
GIB = 1 << 30

_MOST_FILES = 5_000_000  # ImageNet has 1.3 million
_TAR_HEADERS = MIB  # of one file, such as its long name; tarfile keeps them in memory
_XZ_MEMORY = 128 * MIB  # the dictionary of `xz -9` has 64
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
    archive it is, its first bytes say.

    Args:
        path: the folder or archive.
        wanted: whether a file is read, by its name.
        largest: most bytes of one file.
        total: most bytes of all that is read, decompressed.

    Raises:
        InputError: nothing there, or no such archive; damaged or cut short; a name that leaves the
            folder or stands there twice; a link or device in an archive; encrypted; beyond a limit.
    """
    budget = _Budget(path, largest, total)
    kind = _kind(path)
    files = {"folder": _folder, "zip": _zip}.get(kind, _tar)
    seen: set[str] = set()
    try:
        for name, read in files(path, budget):
            if len(seen) >= _MOST_FILES:
                raise InputError(f"{path} has more than {_MOST_FILES:,} files")
            if name in seen:
                raise InputError(f"{path} has {name!r} twice")
            seen.add(name)
            if not _is_hidden(name) and wanted(name):
                yield name, read()
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(
            f"{path} cannot be read: {error or type(error).__name__}; fetch it again"
        ) from error


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


_Files = Iterator[tuple[str, Callable[[], bytes]]]


def _kind(path: Path) -> str:
    try:
        if path.is_dir():
            return "folder"
        if not path.is_file():
            raise InputError(f"{path} is no folder and no file")
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

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        place = Path(folder)
        if place.is_symlink() and place != path:  # people put data together with links
            parent = place.parent.resolve()
            if place.resolve() in (parent, *parent.parents):
                raise InputError(f"{place} is a link to a folder that it lies in")
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for file in sorted(files):
            name = (place / file).relative_to(path).as_posix()
            yield name, reader(place / file, name)


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
        for entry in archive.infolist():
            _require_inside(path, entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise InputError(f"{path}: {entry.filename!r} is a link")
            if not entry.is_dir():
                yield entry.filename, reader(archive, entry)


def _tar(path: Path, budget: _Budget) -> _Files:
    def reader(file: IO[bytes], entry: tarfile.TarInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            budget.require(entry.name, entry.size)
            return file.read()

        return read

    with path.open("rb") as raw, rich_bar(shown=is_shown(None)) as bar:
        task = bar.add_task(path.name, total=path.stat().st_size, note="")
        content: Any = _Metered(_decompressed(raw), budget)
        content.allow(_TAR_HEADERS)
        with tarfile.open(fileobj=content, mode="r|") as archive:
            while True:
                entry = archive.next()
                if entry is None:
                    break
                archive.members = []  # pyright: ignore  (nothing goes back to them)
                bar.update(task, completed=raw.tell())
                name = entry.name.removeprefix("./")
                _require_inside(path, name)
                if entry.isdir():
                    content.allow(_TAR_HEADERS)
                    continue
                file = archive.extractfile(entry) if entry.isreg() else None
                if file is None or entry.issparse():
                    raise InputError(f"{path}: {name!r} is no regular file")
                content.allow(entry.size + _TAR_HEADERS)
                yield name, reader(file, entry)
                while file.read(MIB):  # what nobody wanted
                    pass
                content.allow(_TAR_HEADERS)
        while content.allow(MIB) or content.read(MIB):
            pass
        # tarfile takes an archive that ends between two files for a whole one
        if content.tail.count(0) < tarfile.BLOCKSIZE:
            raise EOFError("it is cut short")


def _require_inside(path: Path, name: str) -> None:
    if name.startswith("/") or "\\" in name or ":" in name[:2] or ".." in name.split("/"):
        raise InputError(f"{path}: the name {name!r} leads out of the archive")


class _Metered:
    """A stream of which only so much may be read at a time; it remembers its end."""

    def __init__(self, stream: BinaryIO, budget: _Budget) -> None:
        self._stream, self._budget = stream, budget
        self._allowed = 0
        self.tail = b""

    def allow(self, size: int) -> None:
        """So many bytes may be read until the next call, beside what tarfile reads ahead."""
        self._allowed = size + tarfile.RECORDSIZE

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._budget.spend(len(content))
        self._allowed -= len(content)
        if self._allowed < 0:
            raise InputError(f"{self._budget.path} has a file with too large a header")
        self.tail = (self.tail + content)[-tarfile.BLOCKSIZE :]
        return content


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
                rest = rest or self._file.read(MIB).lstrip(b"\0")
                if not rest:
                    return 0
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
            elif self._decompressor.needs_input:
                rest = self._file.read(MIB)
                if not rest:
                    raise EOFError("it is cut short")
            content = self._decompressor.decompress(rest, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
