import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from ellzero.data.idx import read_idx
from ellzero.errors import InputError

# Two images of 2x3 pixels, written out by hand from the format's description.
GOOD = bytes.fromhex("00000803 00000002 00000002 00000003 000102030405 fafbfcfdfeff")
SHAPE = (2, 2, 3)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_a_file_written_by_hand(tmp_path, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(GOOD))
    array = read_idx(path, SHAPE)
    assert array.dtype == np.uint8
    assert array.tolist() == [[[0, 1, 2], [3, 4, 5]], [[250, 251, 252], [253, 254, 255]]]
    array[0] = 7  # writable, as torch.from_numpy wants it


def header(*dimensions: int, kind: int = 0x08) -> bytes:
    return bytes([0, 0, kind, len(dimensions)]) + struct.pack(f">{len(dimensions)}I", *dimensions)


HOSTILE = {
    "empty": (b"", "starts with nothing"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "89 50 4e 47"),
    "floats": (header(2, 2, 3, kind=0x0D) + bytes(48), "00 00 0d 03"),
    "labels for images": (header(12) + bytes(12), "3 dimensions"),
    "ends in its header": (GOOD[:9], "ends within its header"),
    "lies about the count": (header(2**32 - 1, 2, 3) + bytes(12), "4294967295, 2, 3"),
    "lies about the width": (header(2, 2, 2**32 - 1) + bytes(12), "2, 2, 4294967295"),
    "one value short": (GOOD[:-1], "only 11 values"),
    "one value more": (GOOD + b"\0", "more values"),
    "truncated gzip": (gzip.compress(GOOD)[:-9], "fetch the file again"),
    "gzip of nothing but its magic": (b"\x1f\x8b", "fetch the file again"),
    "damaged gzip data": (gzip.compress(GOOD)[:10] + b"\xff" * 30, "fetch the file again"),
    "wrong gzip checksum": (gzip.compress(GOOD)[:-8] + bytes(8), "fetch the file again"),
    "gzip of too many values": (gzip.compress(GOOD + bytes(10**6)), "more values"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_refuses_hostile_files_by_name(tmp_path, content, message):
    path = tmp_path / "hostile-idx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refusal:
        read_idx(path, SHAPE)
    assert str(path) in str(refusal.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        read_idx(tmp_path / "nowhere", SHAPE)


@pytest.mark.parametrize(
    "content",
    [header(2**31, 2, 3) + bytes(12), GOOD + bytes(200 * 2**20)],
    ids=["a lying header", "a decompression bomb"],
)
def test_memory_is_bounded_by_the_expected_shape(tmp_path, content):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(content, compresslevel=1))
    del content
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_idx(path, SHAPE)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * 2**20
