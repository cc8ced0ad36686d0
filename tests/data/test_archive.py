"""Archives: folders and four kinds of file hold the same; hostile and damaged ones are refused."""

import gzip
import io
import lzma
import os
import random
import re
import stat
import struct
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ellzero.data import archive
from ellzero.data.archive import GIB, MIB, read_files
from ellzero.errors import InputError

FILES = {
    "set/a/1.bin": bytes(range(256)) * 3,
    "set/a/2.bin": b"",
    "set/b/1.bin": b"x" * 511 + bytes(1537),  # ends in whole blocks of zeros
}


def contents(path: Path, *, largest: int = MIB, total: int = GIB) -> dict[str, bytes]:
    return dict(read_files(path, lambda name: True, largest=largest, total=total))


def tar(files: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as file:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


KINDS: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "zip": zipped,
    "tar": tar,
    "tar.gz": lambda files: gzip.compress(tar(files), mtime=0),
    "tar.xz": lambda files: lzma.compress(tar(files)),
}


@pytest.fixture
def write(tmp_path) -> Callable[[bytes], Path]:
    path = tmp_path / "archive"

    def write(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "folder"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_put_into_an_archive_is_read(kind, write):
    assert contents(write(KINDS[kind](FILES))) == FILES


def test_a_folder_is_read_as_its_archives_are(folder):
    assert list(contents(folder).items()) == sorted(FILES.items())


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_files_of_each_format(format, write):
    long = {"/".join(["deep" * 10] * 5) + f"/{i}.bin": b"x" for i in range(3)}
    assert contents(write(tar(long, format=format))) == long


def test_compressed_files_in_several_parts(write):
    whole = tar(FILES)
    halves = whole[:1000], whole[1000:]
    assert contents(write(b"".join(map(gzip.compress, halves)))) == FILES
    padding = bytes(2 * MIB)
    assert contents(write(padding.join(map(lzma.compress, halves)) + padding)) == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_files_are_passed_over_and_unwanted_ones_not_read(kind, write):
    files = {"./a/1": b"1", "a//2": b"2", ".DS_Store": b"", "__MACOSX/a/._1": b"", "a/.git/x": b""}
    path = write(KINDS[kind](files))
    assert contents(path) == {"a/1": b"1", "a/2": b"2"}
    only = read_files(path, lambda name: name.endswith("2"), largest=1, total=MIB)
    assert list(only) == [("a/2", b"2")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "a\\x", "C:x", "a/.."], ids=lambda name: repr(name)
)
def test_names_that_lead_out_are_refused(kind, name, write):
    with pytest.raises(InputError, match="leads out of the archive"):
        contents(write(KINDS[kind]({"a/1": b"", name: b""})))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_name_that_stands_there_twice_is_refused(kind, tmp_path, write):
    whole = KINDS[kind]({"a/1": b"x", "a/2": b"y"})
    assert contents(write(whole)) == {"a/1": b"x", "a/2": b"y"}
    with pytest.raises(InputError, match="'a/1' twice"):
        contents(write(KINDS[kind]({"a/1": b"x", "a//1": b"y"})))


def test_a_name_that_is_not_in_utf_8_is_refused(folder, write):
    latin = "a/\N{LATIN SMALL LETTER A WITH DIAERESIS}.bin"
    assert contents(write(tar({latin: b"x"}))) == {latin: b"x"}
    with pytest.raises(InputError, match=r"the name 'a/\\udce4\.bin' is not in UTF-8"):
        contents(write(tar({latin: b"x"}, format=tarfile.GNU_FORMAT, encoding="latin-1")))
    os.rename(folder / "set/a/1.bin", os.fsencode(folder) + b"/set/a/\xe4.bin")
    with pytest.raises(InputError, match="is not in UTF-8"):
        contents(folder)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_what_is_no_file_in_a_tar_file_is_refused(kind, write):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        entry = tarfile.TarInfo("a/link")
        entry.type, entry.linkname = kind, "/etc/passwd"
        file.addfile(entry)
    with pytest.raises(InputError, match="'a/link' is no regular file"):
        contents(write(buffer.getvalue()))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_what_is_no_file_in_a_zip_is_refused(kind, write):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        entry = zipfile.ZipInfo("a/link")
        entry.external_attr = (kind | 0o777) << 16
        file.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="'a/link' is a link or device"):
        contents(write(buffer.getvalue()))


def patched(content: bytes, local: int, central: int, value: bytes) -> bytes:
    """A zip of one file with a field of its header, and of its entry in the directory, replaced."""
    changed = bytearray(content)
    for magic, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        start = content.index(magic) + offset
        changed[start : start + len(value)] = value
    return bytes(changed)


def test_an_encrypted_zip_is_refused(write):
    with pytest.raises(InputError, match="'a/1' is encrypted"):
        contents(write(patched(zipped({"a/1": b"x"}), 6, 8, b"\1\0")))


def test_a_zip_whose_content_is_beyond_all_files_is_refused(write):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        entry = zipfile.ZipInfo("a/1")
        entry.extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)  # where a zip64 file has its header
        file.writestr(entry, b"x")
    content = bytearray(buffer.getvalue())
    offset = content.index(b"PK\1\2") + 42
    content[offset : offset + 4] = b"\xff" * 4
    with pytest.raises(InputError, match="cannot be read"):
        contents(write(bytes(content)))


def test_an_entry_that_hides_another_is_noticed(write):
    whole = zipped({"a/1": b"x", "a/2": b"y"})
    first = whole.index(b"PK\1\2")
    content = bytearray(whole)
    content[first + 32] = 46 + len("a/2")  # the length of a comment
    with pytest.raises(InputError, match="the entry of 'a/1' is damaged"):
        contents(write(bytes(content)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_a_zip_of_another_compression_is_refused(compression, write):
    content = patched(zipped({"a/1": b"x"}), 8, 10, struct.pack("<H", compression))
    with pytest.raises(InputError, match="'a/1' is neither stored nor deflated"):
        contents(write(content))


@contextmanager
def little_memory() -> Iterator[None]:
    """At no time more than 16 MiB more than before."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * MIB


BOMB = {"a/1": bytes(42_000_000)}


@pytest.fixture(scope="module", params=KINDS)
def bomb(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bomb") / request.param
    path.write_bytes(KINDS[request.param](BOMB))
    return path


def test_a_file_beyond_its_limit_is_refused_before_it_is_read(bomb):
    with (
        little_memory(),
        pytest.raises(InputError, match=r"'a/1' has 42,000,000 bytes; expected at most 1,048,576"),
    ):
        contents(bomb)


def test_an_archive_beyond_the_total_is_refused(bomb):
    with little_memory(), pytest.raises(InputError, match="holds more than 1,048,576 bytes"):
        contents(bomb, largest=GIB, total=MIB)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("tar")])
def test_what_is_skipped_counts_as_read(kind, write):
    path = write(KINDS[kind]({f"a/{i}": bytes(100_000) for i in range(20)}))
    with little_memory(), pytest.raises(InputError, match="holds more than 1,048,576 bytes"):
        list(read_files(path, lambda name: False, largest=MIB, total=MIB))


def test_many_files_within_their_limit_are_beyond_the_total(write):
    path = write(zipped({f"a/{i}": bytes(100_000) for i in range(20)}))
    with little_memory(), pytest.raises(InputError, match="holds more than 1,048,576 bytes"):
        contents(path, total=MIB)


def test_a_zip_that_says_too_little_of_a_file_is_refused(write):
    said = struct.pack("<I", 1000)
    path = write(patched(zipped(BOMB), 22, 24, said))
    with little_memory(), pytest.raises(InputError, match="cannot be read: Bad CRC-32"):
        contents(path)


def header(name: str, size: int, kind: bytes, **pax: str) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.pax_headers = size, kind, dict(pax)
    return entry.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
@pytest.mark.parametrize("place", ["first", "later"])
def test_a_header_of_a_gigabyte_is_refused(kind, place, write):
    before = b"" if place == "first" else header("a/1", 0, tarfile.REGTYPE)
    # the bytes that follow are fewer: the limit, not the end, has to stop the reading
    path = write(gzip.compress(before + header("x", GIB, kind) + bytes(16 * MIB), 1))
    with little_memory(), pytest.raises(InputError, match="a file with too large a header"):
        contents(path)


def test_headers_of_headers_without_end_are_refused(write):
    nested = header("x", 1, tarfile.GNUTYPE_LONGNAME) + bytes(512)
    with pytest.raises(InputError, match=r"cannot be read|too large a header"):
        contents(write(gzip.compress(nested * 10_000)))


def test_global_headers_that_add_up_are_refused(write):
    few = tar(FILES, format=tarfile.PAX_FORMAT, pax_headers={"comment": "a commit's number"})
    assert contents(write(few)) == FILES
    many = {f"key{i}": "x" for i in range(65)}
    with pytest.raises(InputError, match="more than 64 global headers"):
        contents(write(tar(FILES, format=tarfile.PAX_FORMAT, pax_headers=many)))


SPARSE = {
    "gnu": header("a/1", 0, tarfile.GNUTYPE_SPARSE),
    "pax-0.1": header(
        "a/1", 0, tarfile.REGTYPE, **{"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999999"}
    ),
    "pax-1.0": header(
        "a/1",
        512,
        tarfile.REGTYPE,
        **{
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "a/1",
            "GNU.sparse.realsize": "99999999999",
        },
    )
    + b"1\n0\n1\n".ljust(512, b"\0"),
}


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_files_are_refused(kind, write):
    with little_memory(), pytest.raises(InputError, match="'a/1' is no regular file"):
        contents(write(SPARSE[kind] + bytes(1024)))


def test_an_xz_file_that_asks_for_a_gigabyte_is_refused(write):
    content = bytearray(lzma.compress(tar(FILES)))
    # after the 12 bytes of the stream's header: size / 4 - 1, flags, LZMA2, 1 byte: the dictionary
    block = slice(12, 12 + (content[12] + 1) * 4)
    assert content[14:16] == b"\x21\x01"
    content[16] = 36  # 2^(36 / 2 + 12)
    content[block] = content[block][:-4] + struct.pack("<I", zlib.crc32(content[block][:-4]))
    with little_memory(), pytest.raises(InputError, match=r"[Mm]emory usage limit"):
        contents(write(bytes(content)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tar"])
def test_an_archive_cut_short_is_refused_wherever_it_is_cut(kind, write):
    whole = KINDS[kind](FILES)
    for length in range(0, len(whole), 3):
        with pytest.raises(InputError):
            contents(write(whole[:length]))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
def test_a_tar_file_cut_short_is_refused_wherever_it_is_cut(compress, write):
    whole = tar(FILES)
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512 + 1536  # the last file ends in zeros
    for length in (*range(0, end + 512, 128), end - 1, end + 1, end + 511):
        if length < 512 and compress is not bytes:
            continue  # an empty tar file
        with pytest.raises(InputError, match=r"cut short|unexpected end|truncated|is no folder"):
            contents(write(compress(whole[:length])))
    assert contents(write(compress(whole[: end + 512]))) == FILES


def test_a_damaged_header_is_not_taken_for_the_end(write):
    whole = bytearray(tar(FILES))
    second = whole.index(b"set/a/2.bin")
    whole[second + 150] ^= 1  # in its checksum
    with pytest.raises(InputError, match=f"damaged at byte {second:,}"):
        contents(write(bytes(whole)))


def test_content_after_the_end_is_not_passed_over(write):
    whole = tar(FILES)
    with pytest.raises(InputError, match="damaged at byte"):
        contents(write(whole + whole))


def different_bytes(read: dict[str, bytes]) -> int:
    assert list(read) == list(FILES)
    pairs = zip(b"".join(read.values()), b"".join(FILES.values()), strict=True)
    return sum(one != other for one, other in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_that_are_flipped_are_noticed(kind, write):
    whole = KINDS[kind](FILES)
    generator = random.Random(0)
    refused = 0
    for _ in range(250):
        changed = bytearray(whole)
        place = generator.randrange(len(whole))
        changed[place] ^= 1 << generator.randrange(8)
        try:
            read = contents(write(bytes(changed)))
        except InputError:
            refused += 1
        else:
            # nothing protects the content of a plain tar file
            assert different_bytes(read) <= (kind == "tar")
    assert refused > 50


@pytest.mark.parametrize("kind", KINDS)
def test_noise_in_an_archive_is_noticed(kind, write):
    whole = KINDS[kind](FILES)
    generator = random.Random(1)
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(generator.randrange(1, 20)):
            start = generator.randrange(len(whole))
            length = generator.choice((1, 2, 4, 8))
            changed[start : start + length] = generator.choice(
                (generator.randbytes(length), b"\xff" * length, bytes(length))
            )
        with suppress(InputError):
            assert contents(write(bytes(changed))) == FILES or kind == "tar"


@pytest.mark.parametrize("content", [b"", b"PK", b"\x1f\x8b", b"some text", bytes(2048)])
def test_what_is_no_archive_is_refused(content, write):
    with pytest.raises(InputError, match=r"is no folder, \.zip|cannot be read"):
        contents(write(content))


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="is no folder and no file"):
        contents(tmp_path / "nothing")


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "set/a/pipe")
    with pytest.raises(InputError, match="pipe is no regular file"):
        contents(folder)
    with pytest.raises(InputError, match="is no folder and no file"):
        contents(folder / "set/a/pipe")


def test_links_in_a_folder_are_followed_once(folder, tmp_path):
    linked = tmp_path / "linked"
    (linked / "set").mkdir(parents=True)
    for name in ("a", "b"):
        (linked / "set" / name).symlink_to(folder / "set" / name)
    assert contents(linked) == FILES
    (linked / "set" / "c").symlink_to(folder / "set" / "a")
    with pytest.raises(InputError, match="c leads to a folder that was read already"):
        contents(linked)


@pytest.mark.parametrize("target", [".", "..", "../../other"])
def test_links_in_circles_are_refused(folder, target):
    (folder / "other").mkdir()
    (folder / "other/back").symlink_to(folder / "set")
    (folder / "set/a/circle").symlink_to(target)
    with pytest.raises(InputError, match="leads to a folder that was read already"):
        contents(folder)


def test_a_link_to_nothing_is_refused(folder):
    (folder / "set/a/3.bin").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"cannot be read.*No such file.*3\.bin") as refusal:
        contents(folder)
    assert "fetch" not in str(refusal.value)


def test_the_limits_of_a_folder(folder):
    with pytest.raises(InputError, match=r"'set/a/1\.bin' has 768 bytes; expected at most 767"):
        contents(folder, largest=767)
    with pytest.raises(InputError, match="holds more than 1,000 bytes"):
        contents(folder, total=1000)


def test_too_many_files_are_refused(folder, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_FILES", 2)
    with pytest.raises(InputError, match="has more than 2 files"):
        contents(folder)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_reading_shows_a_bar_on_a_terminal(kind, folder, write, monkeypatch):
    path = folder if kind == "folder" else write(KINDS[kind](FILES))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert contents(path) == FILES
    shown = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert path.name in shown
    assert re.search(r"[1-9]\d* %", shown)
