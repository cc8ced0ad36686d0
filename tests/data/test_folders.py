import gc
import hashlib
import io
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ellzero.data import folders
from ellzero.data.folders import Published, find_files, user_cache
from ellzero.errors import InputError

CONTENT = {"images.gz": b"some images", "labels.gz": b"some labels"}
UNREACHABLE = "http://127.0.0.1:9/"  # the discard port: connections are refused at once


def published(url: str = UNREACHABLE) -> Published:
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in CONTENT.items()}
    return Published("shapes", url, digests)


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file, content in CONTENT.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """Every place a data set is looked for, none of which exists yet."""
    monkeypatch.setenv("ELLZERO_DATA", str(tmp_path / "environment"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folders, "_SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return {
        "given": tmp_path / "given",
        "environment": tmp_path / "environment",
        "cache": tmp_path / "cache" / "ellzero",
        "system": tmp_path / "system",
    }


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address and the folder it serves."""
    served = fill(tmp_path / "served")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served)) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/", served
        http.shutdown()
        thread.join()
    with warnings.catch_warnings():
        # the client leaves a refused download's connection to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_places_are_looked_at_in_order(places):
    # Filled from the last to the first, each place takes over from those after it.
    for name, root in reversed(places.items()):
        folder = fill(root / "shapes")
        data_root = root if name == "given" else None
        found = find_files(published(), data_root)
        assert found == {file: folder / file for file in CONTENT}


def test_an_unpacked_archive_is_found_as_its_folder(places):
    archive = Published("sounds", None, {"sounds.zip": "0" * 64}, ("takes", "sounds"), "a page")
    folder = places["environment"] / "sounds"
    (folder / "other").mkdir(parents=True)
    with pytest.raises(InputError, match=r"environment/sounds \(lacks sounds\.zip\)"):
        find_files(archive)
    (folder / "takes").mkdir()
    assert find_files(archive) == {"sounds.zip": folder}


def test_what_has_no_address_says_where_to_get_it(places):
    archive = Published("sounds", None, {"sounds.zip": "0" * 64}, source="https://example.org")
    with pytest.raises(InputError) as refused:
        find_files(archive)
    lines = str(refused.value).splitlines()
    assert lines[-2:] == [
        "  no download; get it from https://example.org",
        "Put sounds.zip into a folder sounds/ and give the folder that holds it as data_root or "
        "ELLZERO_DATA.",
    ]


def test_a_folder_that_lacks_a_file_is_passed_over(places):
    folder = fill(places["environment"] / "shapes")
    (folder / "labels.gz").unlink()
    complete = fill(places["system"] / "shapes")
    assert find_files(published())["images.gz"] == complete / "images.gz"


def test_decompressed_files_count(places):
    folder = fill(places["given"] / "shapes")
    (folder / "labels.gz").rename(folder / "labels")
    assert find_files(published(), places["given"])["labels.gz"] == folder / "labels"


def test_nothing_found_lists_every_place(places):
    fill(places["system"] / "shapes")
    (places["system"] / "shapes" / "labels.gz").unlink()
    with pytest.raises(InputError) as refusal:
        find_files(published())
    message = str(refusal.value)
    assert "data_root: not given" in message
    assert f"{places['environment'] / 'shapes'} (no such folder)" in message
    assert str(places["cache"] / "shapes") in message
    assert f"{places['system'] / 'shapes'} (lacks labels.gz)" in message
    assert f"download from {UNREACHABLE}" in message
    assert "Put images.gz, labels.gz into a folder shapes/" in message


def test_without_pooch_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(InputError, match=r"pip install 'ellzero\[data\]'"):
        find_files(published())


def test_a_data_root_that_does_not_exist_is_refused(places):
    fill(places["system"] / "shapes")
    with pytest.raises(InputError, match="which is no folder"):
        find_files(published(), places["given"])


def test_downloads_into_the_cache_once(places, server):
    url, served = server
    folder = places["cache"] / "shapes"
    found = find_files(published(url))
    assert found == {file: folder / file for file in CONTENT}
    assert {file: path.read_bytes() for file, path in found.items()} == CONTENT

    for file in CONTENT:
        (served / file).unlink()
    assert find_files(published(url)) == found


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_download_shows_a_bar_on_a_terminal(places, server, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    found = find_files(published(server[0]))
    assert {file: path.read_bytes() for file, path in found.items()} == CONTENT
    shown = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(file in shown for file in CONTENT)
    assert "100 %" in shown


# pooch leaves the socket of a refused request to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("served_instead", [b"some other labels", b"some", None])
def test_a_download_that_is_not_the_file_leaves_nothing(places, server, served_instead):
    url, served = server
    if served_instead is None:
        (served / "labels.gz").unlink()
    else:
        (served / "labels.gz").write_bytes(served_instead)
    with pytest.raises(InputError, match=r"labels\.gz"):
        find_files(published(url))
    assert [path.name for path in (places["cache"] / "shapes").iterdir()] == ["images.gz"]

    (served / "labels.gz").write_bytes(CONTENT["labels.gz"])
    assert find_files(published(url))["labels.gz"].read_bytes() == CONTENT["labels.gz"]


@pytest.mark.skipif(sys.platform != "linux", reason="platformdirs has the others")
@pytest.mark.parametrize(("xdg", "expected"), [("/x", "/x/ellzero"), (None, "/ada/.cache/ellzero")])
def test_the_cache_follows_the_system(monkeypatch, xdg, expected):
    monkeypatch.setenv("HOME", "/ada")
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert user_cache() == Path(expected)
