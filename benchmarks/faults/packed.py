"""Packed files that lie and load all the same: each that loads is run, within what it may take.

`python benchmarks/faults/packed.py [--count N] [--minutes M] [--seed S] [--folder F]`: networks of
every kind of operation, whose settings, sizes, weights and bytes are changed, the checksum mended.
A file is refused by ellzero's error, or it loads under limits of MAX_MACS and MAX_BYTES; then it is
run once, in a process that can take no more memory than that, and no more than LIMIT_S seconds of a
processor. What torch itself refuses when it runs, such as tokens beyond a table, is counted.
"""

import json
import math
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

import ellzero as ez
from ellzero.errors import InputError
from ellzero.graph import Graph, Network
from ellzero.operations import OPERATIONS
from ellzero.packed.reader import announcement

sys.path.append(str(Path(__file__).parents[1]))

from hostile import CHANGES, NUMBERS, Parts, change_json, good_files

COUNT = 100_000
MAX_MACS = 1 << 28
MAX_BYTES = 1 << 26
OWN_BYTES = 1 << 27
"""Address space beside weights, their copies and values: torch's buffers, and fragments."""

LIMIT_S = 5.0
BATCH = 1000
"""Files that one process reads and runs."""

SIZES = (1, 2, 3, 7, 16, 100, 1000, 65_536, 10**6, 2**31 - 1)


def node(name: str, kind: str, *inputs: str, **settings: Any) -> dict[str, Any]:
    """A node of a graph's text; its weights are given by the role before an underscore."""
    weights = {role: f"{name}.{role}" for role in settings.pop("weights", ())}
    return {
        "name": name,
        "op": {"kind": kind, **settings},
        "inputs": list(inputs),
        "weights": weights,
    }


def source(*size: int, dtype: str = "float") -> dict[str, Any]:
    """The input of a graph's text."""
    return {"name": "x", "op": {"kind": "input", "size": list(size), "dtype": dtype}}


def network(
    nodes: list[dict[str, Any]], dtype: torch.dtype = torch.float32, **shapes: tuple[int, ...]
) -> Network:
    """A network of random weights, by node and role: `c_weight` is "c.weight"."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name.replace("_", ".", 1): torch.randn(shape, generator=generator).to(dtype)
        for name, shape in shapes.items()
    }
    return Network(Graph.from_json(json.dumps({"nodes": nodes}).encode()), weights)


def networks() -> Iterator[Network]:
    """Networks in which every operation is, some of them in other types than float32."""
    image = [
        source(3, 8, 8),
        node("c", "conv", "x", weights=["weight", "bias"], padding=[1, 1]),
        node("a", "affine", "c", weights=["scale", "shift"]),
        node("e", "activation", "a", function="clamp", parameters=[0.0, 6.0]),
        node("m", "pool", "e", function="max", kernel=[2, 2], stride=[2, 2]),
        node("v", "pool", "e", function="average", kernel=[2, 2], stride=[2, 2], ceil=True),
        node("s", "add", "m", "v"),
        node("t", "conv_transposed", "s", weights=["weight"], stride=[2, 2]),
        node("u", "upsample", "s", mode="linear", scale=[2.0, 2.0]),
        node("w", "where", "u", "t", "e"),
        node("p", "pad", "w", before=[0, 1, 0], after=[0, 0, 1], value=0.5),
        node("i", "prelu", "p", weights=["slope"]),
        node("g", "group_norm", "i", groups=2),
        node("h", "pixel_shuffle", "g", factor=2),
        node("k", "pixel_unshuffle", "h", factor=2),
        node("n", "instance_norm", "k"),
        node("r", "reduce", "n", function="mean", over=[1, 2]),
        node("d", "divide", "n", "r"),
        node("f", "flatten", "d"),
        node("l", "linear", "f", weights=["weight", "bias"]),
        node("o", "softmax", "l"),
    ]
    shapes = {"c_weight": (8, 3, 3, 3), "c_bias": (8,), "a_scale": (8,), "a_shift": (8,)}
    shapes |= {"t_weight": (8, 8, 2, 2), "i_slope": (8,), "l_weight": (5, 648), "l_bias": (5,)}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        yield network(image, dtype, **shapes)
    tokens = [
        source(6, dtype="int64"),
        node("e", "embedding", "x", weights=["weight"]),
        node("q", "constant", weights=["value"]),
        node("b", "add", "e", "q"),
        node("n", "layer_norm", "b", count=1),
        node("h", "reshape", "n", size=[6, 2, 4]),
        node("p", "permute", "h", order=[1, 0, 2]),
        node("a", "attention", "p", "p", "p", scale=0.5, causal=True),
        node("m", "matmul", "a", "k"),
        node("s", "slice", "m", axis=1, start=0, stop=4),
        node("c", "concat", "s", "m", axis=1),
        node("r", "rms_norm", "c", count=1),
    ]
    tokens.insert(8, node("k", "permute", "p", order=[0, 2, 1]))
    yield network(tokens, e_weight=(10, 8), q_value=(6, 8))
    for cell, gates in (("lstm", 4), ("gru", 3)):
        steps = [
            source(5, 3),
            node("r", "recurrent", "x", weights=["weight_ih", "weight_hh"], cell=cell),
            node("v", "recurrent", "r", weights=["weight_ih", "weight_hh"], cell=cell),
            node("e", "expand", "z", size=[5, 4]),
            node("y", "multiply", "v", "e"),
            node("c", "compare", "y", "r", relation="less"),
            node("t", "cast", "c", dtype="float32"),
            node("d", "subtract", "t", "y"),
        ]
        steps[3:3] = [node("z", "slice", "v", axis=0, start=4, stop=5)]
        rows = dict.fromkeys(("r_weight_hh", "v_weight_ih", "v_weight_hh"), (4 * gates, 4))
        yield network(steps, r_weight_ih=(4 * gates, 3), **rows)


def files() -> list[bytes]:
    """The good files, packed."""
    with tempfile.TemporaryDirectory() as name:
        contents = [content for content, _ in good_files(Path(name))]
        for each in networks():
            ez.pack(each, Path(name) / "x.ellz")
            contents.append((Path(name) / "x.ellz").read_bytes())
    return contents


def change_settings(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Settings of some operations are others that they could have, or sizes larger by far."""
    parts = Parts.of(content)
    document = json.loads(parts.text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        chosen = rng.choice(document["nodes"])["op"]
        fields = [name for name in OPERATIONS[chosen["kind"]].model_fields if name != "kind"]
        if not fields:
            continue
        name = rng.choice(fields)
        now = chosen.get(name, [1, 1])
        if isinstance(now, list):
            length = rng.choice((len(now), len(now), 1, 2, 3))
            chosen[name] = [_size(rng, now) for _ in range(length)]
        elif isinstance(now, bool):
            chosen[name] = not now
        else:
            chosen[name] = rng.choice((*SIZES, *NUMBERS, "float64", "int64", "mean", "elu"))
    return Parts(parts.kind, json.dumps(document).encode(), parts.rest).content()


def _size(rng: random.Random, now: list[Any]) -> Any:
    numbers = [n for n in now if isinstance(n, int | float)] or [1]
    return rng.choice(numbers) if rng.random() < 0.5 else rng.choice(SIZES)


def add_nodes(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Some nodes more, that fit what they read: views, products, and values made large."""
    parts = Parts.of(content)
    document = json.loads(parts.text)
    shapes = dict(_shapes(content))
    added = []
    for number in range(rng.choice((1, 2, 4, 8))):
        read = rng.choice([*shapes, *3 * added])
        table, count = _operation(rng, shapes[read])
        try:
            operation = OPERATIONS[table["kind"]].model_validate(table)
            shape = operation.shape([shapes[read]] * count, {})
        except (InputError, ValueError):
            continue
        name = f"new{number}"
        shapes[name] = shape
        added.append(name)
        document["nodes"].append({"name": name, "op": table, "inputs": [read] * count})
    document["outputs"] = [{"node": name} for name in shapes]
    return Parts(parts.kind, json.dumps(document).encode(), parts.rest).content()


@cache
def _shapes(content: bytes) -> dict[str, tuple[int, ...]]:
    """Shape of one example at every node of a good file."""
    file = announcement(content)
    return file.shapes


def _operation(rng: random.Random, shape: tuple[int, ...]) -> tuple[dict[str, Any], int]:
    """An operation that may fit values of a shape, and how many inputs it has."""
    places = [rng.choice((1, 2, 30, 700, 3000, n)) for n in shape]
    kinds: tuple[tuple[dict[str, Any], int], ...] = (
        ({"kind": "upsample", "mode": rng.choice(("nearest", "linear")), "size": places[1:]}, 1),
        (
            {
                "kind": "expand",
                "size": [m if n == 1 else n for n, m in zip(shape, places, strict=True)],
            },
            1,
        ),
        ({"kind": "reshape", "size": [math.prod(shape)]}, 1),
        ({"kind": "reshape", "size": [math.prod(shape), *[1] * rng.randrange(4)]}, 1),
        ({"kind": "pad", "before": places, "after": places}, 1),
        ({"kind": "slice", "axis": rng.randrange(len(shape)), "start": 0, "stop": 1}, 1),
        ({"kind": "permute", "order": rng.sample(range(len(shape)), len(shape))}, 1),
        ({"kind": "activation", "function": rng.choice(("tanh", "relu", "erf"))}, 1),
        ({"kind": "pool", "function": "max", "kernel": places[1:], "stride": places[1:][::-1]}, 1),
        ({"kind": "softmax", "axis": rng.randrange(len(shape))}, 1),
        ({"kind": "concat", "axis": 0}, rng.choice((2, 20, 300))),
        ({"kind": "multiply"}, 2),
        ({"kind": "matmul"}, 2),
        ({"kind": "attention", "scale": 1.0}, 3),
    )
    return rng.choice(kinds)


def change_several(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Two places of the architecture are others."""
    parts = Parts.of(content)
    document = json.loads(parts.text)
    for _ in range(2):
        change_json(rng, document)
    return Parts(parts.kind, json.dumps(document).encode(), parts.rest).content()


OWN = (change_settings, add_nodes, add_nodes, add_nodes, change_several)
"""Beside the changes of `hostile.py`: half of all, for these load more often."""


def mutant(rng: random.Random, contents: list[bytes], index: int) -> bytes:
    """One changed file."""
    changes = OWN if index % 2 else CHANGES
    change = changes[index // 2 % len(changes)]
    whole = [c for c in contents if _shapes(c)] if index % 2 else contents
    return change(rng, rng.choice(whole), rng.choice(contents))


def read_and_run(path: Path) -> str:
    """What becomes of a file: "refused", "run", or "torch refuses".

    Raises:
        Exception: it is neither refused by ellzero nor by torch.
    """
    try:
        model = ez.load(path, max_macs=MAX_MACS, max_bytes=MAX_BYTES)
        assert isinstance(model, Network)
        examples = model.examples(1)
    except InputError:
        return "refused"
    try:
        with torch.no_grad():
            model(*examples)
    except (RuntimeError, IndexError) as error:
        if "alloc" in str(error):
            raise
        return f"torch refuses: {str(error).splitlines()[0][:100]}"
    return "run"


def batch(contents: list[bytes], seed: int, first: int, count: int, folder: Path) -> Counter[str]:
    """Read and run some files in this process; what became of them, and the longest seconds."""
    rng = random.Random(f"{seed} {first}")
    outcomes: Counter[str] = Counter()
    longest = 0.0
    for index in range(first, first + count):
        path = folder / f"{seed}-{index}.ellz"
        path.write_bytes(mutant(rng, contents, index))
        began = time.process_time()
        outcome = read_and_run(path)
        taken = time.process_time() - began
        assert taken < LIMIT_S, f"{taken:.1f} s"
        outcomes[outcome] += 1
        longest = max(longest, taken)
        path.unlink()
    outcomes["longest, ms"] = round(1000 * longest)
    return outcomes


def bounded_batch(
    contents: list[bytes], seed: int, first: int, count: int, folder: Path
) -> Counter[str] | str:
    """The same in a process that can take little memory; what is wrong, if anything is."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + 2 * MAX_BYTES + OWN_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            seconds = int(count * LIMIT_S)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            answer: Any = batch(contents, seed, first, count, folder)
        except BaseException as error:
            answer = f"{type(error).__name__}: {str(error)[:300]}"
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return f"the process ended with {status}"
    result = json.loads(answer)
    return result if isinstance(result, str) else Counter(result)


def tried(
    count: int, seed: int, folder: Path, minutes: float = float("inf")
) -> tuple[Counter[str], list[str]]:
    """Read and run so many files; what became of them, and what did not hold.

    A file that did not hold stays in the folder, and the others of its process are left out.
    """
    contents = files()
    batch(contents, -1, 0, 60, folder)  # what is loaded on first use is no part of the bound
    end = time.monotonic() + 60 * minutes
    outcomes: Counter[str] = Counter()
    broken = []
    longest = 0
    for first in range(0, count, BATCH):
        if time.monotonic() > end:
            break
        result = bounded_batch(contents, seed, first, min(BATCH, count - first), folder)
        if isinstance(result, str):
            kept = max(folder.glob("*.ellz"), key=lambda path: path.stat().st_mtime)
            broken.append(f"{kept}: {result}")
        else:
            longest = max(longest, result.pop("longest, ms"))
            outcomes.update(result)
    outcomes["longest, ms"] = longest
    return outcomes, broken


def main() -> None:
    """Print what became of the files."""
    from trials import options  # which the tests of this script do without

    chosen = options(__doc__, COUNT, "packed")
    warnings.simplefilter("ignore")
    outcomes, broken = tried(chosen.count, chosen.seed, chosen.folder, chosen.minutes)
    for outcome, number in sorted(outcomes.items(), key=lambda pair: -pair[1]):
        print(f"{number:8}  {outcome}")
    for line in broken:
        print(line)
    refusals = sum(number for name, number in outcomes.items() if name.startswith("torch"))
    summary = {name: outcomes[name] for name in ("refused", "run", "longest, ms")}
    print(json.dumps({**summary, "torch refuses": refusals, "broken": len(broken)}))
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
