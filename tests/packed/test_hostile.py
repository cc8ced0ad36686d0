"""Packed files that are not what they seem: only ellzero's error, little memory, little time."""

import json
import os
import runpy
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch

import ellzero as ez
from ellzero.packed.fields import rice, varint

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hostile.py"


@pytest.fixture(scope="module")
def hostile() -> dict:
    """The names of the script that makes such files."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    """A file of 400 bytes or so with a codebook, masks and raw values."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(20).round_().div_(8)
    ez.prune(model, sparsity=0.5, scope="layer")
    path = tmp_path_factory.mktemp("good") / "x.ellz"
    ez.pack(model, path, torch.zeros(1, 8))
    return path.read_bytes()


def refused(content: bytes, folder: Path) -> str:
    """Why a file is refused, on its own; that takes no more than a few seconds of processor."""
    (folder / "x.ellz").write_bytes(content)
    began = time.process_time()
    with pytest.raises(ez.InputError) as raised:
        ez.load(folder / "x.ellz")
    assert time.process_time() - began < 10
    assert len(str(raised.value)) < 4000
    return str(raised.value)


def test_a_file_cut_anywhere_is_refused(good, hostile, tmp_path):
    whole = hostile["body"](good)
    for length in range(4, len(good)):
        refused(good[:length], tmp_path)
    for length in range(len(whole)):  # the length mended, and the checksum
        refused(hostile["sealed"](whole[:length]), tmp_path)


def test_a_file_with_more_at_its_end_is_refused(good, hostile, tmp_path):
    assert "cut or extended" in refused(good + b"\0", tmp_path)
    whole = hostile["body"](good)
    assert "multiple of 4" in refused(hostile["sealed"](whole + b"\0"), tmp_path)
    assert "more codes than weights" in refused(hostile["sealed"](whole + bytes(8)), tmp_path)


def test_every_flipped_bit_is_noticed(good, tmp_path):
    for index in range(4, len(good)):
        changed = bytearray(good)
        changed[index] ^= 1 << index % 8
        refused(bytes(changed), tmp_path)


def test_another_version_is_named(good, tmp_path):
    newer = "has format 3; this ellzero reads up to 2: install a newer one"
    assert newer in refused(good[:4] + b"\3" + good[5:], tmp_path)
    assert "its version is 0" in refused(good[:4] + b"\0" + good[5:], tmp_path)


def graph(*nodes: dict, size: list = [4], **more: object) -> bytes:  # noqa: B006
    """The text of a graph that begins with its input."""
    first = {"name": "x", "op": {"kind": "input", "size": size}}
    return json.dumps({"nodes": [first, *nodes], **more}).encode()


def linear(weight: str) -> dict:
    return {"name": "l", "op": {"kind": "linear"}, "inputs": ["x"], "weights": {"weight": weight}}


SELECT = {"name": "s", "op": {"kind": "select"}, "inputs": ["x"], "weights": {"indices": "i"}}
MANY = 2**40
ONE = bytes([0x00, 2, 1, 4]) + bytes(16)  # a dense float32 weight (1, 4)


def indices(*numbers: int) -> bytes:
    """A dense int64 tensor."""
    raw = b"".join(number.to_bytes(8, "little", signed=True) for number in numbers)
    return bytes([0x90, 1, len(numbers)]) + raw


def halves(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2, "little") for number in numbers)


# kind, text, fields and codes of version 1, and what the refusal says
LIES_1 = {
    "no nodes": (1, b'{"nodes":[]}', b"", "first node is not an input"),
    "not json": (1, b"{", b"", "no graph"),
    "not utf-8": (0, b'["\xff"]', b"", "no list of strings"),
    "names of another kind": (0, b"[1]", b"", "no list of strings"),
    "nested names": (0, b"[" * 16000, b"", "no list of strings"),
    "one name twice": (0, b'["a","a"]', b"", "one name"),
    "an unknown kind": (7, b"[]", b"", "its kind is 7"),
    "an opaque node": (
        1,
        graph({"name": "o", "op": {"kind": "opaque", "target": "os.system", "call": "id"}}),
        b"",
        "no graph",
    ),
    "an input after other nodes": (
        1,
        graph(
            {"name": "y", "op": {"kind": "flatten"}, "inputs": ["x"]},
            {"name": "z", "op": {"kind": "input", "size": [1]}},
        ),
        b"",
        "comes after other nodes",
    ),
    "a huge input": (1, graph(size=[2**30] * 3), b"", "one example takes"),
    "an input of many dimensions": (1, graph(size=[2**30] * 1000), b"", "1000 dimensions"),
    "infinite preprocessing": (1, graph(preprocess={"scale": 1e999}), b"", "preprocess"),
    "preprocessing of two channels": (1, graph(preprocess={"scale": [1, 2]}), b"", "the input 4"),
    "a result that nobody reads": (
        1,
        graph(*({"name": n, "op": {"kind": "flatten"}, "inputs": ["x"]} for n in "yz")),
        b"",
        "nobody reads 'y'",
    ),
    "a weight named training": (1, graph(linear("training")), ONE, "cannot be loaded"),
    "a weight named nothing": (1, graph(linear("a..b")), ONE, "a..b"),
    "a weight far down": (1, graph(linear("a." * 99 + "w")), ONE, "99 dots"),
    "a weight of another shape": (1, graph(linear("w"), size=[3]), ONE, "3 features"),
    "a weight of whole numbers": (1, graph(linear("w")), b"\x60\2\1\4" + bytes(4), "torch.int8"),
    "weights of two types": (
        1,
        graph({**linear("w"), "weights": {"weight": "w", "bias": "b"}}),
        ONE + b"\x10\1\1" + bytes(8),
        "several types",
    ),
    "indices of another type": (1, graph(SELECT), b"\0\1\1" + bytes(4), "float32"),
    "indices too large": (1, graph(SELECT), indices(1, 4), "not ascending below 4"),
    "indices below zero": (1, graph(SELECT), indices(-1, 2), "not ascending below 4"),
    "indices that descend": (1, graph(SELECT), indices(2, 1), "not ascending below 4"),
    "a bitmap of indices, too large": (
        0,
        b'["i"]',
        b"\x9c\1" + varint(MANY) + varint(MANY),
        "has the shape",
    ),
    "a bitmap of other indices": (0, b'["i"]', b"\x9c\1\3\2", "bitmap of 2"),
    "an unknown type": (0, b'["w"]', b"\xf0\0", "0xf0"),
    "an unknown form": (0, b'["w"]', b"\x03\0", "0x03"),
    "whole numbers as halves": (0, b'["w"]', b"\x91\1\1\0\0\0", "HALF"),
    "many dimensions": (0, b'["w"]', b"\0" + varint(MANY), "dimensions"),
    "nothing, huge": (0, b'["w"]', b"\0\3\0" + varint(2**62) * 2, "has the shape"),
    "a huge dense tensor": (0, b'["w"]', b"\0\1" + varint(2**36), "bytes are announced"),
    "a huge codebook": (0, b'["w"]', b"\x08\1\1" + varint(MANY), "a codebook has"),
    "a huge zero": (0, b'["w"]', b"\x08\1" + varint(2**36) + b"\0\0", "bytes of memory"),
    "huge counts": (0, b'["w"]', b"\x08\1\4\1\x28" + bytes([255] * 30), "0 are left"),
    "too huge counts": (0, b'["w"]', b"\x08\1\4\1\x29" + bytes(30), "41 low bits"),
    "counts of more than there are": (0, b'["w"]', b"\x08\1\4\1\0\x0f" + bytes(4), "5 times in 4"),
    "more zeros than elements": (0, b'["w"]', b"\x04\1\4\5", "5 of 4"),
    "a number without end": (0, b'["w"]', b"\0\1" + b"\xff" * 20, "63 bits"),
    "NaN": (0, b'["w"]', b"\0\1\1\0\0\xc0\x7f", "NaN"),
    "an infinite half": (0, b'["w"]', b"\1\1\1\0" + halves(0x7C00), "NaN or inf"),
    "a half beyond float32": (0, b'["w"]', b"\1\1\1" + varint(400) + halves(0x3C00), "NaN or inf"),
    "a huge exponent": (0, b'["w"]', b"\1\1\1" + varint(MANY) + halves(0x3C00), "exponent"),
    "a bool of 2": (0, b'["w"]', b"\x40\1\1\2", "neither 0 nor 1"),
    "int8 without a codebook": (0, b'["w"]', b"\2\1\1\0\0\0\0\1", "without a codebook"),
    "a bitmap of fewer int8": (
        0,
        b'["w"]',
        b"\x0a\1\x28\x28" + rice([0] * 40) + b"\0\0\x80\x3f" + bytes(32),
        "0 int8 values",
    ),
    "no codes": (0, b'["w"]', b"\x04\1\2\1\0\0\x80\x3f", "counts that are announced"),
    "codes of no encoder": (
        0,
        b'["w"]',
        b"\x04\1\2\1\0\0\x80\x3f" + b"\xff" * 8,
        "none that an encoder writes",
    ),
}


@pytest.mark.parametrize("lie", LIES_1)
def test_a_lie_of_version_1_is_named(lie, hostile, tmp_path):
    kind, text, rest, reason = LIES_1[lie]
    assert reason in refused(hostile["Parts"](kind, text, rest, 1).content(), tmp_path)


LINES = b"\0\2\2\0" + bytes(4)  # columns, images of 2 x 2, weights of 0

# fields and codes of one weight of version 2, and what the refusal says
LIES_2 = {
    "an unknown type": (b"\xe0\0\0", "0xe0"),
    "an unknown form": (b"\6\0\0", "0x06"),
    "the same as nothing": (b"\xf0\0", "tensor 0 of 0"),
    "many dimensions": (b"\0" + varint(MANY), "dimensions"),
    "a huge tensor": (b"\0\1" + varint(2**37), "has the shape"),
    "a huge dense tensor": (b"\0\1" + varint(2**36) + b"\0\0", "bytes are announced"),
    "a huge coded tensor": (b"\0\1" + varint(2**36) + b"\0\x0f", "bytes of memory"),
    "a huge zero": (b"\0\1" + varint(2**36) + varint(2**36) + b"\0", "bytes of memory"),
    "more zeros than elements": (b"\0\1\4\5", "5 of 4"),
    "more negatives than elements": (b"\2\1\4\1\4", "4 of 3"),
    "a byte that no number has": (b"\x20\1\1\0\4", "more bytes"),
    "whole numbers as halves": (b"\x91\1\1\0\0\0\0\0", "written as halves"),
    "whole numbers on a grid": (b"\x94\1\1\0\0\1\0\0", "multiples of a step"),
    "a huge exponent": (b"\1\1\1\0" + varint(MANY), "exponent"),
    "a half beyond float32": (b"\1\1\1\0" + varint(400) + b"\0\0\x78", "NaN or inf"),
    "NaN": (b"\0\1\1\0\0\0\0\x80\xff", "NaN or inf"),
    "a bool of 2": (b"\x40\1\1\0\0\2", "neither 0 nor 1"),
    "a huge book": (b"\2\1\4\0\0" + varint(MANY) + b"\0", "a codebook has"),
    "a book of infinity": (b"\2\1\1\0\0\0\1\0\0\x80\x7f", "NaN or inf"),
    "a book without values": (b"\2\1\4\0\0\0\0", "no values"),
    "a book without negative ones": (b"\2\1\4\0\1\0\1\0\0\x80\x3f", "no values"),
    "a book without positive ones": (b"\2\1\4\0\1\1\0\0\0\x80\xbf", "no values"),
    "a grid beyond float32": (b"\4\1\4\0\1\xff\xff\x7f\x7f\2\2", "NaN or inf"),
    "a grid too long": (b"\4\1\4\0\1\0\0\x80\x3f\x80\2", "reaches from"),
    "indices of another type": (b"\5\1\1\0", "no int64"),
    "indices in lines": (b"\x9d\1\1\0", "no int64"),
    "indices of a huge bitmap": (b"\x95\1\1" + varint(MANY), "in a bitmap"),
    "lines of a number": (b"\x08\0\0" + LINES + b"\0", "is cut into lines"),
    "lines of nothing": (b"\x08\1\4\4" + LINES + b"\0", "is cut into lines"),
    "lines in no direction": (b"\x08\2\2\2\1\2" + LINES[1:], "lines are 2"),
    "lines of a huge image": (b"\x08\2\2\2\1\0" + varint(2**21) + b"\1\0", "lines are 0"),
    "lines of no image": (b"\x08\2\2\2\1\0\1\0\0", "1 x 0"),
    "lines at places of nothing": (b"\x08\2\2\2\1\0\1\1\1" + bytes(4), "no indices"),
    "too many lines": (b"\x08\2\1" + varint(20_000) + b"\1" + LINES + b"\x0f", "lines, too many"),
    "too long lines": (b"\x08\1" + varint(2**20 + 1) + b"\1" + LINES + b"\x0f", "at most 1048576"),
    "no codes": (b"\0\1\2\1\0\0\0\x80\x7e", "counts that are announced"),
    "no codes in lines": (b"\x08\1\2\1" + LINES + b"\0\0\0\x80\x7e", "zeros that are"),
    "codes of no encoder": (b"\0\1\2\1\0\0\0\x80\x7e" + b"\xff" * 8, "none that an encoder"),
}


@pytest.mark.parametrize("lie", LIES_2)
def test_a_lie_is_named(lie, hostile, tmp_path):
    rest, reason = LIES_2[lie]
    assert reason in refused(hostile["Parts"](0, b'["w"]', rest).content(), tmp_path)


def test_lines_at_places_of_other_lines_are_refused(hostile, tmp_path):
    rest = b"\x95\1\3\1" + b"\x08\2\2\2\1\0\1\1\1" + bytes(4) + b"\0" + bytes(12)
    reason = refused(hostile["Parts"](0, b'["i","w"]', rest).content(), tmp_path)
    assert "2 lines have the places (3,)" in reason


def test_one_tensor_many_times_counts_each_time(hostile, tmp_path):
    names = json.dumps([str(number) for number in range(100)]).encode()
    zeros = b"\0\1" + varint(2**20) * 2 + b"\0"
    reason = refused(hostile["Parts"](0, names, zeros + b"\xf0\0" * 99).content(), tmp_path)
    assert f"{100 * 2**22} bytes of memory" in reason


def test_a_text_is_never_expanded_beyond_what_it_may_be(hostile, tmp_path):
    bomb = zlib.compress(bytes(10**8), 9, wbits=-15)
    for said in (10, 2**14, 10**8, 2**62):
        start = b"\1" + varint(said) + varint(len(bomb))
        assert "its text" in refused(hostile["sealed"](start + bomb), tmp_path)


def test_a_text_that_does_not_end_is_refused(hostile, tmp_path):
    text = graph()
    deflate = zlib.compressobj(wbits=-15)
    unfinished = deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)
    start = b"\1" + varint(len(text)) + varint(len(unfinished))
    assert "its text does not have" in refused(hostile["sealed"](start + unfinished), tmp_path)


@pytest.mark.slow
def test_the_slowest_weights_of_a_small_file_are_refused_in_time(hostile, tmp_path):
    # 16 million elements of a codebook of 256 float32 values, and hardly a code
    values = b"".join(number.to_bytes(4, "little") for number in range(1, 257))
    counted = b"\x08\1" + varint(16_000_000) + varint(256) + rice([0] * 256) + values
    learned = b"\2\1" + varint(16_000_000) + b"\0\0" + varint(0) + varint(256) + values
    most_lines = b"\x08\2" + varint(500) + varint(8_000) + b"\1" + LINES + b"\x0f"
    for version, fields in ((1, counted), (2, most_lines)):
        content = hostile["Parts"](0, b'["w"]', fields, version).content()
        assert len(content) < 1200
        assert "announced" in refused(content, tmp_path)
    content = hostile["Parts"](0, b'["w"]', learned).content()
    (tmp_path / "x.ellz").write_bytes(content)  # nothing in it is a lie
    began = time.process_time()
    with pytest.raises(ez.InputError, match="of another network"):
        ez.load(tmp_path / "x.ellz", torch.nn.Linear(2, 2))
    assert time.process_time() - began < 10


def test_hostile_files(hostile):
    outcomes, _ = hostile["hostile"](300, seed=1)
    assert sum(outcomes.values()) == 300
    # both happen: the checksums are mended, and the parser tells good from bad; some ten load, by
    # luck 5 or 16, and of so many it is never none
    loaded = sum(n for (_, outcome), n in outcomes.items() if outcome == "loaded")
    assert 0 < loaded < 150


@pytest.mark.slow
def test_ten_thousand_hostile_files_in_bounded_memory():
    done = subprocess.run(
        [sys.executable, SCRIPT, "10000", "2"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["refused"] + summary["loaded"] == summary["files"] == 10_000
    assert summary["memory_grown_mib"] < 300
