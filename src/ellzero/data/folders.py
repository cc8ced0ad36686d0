"""Where a published data set's files are found on this machine, or put by a download."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from ellzero.errors import InputError
from ellzero.progress import shown_progress

if TYPE_CHECKING:
    from rich.progress import Progress

_SYSTEM_FOLDER = Path("/usr/share/datasets")  # Debian's dataset-* packages


@dataclass(frozen=True)
class Published:
    """A data set as it is published.

    Args:
        name: the name of its folder.
        url: the address that a file's name is appended to; None: no address that will last.
        sha256: file name -> SHA-256 of the published file, in hexadecimal.
        unpacked: folders in any of which an archive's content may lie unpacked.
        source: where a person gets the files, where `url` is None.
    """

    name: str
    url: str | None
    sha256: Mapping[str, str]
    unpacked: tuple[str, ...] = ()
    source: str = ""


def find_files(published: Published, data_root: Path | str | None = None) -> dict[str, Path]:
    """The paths of a data set's files, by published name; downloads them when they are nowhere.

    Looks for all of them in `ROOT/NAME` of each of: `data_root`; the environment variable
    ELLZERO_DATA; the user's cache; the system's folder. Otherwise downloads into the user's cache
    (needs the extra `data`), if they have an address. A file may lie there decompressed, its name
    then lacking `.gz`; an archive may be unpacked, and the path is then that of the folder.

    Args:
        published: the data set.
        data_root: the folder that holds the data set's folder.

    Raises:
        InputError: `data_root` is no folder, or the files are nowhere and cannot be downloaded;
            the message lists every place looked at.
    """
    if data_root is not None and not Path(data_root).is_dir():
        raise InputError(
            f"data_root is {os.fspath(data_root)!r}, which is no folder; "
            f"expected the folder that holds {published.name}/"
        )
    files, looked_at = look(published, data_root)
    if files:
        return files

    failure: Exception | None = None
    try:
        if published.url is not None:
            return _download(published, published.url, user_cache() / published.name)
        reason = f"no download; get it from {published.source}"
    except ImportError as error:
        failure = error
        reason = "pooch is not installed; install it with: pip install 'ellzero[data]'"
    except (OSError, ValueError) as error:  # no network, no space, a wrong checksum
        failure, reason = error, str(error)
    if published.url is not None:
        reason = f"download from {published.url}: {reason}"
    places = "\n".join(f"  {place}" for place in looked_at)
    raise InputError(
        f"The data set {published.name} was not found. Looked in\n{places}\n"
        f"  {reason}\n"
        f"Put {', '.join(published.sha256)} into a folder {published.name}/ "
        "and give the folder that holds it as data_root or ELLZERO_DATA."
    ) from failure


def look(
    published: Published, data_root: Path | str | None = None
) -> tuple[dict[str, Path], list[str]]:
    """The paths of a data set's files on this machine; none where one is missing.

    Also, for messages, the places that were looked at in vain, and what is missing there.
    """
    roots = {
        "data_root": data_root,
        "ELLZERO_DATA": os.environ.get("ELLZERO_DATA") or None,
        "the user's cache": user_cache(),
        "the system's folder": _SYSTEM_FOLDER,
    }
    looked_at = []
    for place, root in roots.items():
        if root is None:
            looked_at.append(f"{place}: not given")
            continue
        folder = Path(root) / published.name
        files = {
            file: path for file in published.sha256 if (path := _locate(folder, file, published))
        }
        missing = [file for file in published.sha256 if file not in files]
        if not missing:
            return files, looked_at
        reason = f"lacks {', '.join(missing)}" if folder.is_dir() else "no such folder"
        looked_at.append(f"{place}: {folder} ({reason})")
    return {}, looked_at


def user_cache() -> Path:
    """The folder where this user's downloads are kept, by the system's convention."""
    return user_cache_path("ellzero", appauthor=False, opinion=False)


def _locate(folder: Path, file: str, published: Published) -> Path | None:
    candidates = (folder / file, folder / file.removesuffix(".gz"))
    if any((folder / name).is_dir() for name in published.unpacked):
        return folder
    return next((path for path in candidates if path.is_file()), None)


def _download(published: Published, url: str, folder: Path) -> dict[str, Path]:
    """Download what `folder` lacks of a data set.

    pooch checks a file under a temporary name and only then gives it its own, so an interrupted
    or damaged download is never taken for the data set.
    """
    import pooch

    registry = {file: f"sha256:{digest}" for file, digest in published.sha256.items()}
    downloads = pooch.create(folder, url, registry=registry)
    paths = {}
    with shown_progress(shown=True) as bar:
        for file in registry:
            line: Any = _Line(bar, file)
            downloader: Any = pooch.HTTPDownloader(progressbar=line)
            paths[file] = Path(downloads.fetch(file, downloader=downloader))
    return paths


class _Line:
    """A file's line of a bar, of the shape that pooch asks for."""

    total = 0

    def __init__(self, bar: Progress, file: str) -> None:
        self._bar = bar
        self._task = bar.add_task(file, total=None, note="")

    def update(self, count: int) -> None:
        """So many bytes more have come."""
        self._bar.update(self._task, total=self.total, advance=count)

    def reset(self) -> None:
        """Begin to count anew."""
        self._bar.reset(self._task)

    def close(self) -> None:
        """The file is complete; its line goes away with the bar."""
