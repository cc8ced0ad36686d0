"""Files that were damaged or made up, by the thousand: only ellzero's own errors may come of them.

`python benchmarks/faults/mutations.py [--count N] [--minutes M] [--seed S] [--folder F]
[KIND ...]`: makes a small run and a study of such runs, changes records, metrics, recipes, studies
and model files, N of each kind, and opens, tabulates, draws and traces what they are then. Prints a
table, then one line of JSON. It fails at the first file of which anything else comes than a result
or an `EllzeroError` of readable length, or that takes more than LIMIT_S seconds; that file is kept.
`tests/test_mutations.py` does some hundreds.
"""

import json
import random
import shutil
import struct
import sys
import tempfile
import time
import tomllib
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import nn

import ellzero as ez
from ellzero.data import DATA_SETS
from ellzero.networks import NETWORKS
from ellzero.report.facts import StudyFacts
from ellzero.report.tables import study_texts, write_tables
from ellzero.study.results import cell_folder, reference_folder

COUNT = 10_000
DRAWN = 20
LIMIT_S = 10.0
"""Of the processor, for a machine with other things to do."""

LONGEST = 4000
"""Characters of a message."""

HOSTILE = (
    "",
    "[/]",
    "[bold red]x[/bold red]",
    "\x1b[2J\x1b[31m",
    "=1+1",
    "@SUM(A1)",
    "a\nb\tc\r",
    "\ud800",
    "\x00",
    "‮abc",
    "<script>alert(1)</script>",
    "os:system",
    "../../etc/passwd",
    "$x_$",
    "é" * 500,
)
NUMBERS = (0, 1, -1, 2**31, 2**63, 10**30, 10**400, -(10**5000 - 1), 1e308, -1e308, 1e-320, 0.5)
NUMBERS += (float("nan"), float("inf"), -float("inf"), True)
OTHERS: tuple[Any, ...] = (None, [], {}, [[]], [1], ["x"], {"x": 1}, [None], [[1, 2], [3]])


def deep(depth: int, *, table: bool) -> Any:
    """Lists or tables in one another."""
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if table else [value]
    return value


def places_in(document: Any) -> list[tuple[Any, Any]]:
    """Every place of a document: what holds it, and its key there."""
    places = []
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return places


def change_document(rng: random.Random, document: Any) -> None:
    """Change one place of a document of tables and lists, chosen among all of them."""
    places = places_in(document)
    if not places:
        return
    holder, key = rng.choice(places)
    chosen = rng.randrange(9)
    if chosen == 0:
        del holder[key]
    elif chosen == 1 and isinstance(holder, dict):
        other = rng.choice([k for h, k in places if isinstance(h, dict)])
        holder[rng.choice((other, *HOSTILE))] = holder.pop(key)
    elif chosen == 2 and isinstance(holder, list):
        holder += holder * rng.choice((1, 5, 50))
    elif chosen in (3, 4):
        holder[key] = rng.choice(NUMBERS)
    elif chosen in (5, 6):
        holder[key] = rng.choice(HOSTILE)
    elif chosen == 7:
        holder[key] = deep(rng.choice((3, 40, 200, 900)), table=rng.random() < 0.5)
    else:
        other_holder, other_key = rng.choice(places)
        holder[key] = json.loads(json.dumps(rng.choice((other_holder[other_key], *OTHERS))))


def change_text(rng: random.Random, text: bytes) -> bytes:
    """Change some bytes of a text, or its structure as a whole."""
    changed = bytearray(text)
    chosen = rng.randrange(5)
    if chosen == 0:
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif chosen == 1:
        del changed[rng.randrange(len(changed)) :]
    elif chosen == 2:
        start = rng.randrange(len(changed))
        changed[start:start] = changed[start : start + rng.randint(1, 80)]
    elif chosen == 3:
        insert = rng.choice(
            (b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"\xff", b"\x1b[31m", b"\\ud800", b"NaN",
             b"1e999", b'"', b"\n", b"a." * 20_000 + b"a=1\n", b"a=" + b"[" * 2000)
        )  # fmt: skip
        start = rng.randrange(len(changed))
        changed[start:start] = insert
    else:
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice(b'"[]{},:0129-e.=\n#' + b"\x00")
    return bytes(changed)


@contextmanager
def unlimited() -> Iterator[None]:
    """Write also what Python does not read again: endless integers, endless depth."""
    digits, depth = sys.get_int_max_str_digits(), sys.getrecursionlimit()
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(digits)
        sys.setrecursionlimit(depth)


def json_text(document: Any) -> bytes:
    """JSON, also of what is none: NaN, halves of surrogates, endless integers."""
    with unlimited():
        return json.dumps(document).encode()


def mutated_json(rng: random.Random, text: bytes) -> bytes:
    """Another document in the place of a JSON one."""
    if rng.random() < 0.3:
        return change_text(rng, text)
    document = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        change_document(rng, document)
    return json_text(document)


def mutated_lines(rng: random.Random, text: bytes) -> bytes:
    """Other metrics."""
    if rng.random() < 0.3:
        return change_text(rng, text)
    lines = text.splitlines()
    index = rng.randrange(len(lines))
    lines[index] = mutated_json(rng, lines[index])
    return b"\n".join(lines) + b"\n"


def mutated_toml(rng: random.Random, text: bytes) -> bytes:
    """Other tables in the place of a recipe's or a study's."""
    if rng.random() < 0.4:
        return change_text(rng, text)
    document = tomllib.loads(text.decode())
    for _ in range(rng.randint(1, 2)):
        change_document(rng, document)
    try:
        with unlimited():
            return tomli_w.dumps(document).encode(errors="replace")
    except TypeError:  # null is no TOML
        return change_text(rng, text)


def mutated_tensors(rng: random.Random, content: bytes) -> bytes:
    """Another safetensors file: another header, other metadata, other bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    chosen = rng.randrange(5)
    if chosen == 0:
        return change_text(rng, content)
    if chosen in (1, 2):  # what ellzero itself reads in it
        metadata = json.loads(header["__metadata__"]["ellzero"])
        for _ in range(rng.randint(1, 2)):
            change_document(rng, metadata)
        header["__metadata__"]["ellzero"] = json_text(metadata).decode()
    elif chosen == 3:
        change_document(rng, header)
    else:
        name = rng.choice([key for key in header if key != "__metadata__"])
        dtypes = ("F64", "F32", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "F4", "C64", "X")
        shapes = ([], [0], [1], [2**62, 2], [3, 3], [-1], header[name]["shape"][::-1])
        header[name][rng.choice(("dtype", "shape"))] = rng.choice((*dtypes, *shapes))
    text = json_text(header)
    return struct.pack("<Q", len(text)) + text + rest


@dataclass(frozen=True)
class Kind:
    """A kind of file: which one, how it is changed, and what is done with what it lies in.

    All mutants are read; every DRAWN-th of them goes to each of `drawn` in turn, which takes a
    hundred times as long.
    """

    file: str
    mutate: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], object]
    drawn: tuple[Callable[[Path], object], ...]


def opened(folder: Path) -> None:
    """All that `inspect` and `evaluate` read of a run."""
    run = ez.open_run(folder)
    for part in (lambda: run.record, lambda: run.metrics, lambda: run.masks.nonzeros):
        attempt(part)
    attempt(lambda: ez.evaluate(run.model, run.data(), "test"))
    if run.recipe is not None:
        assert tomllib.loads(run.recipe.to_toml())


def traced(folder: Path) -> None:
    """What `export` and `bench` begin with."""
    ez.open_run(folder).trace()


def reported(folder: Path) -> None:
    """The page of a run or a study."""
    ez.write_report(folder)


def reported_with_another(folder: Path) -> None:
    """The page of two runs, of which one is whole; this one must always come to be."""
    page = folder.parent / "both.html"
    page.unlink(missing_ok=True)
    ez.write_report([folder, good_run()], page)
    assert "4 times fewer weights" in page.read_text(encoding="utf-8")


def tabulated(folder: Path) -> None:
    """The tables of a study."""
    facts = StudyFacts(ez.Results.read(folder))
    for table in study_texts(facts):
        table.markdown()
    write_tables(facts, folder)


def cell_tabulated(cell: Path) -> None:
    """The tables of a study, of which one cell was changed: they must always come to be."""
    tabulated(cell.parents[1])


def cell_reported(cell: Path) -> None:
    """The page of such a study; it must always come to be."""
    reported(cell.parents[1])


MUST_COME = (reported_with_another, cell_tabulated, cell_reported)
PAGES = (reported, reported_with_another)
KINDS = {
    "records": Kind("record.json", mutated_json, opened, PAGES),
    "metrics": Kind("metrics.jsonl", mutated_lines, opened, PAGES),
    "recipes": Kind("recipe.toml", mutated_toml, opened, PAGES),
    "models": Kind("model.safetensors", mutated_tensors, opened, (traced, reported)),
    "trained": Kind("trained.safetensors", mutated_tensors, opened, (reported,)),
    "answers": Kind("answers.safetensors", mutated_tensors, cell_tabulated, (cell_reported,)),
    "cells": Kind("record.json", mutated_json, cell_tabulated, (cell_reported,)),
    "studies": Kind("study.toml", mutated_toml, tabulated, (reported,)),
}
CELL = "l1-0.001-seed0-sparsity-0.75"


def network() -> nn.Sequential:
    """6-16-3: 144 weights."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def data() -> ez.Data:
    """Three clouds in six dimensions."""
    parts = []
    for seed, count in ((1, 60), (2, 45), (3, 30)):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % 3
        noise = 0.6 * torch.randn(count, 6, generator=generator)
        parts.append((torch.eye(6)[:3][labels] + noise, labels))
    return ez.Data(*parts, preprocess=ez.Preprocess(2.0, 1.0), classes=("a", "b", "c"))


@cache
def good_run() -> Path:
    """A run's folder, made once."""
    # names that this process has registered need no trust, so that mutants can be opened
    module = types.ModuleType("mutations_project")
    vars(module).update(network=network, data=data)
    sys.modules[module.__name__] = module
    NETWORKS["small"] = "mutations_project:network"
    DATA_SETS["small"] = "mutations_project:data"
    folder = Path(tempfile.mkdtemp(prefix="mutations-")) / "run"
    recipe = {"model": "small", "data": "small", **SHORT, "prune": {"sparsity": 0.75}}
    ez.compress(network(), data(), ez.Recipe.parse(recipe), folder=folder)
    return folder


SHORT: dict[str, Any] = {
    "device": "cpu",
    "reference": {"epochs": 1},
    "train": {"epochs": 2, "batch_size": 16, "penalty": {"l0": {"strength": 1e-4}}},
    "finetune": {"epochs": 1},
}


@cache
def good_study() -> Path:
    """A study's folder, made once, in this process: two methods, one seed, one target."""
    folder = good_run().with_name("study")
    folder.mkdir()
    study = ez.Study.parse(
        {
            "seeds": [0],
            "sparsities": [0.75],
            "recipe": {key: table for key, table in SHORT.items() if key != "train"},
            "methods": {
                "magnitude": {"label": "plain", "train": {"epochs": 1}},
                "l1": {"strengths": [1e-3], "train": {"epochs": 1}},
            },
        }
    )
    (folder / "study.toml").write_text(study.to_toml())
    reference = reference_folder(folder, 0)
    ez.compress(network(), data(), study.reference_recipe(0), folder=reference)
    for cell in study.cells():
        dense = reference / "reference.safetensors"
        ez.compress(network(), data(), study.cell_recipe(cell), reference=dense,
                    folder=cell_folder(folder, cell))  # fmt: skip
    return folder


def attempt(use: Callable[[], object]) -> str:
    """Use something: "used", or "refused" with ellzero's error, which must be one that can be read.

    Raises:
        RuntimeError: a message without end.
    """
    try:
        use()
    except ez.EllzeroError as error:
        if len(str(error)) > LONGEST:
            raise RuntimeError(f"a message of {len(str(error))} characters") from error
        return "refused"
    return "used"


def mutate(name: str, count: int, seed: int, drawn: int = DRAWN) -> Iterator[tuple[str, float]]:
    """Change a file of this kind so many times; what became of each, and the seconds it took."""
    kind = KINDS[name]
    rng = random.Random(f"{name} {seed}")
    of_study = kind.read in (tabulated, cell_tabulated)
    whole = good_study() if of_study else good_run()
    copy = whole.parent / f"{name}-{seed}" / whole.name
    shutil.copytree(whole, copy)
    inner = copy / "cells" / CELL if kind.read is cell_tabulated else copy
    file = inner / kind.file
    content = file.read_bytes()
    for index in range(count):
        mutant = kind.mutate(rng, content)
        file.write_bytes(mutant)
        uses = [kind.read]
        if index % drawn == 0:
            uses.append(kind.drawn[index // drawn % len(kind.drawn)])
        for use in uses:
            began = time.process_time()
            try:
                outcome = attempt(partial(use, inner))
                taken = time.process_time() - began
                assert taken < LIMIT_S, f"{taken:.1f} s"
                assert outcome == "used" or use not in MUST_COME, "the rest must go on"
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"mutation-{name}-{seed}-{index}-{kind.file}"
                kept.write_bytes(mutant)
                print(f"\n{name} {index}, {use.__name__}: kept as {kept}", file=sys.stderr)
                raise
            yield outcome, taken
    shutil.rmtree(copy.parent)


def main() -> None:
    """Print what became of the files."""
    from trials import options  # which the tests of this script do without

    chosen = options(__doc__, COUNT, "mutations", KINDS)
    end = time.monotonic() + 60 * chosen.minutes
    tempfile.tempdir = str(chosen.folder)
    warnings.simplefilter("ignore")  # of what is drawn, not of what is read
    summary = {}
    print(f"{'kind':12}{'used':>8}{'refused':>8}{'longest, s':>12}")
    for name in chosen.kinds:
        outcomes: Counter[str] = Counter()
        longest = 0.0
        for outcome, taken in mutate(name, chosen.count, chosen.seed):
            outcomes[outcome] += 1
            longest = max(longest, taken)
            if time.monotonic() > end:
                break
        print(f"{name:12}{outcomes['used']:8}{outcomes['refused']:8}{longest:12.2f}", flush=True)
        summary[name] = {**outcomes, "longest_s": round(longest, 2)}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
