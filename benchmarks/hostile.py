"""Packed files that lie, by the thousand: loading one may fail with ellzero's error only.

`python benchmarks/hostile.py [COUNT] [SEED]`: takes good files of several networks, changes bytes,
lengths, shapes and the architecture's text, mends the checksum so that the parser itself is met,
and loads each under a bound of memory. Prints a table, then one line of JSON. It fails at the first
file that raises anything else, or takes more than LIMIT_S seconds; that file is kept.
"""

import json
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

import ellzero as ez
from ellzero.packed.fields import Reader, varint
from ellzero.packed.reader import DICTIONARY, VERSION

COUNT = 100_000
LIMIT_S = 5.0
EXTRA_BYTES = 1 << 29  # of address space that loading may add: 64 MiB of weights and some copies
CHECKED = 9  # where the bytes under the checksum begin

NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 1000, 2**31 - 1, 2**31, 2**63 - 1, 10**30, 1e308, 0.5)


@dataclass(frozen=True)
class Parts:
    """A packed file cut open: what kind it is, its text, all that follows, and its version."""

    kind: int
    text: bytes
    rest: bytes
    version: int = VERSION

    @classmethod
    def of(cls, content: bytes) -> "Parts":
        """Cut a good file open."""
        reader = Reader(content[CHECKED:])
        reader.varint()
        kind, _, length = reader.byte(), reader.varint(), reader.varint()
        text = zlib.decompressobj(-15, zdict=DICTIONARY).decompress(reader.take(length))
        return cls(kind, text, reader.take(reader.left), content[4])

    def content(self) -> bytes:
        """The file of these parts, its lengths and its checksum right."""
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
        text = deflate.compress(self.text) + deflate.flush()
        start = bytes([self.kind]) + varint(len(self.text)) + varint(len(text))
        return sealed(start + text + self.rest, self.version)


def sealed(body: bytes, version: int = VERSION) -> bytes:
    """A file of these bytes after a right header."""
    checked = varint(len(body)) + body
    return b"ELLZ" + bytes([version]) + zlib.crc32(checked).to_bytes(4, "little") + checked


def body(content: bytes) -> bytes:
    """What follows a file's header."""
    reader = Reader(content[CHECKED:])
    reader.varint()
    return reader.take(reader.left)


def good_files(folder: Path) -> list[tuple[bytes, Callable[[], nn.Module]]]:
    """Files with every form of values, in lines and not, and the networks they fit."""
    torch.manual_seed(0)

    def dense() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4), nn.LogSoftmax(1))

    def convolutional() -> nn.Module:
        layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 3))

    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(100, 20, bias=False))

    def image() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 12), nn.ReLU(), nn.Linear(12, 12))

    few, sparse, integers, places = dense(), convolutional(), wide(), image()
    with torch.no_grad():
        for weight in few.parameters():  # codebooks of halves
            weight.copy_((weight * 20).round() / 8)
        ez.prune(sparse, sparsity=0.7)  # masks and raw values
        weight = integers.get_parameter("0.weight")  # a codebook of int8
        weight.copy_((weight * 1270).round().clamp(-127, 127) / 64)
        weight[0, 0] = 127 / 64
        weight = places.get_parameter("1.weight")  # kinds in lines, of an image
        weight.copy_((weight.abs() * 20).ceil() / 8)
        weight.unflatten(1, (12, 12))[:, 3:, :7] = 0
        places.get_parameter("3.weight").copy_(torch.eye(12))  # and twice one tensor
        places.get_parameter("3.bias").copy_(places.get_parameter("1.bias"))
    selected = ez.trace(
        few, torch.zeros(1, 12), preprocess=ez.Preprocess(0.5), classes=list("abcd")
    )
    graph = json.loads(selected.graph.to_json())
    graph["nodes"].insert(
        1,
        {"name": "s", "op": {"kind": "select"}, "inputs": ["input"], "weights": {"indices": "i"}},
    )
    graph["nodes"][0]["op"]["size"] = [20]
    graph["nodes"][2]["inputs"] = ["s"]
    weights = {**selected.state_dict(), "i": torch.arange(0, 18)[torch.arange(18) % 3 > 0]}
    picked = type(selected)(selected.graph.from_json(json.dumps(graph).encode()), weights)

    files = []
    for model, example, make in (
        (few, torch.zeros(1, 12), dense),
        (sparse, torch.zeros(1, 2, 6, 6), convolutional),
        (integers, torch.zeros(1, 100), wide),
        (picked, None, dense),
        (sparse, None, convolutional),
        (few.double(), None, dense),
        (places, torch.zeros(1, 1, 12, 12), image),
    ):
        ez.pack(model, folder / "good.ellz", example)
        files.append(((folder / "good.ellz").read_bytes(), make))
    return [*files, *((bytes.fromhex(old), dense) for old in VERSION_1)]


Change = Callable[[random.Random, bytes, bytes], bytes]


def flip_bits(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """One to three bits are others."""
    changed = bytearray(body(content))
    for _ in range(rng.randint(1, 3)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return sealed(bytes(changed), content[4])


def set_bytes(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """One to four bytes in a row are others."""
    changed = bytearray(body(content))
    start = rng.randrange(len(changed))
    for index in range(start, min(start + rng.randint(1, 4), len(changed))):
        changed[index] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
    return sealed(bytes(changed), content[4])


def cut(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """The end is missing, the length mended."""
    whole = body(content)
    return sealed(whole[: rng.randrange(len(whole))], content[4])


def remove_or_repeat(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Some bytes in the middle are missing, or there twice."""
    whole = body(content)
    start = rng.randrange(len(whole))
    end = start + rng.randint(1, 12)
    repeated, removed = whole[:end] + whole[start:], whole[:start] + whole[end:]
    return sealed(rng.choice((repeated, removed)), content[4])


def splice(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """The end is that of another file."""
    first, second = body(content), body(other)
    spliced = first[: rng.randrange(len(first))] + second[rng.randrange(len(second)) :]
    return sealed(spliced, content[4])


def put_a_number(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A huge number stands after the text, or takes the place of what did."""
    parts = Parts.of(content)
    start = rng.randrange(len(parts.rest))
    number = varint(
        rng.choice((2**24, 2**31, 2**32, 2**38, 2**62, 2**63, 2**80, rng.getrandbits(40)))
    )
    end = start + rng.choice((0, 1, len(number)))
    return replace(parts, rest=parts.rest[:start] + number + parts.rest[end:]).content()


def change_text(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Some characters of the architecture are others, the compression in order."""
    parts = Parts.of(content)
    text = bytearray(parts.text)
    for _ in range(rng.randint(1, 3)):
        text[rng.randrange(len(text))] = rng.choice((*b'"[]{},:0129-e.', rng.randrange(256)))
    return replace(parts, text=bytes(text)).content()


def change_architecture(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Something in the architecture is another number, name or structure, and good JSON."""
    parts = Parts.of(content)
    document = json.loads(parts.text)
    for _ in range(rng.randint(1, 2)):
        change_json(rng, document)
    return replace(parts, text=json.dumps(document).encode()).content()


def change_json(rng: random.Random, document: object) -> None:
    """Change one place of a document, chosen among all of them."""
    places = []

    def walk(value: object) -> None:
        if isinstance(value, dict | list) and len(value):
            keys = list(value) if isinstance(value, dict) else range(len(value))
            for key in keys:
                places.append((value, key))
                walk(value[key])

    walk(document)
    if not places:  # the first change emptied it
        return
    holder, key = rng.choice(places)
    value = holder[key]
    strings = [h[k] for h, k in places if isinstance(h[k], str)]
    chosen = rng.randrange(6)
    if chosen == 0:
        del holder[key]
    elif chosen == 1 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder)), rng.choice(holder))
    elif chosen == 2 and isinstance(value, list):
        value.extend(value * rng.choice((1, 7, 100)))
    elif chosen == 3 and isinstance(value, str):
        holder[key] = rng.choice(strings)
    elif chosen == 4 and isinstance(value, str):
        names = ("", "a." * 400 + "b", "_weights", "forward", "opaque", "é\x00", value * 2)
        holder[key] = rng.choice(names)
    else:
        holder[key] = rng.choice((*NUMBERS, None, [], {}, "x", [[[]]] * 3, True, float("nan")))


def lie_about_the_text(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """The text has another length than announced, or expands without end."""
    parts = Parts.of(content)
    text = rng.choice((parts.text, b" " * 10**6 + parts.text, b"[" * 10**5, b"[]", b""))
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    compressed = deflate.compress(text) + deflate.flush()
    length = rng.choice((len(text), len(text) + 1, 0, 2**24, 2**24 + 1, 2**40))
    kind = bytes([rng.choice((0, 1, 1, 2))])
    start = kind + varint(length) + varint(len(compressed))
    return sealed(start + compressed + parts.rest, parts.version)


def break_the_header(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A bit of the header, or of anything else, is another; nothing is mended."""
    changed = bytearray(content)
    changed[rng.randrange(rng.choice((len(changed), 12)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


VERSION_1 = (
    "454c4c5a0178c16d5b5301f20232232372cd50a2b58284d0adc019b415f8c2151432448404dc2538c3c2104b5818"
    "22a773eac5632c4a859408b21188938132009c0104060902030402010e1b00f400700501030119006800f6a5be61"
    "a1",
    "454c4c5a015bf4bc94bf010040338b06a6bb5460cad651504acd2d28a9043172138bb3417446624e1a882e061650"
    "c5a920564e2650750a889594092c320b9462019000070000000000000000020003400103010001200102003e00c0"
    "140128269a9999999999b93f0000000000001cc00a0104020001803ffe42fb7f0a0128280000000000000000fe41"
    "00000000000000000000000000000000ffffffff7f0000000000000000000040689befd5b519c8fe664fde82f368"
    "506ea2d4a54a6f4269fb231a4e93bce47848",
)
"""Files of version 1: a network, and weights of all types and layouts."""


CHANGES: tuple[Change, ...] = (
    flip_bits,
    set_bytes,
    cut,
    remove_or_repeat,
    splice,
    put_a_number,
    change_text,
    change_architecture,
    lie_about_the_text,
    break_the_header,
)


def attempt(path: Path, make: Callable[[], nn.Module]) -> str:
    """Load a file on its own and into a network: "loaded", or "refused" with ellzero's error."""
    outcome = "refused"
    for model in (None, make()):
        try:
            ez.load(path, model)
            outcome = "loaded"
        except ez.InputError as error:
            if len(str(error)) > 4000:
                raise RuntimeError(f"a message of {len(str(error))} characters") from error
    return outcome


def hostile(
    count: int, seed: int, *, show: Callable[[str], None] = lambda line: None
) -> tuple[Counter[tuple[str, str]], list[float]]:
    """Try some files; how many of each change were loaded or refused, and the seconds of each."""
    rng = random.Random(seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        files = good_files(Path(name))
        path = Path(name) / "hostile.ellz"
        for index in range(count):
            change = CHANGES[index % len(CHANGES)]
            content, make = rng.choice(files)
            changed = change(rng, content, rng.choice(files)[0])
            path.write_bytes(changed)
            began = time.perf_counter()
            try:
                outcome = attempt(path, make)
                taken = time.perf_counter() - began
                assert taken < LIMIT_S, f"{taken:.1f} s"
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"hostile-{seed}-{index}.ellz"
                kept.write_bytes(changed)
                show(f"{change.__name__}, file {index}: kept as {kept}\n")
                raise
            outcomes[change.__name__, outcome] += 1
            seconds.append(taken)
            if index % 1000 == 999:
                show(f"\r{index + 1} of {count}")
    return outcomes, seconds


def bound_memory() -> None:
    """From now on the process may take only a little more address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(count: int = COUNT, seed: int = 0) -> None:
    """Print what became of the files."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    hostile(20, seed)  # what is loaded on first use is no part of the bound
    bound_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes, seconds = hostile(
        count, seed, show=lambda line: print(line, end="", file=sys.stderr, flush=True)
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{'change':24}{'refused':>10}{'loaded':>10}")
    for change in CHANGES:
        name = change.__name__
        print(f"{name:24}{outcomes[name, 'refused']:10}{outcomes[name, 'loaded']:10}")
    summary = {
        "files": count,
        "refused": sum(n for (_, outcome), n in outcomes.items() if outcome == "refused"),
        "loaded": sum(n for (_, outcome), n in outcomes.items() if outcome == "loaded"),
        "median_ms": round(1000 * statistics.median(seconds), 2),
        "longest_ms": round(1000 * max(seconds), 1),
        "memory_grown_mib": round(grown, 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
