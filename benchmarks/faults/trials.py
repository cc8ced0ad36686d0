"""What the scripts of this folder share: a small run in a process of its own, and a table."""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

import ellzero as ez
import ellzero.cli
import ellzero.cli.app
from ellzero.run_folder import CHECKPOINTS, MODEL, RECIPE, REFERENCE, TRAINED, RunFolder

LIMIT_S = 120.0
"""What no process here takes."""

MODEL_FILES = (MODEL, REFERENCE, TRAINED)

LONG_RECIPE = """
name = "trial"
model = "lenet-300-100"
data = {name = "npz", path = "noise.npz"}
device = "cpu"
threads = 1
checkpoint_seconds = 0.2
reference.epochs = 4
train = {epochs = 6, batch_size = 50, penalty.l0 = {strength = 1e-4}}
prune = {sparsity = 0.9, rounds = 2}
finetune.epochs = 2
"""
"""About two seconds, with all that a checkpoint can hold in one run."""

SHORT = {"checkpoint_seconds": 0, "reference.epochs": 1, "train.epochs": 2, "finetune.epochs": 1}
"""Overrides for a run of few writes; a checkpoint after each epoch."""


def options(
    script: str | None,
    count: int,
    name: str,
    kinds: Iterable[str] = (),
    minutes: float = float("inf"),
) -> argparse.Namespace:
    """The arguments of a script, and its folder, made new.

    Args:
        script: its docstring.
        count: of trials, where nothing else is said.
        name: of the script, and of its folder where none is given.
        kinds: of trials, to choose from; all of them where nothing else is said.
        minutes: after which no trial begins, where nothing else is said.
    """
    kinds = tuple(kinds)
    parser = argparse.ArgumentParser(
        description=script, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=count, help="trials (%(default)s)")
    parser.add_argument("--minutes", type=float, default=minutes, help="at most (%(default)g)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="new; what did not hold stays there")
    if kinds:
        parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(kinds))
    chosen = parser.parse_args()
    if kinds:
        unknown = set(chosen.kinds) - set(kinds)
        if unknown:
            parser.error(f"there is no kind {', '.join(unknown)}; expected {', '.join(kinds)}")
        chosen.kinds = chosen.kinds or kinds
    if chosen.folder is None:
        chosen.folder = Path(tempfile.mkdtemp(prefix=f"ellzero-{name}-"))
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if any(chosen.folder.iterdir()):
        parser.error(f"{chosen.folder} is in use; name a new folder")
    torch.set_num_threads(1)
    _import_all()
    return chosen


def _import_all() -> None:
    """Import what a run does, so that the processes forked from here have it; that takes longer."""
    x, y = torch.eye(10).repeat(20, 1), torch.arange(10).repeat(20)
    data = ez.Data((x, y), (x, y), (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ez.EllzeroWarning)
        recipe = ez.Recipe.parse({"train": {"epochs": 1}, "prune": {"sparsity": 0.5}})
        ez.compress(torch.nn.Linear(10, 10), data, recipe, progress=False)


class Trials:
    """What was tried, of which kind, and what did not hold.

    Args:
        minutes: no trial begins after that.
    """

    def __init__(self, minutes: float = float("inf")) -> None:
        self._began = time.monotonic()
        self._end = self._began + 60 * minutes
        self._tried: Counter[str] = Counter()
        self._broken: Counter[str] = Counter()
        self._seconds: dict[str, float] = defaultdict(float)

    def numbers(self, what: str, numbers: Iterable[int]) -> Iterator[int]:
        """The numbers of trials, as long as there is time; says how far it is twice a minute."""
        said = time.monotonic()
        for number in numbers:
            if time.monotonic() > self._end:
                print(f"{what}: no time for {number} and what comes after it", flush=True)
                return
            yield number
            if time.monotonic() > said + 30:
                said = time.monotonic()
                print(f"{what}: {number}, {sum(self._broken.values())} did not hold", flush=True)

    @contextmanager
    def trial(self, kind: str, what: str) -> Iterator[None]:
        """One trial; an `AssertionError` says what did not hold."""
        began = time.monotonic()
        self._tried[kind] += 1
        try:
            yield
        except AssertionError as error:
            self._broken[kind] += 1
            print(f"DID NOT HOLD: {kind}, {what}: {error}", flush=True)
        finally:
            self._seconds[kind] += time.monotonic() - began

    @property
    def broken(self) -> int:
        """How many trials did not hold."""
        return sum(self._broken.values())

    def finish(self) -> NoReturn:
        """Print the table, then one line of JSON; exit code 1 if anything did not hold."""
        print(f"{'tried':28}{'times':>8}{'held':>8}{'not':>6}{'seconds':>9}")
        table = {}
        for kind, times in self._tried.items():
            broken, seconds = self._broken[kind], round(self._seconds[kind])
            print(f"{kind:28}{times:8}{times - broken:8}{broken:6}{seconds:9}")
            table[kind] = {"times": times, "broken": broken, "seconds": seconds}
        print(json.dumps({"all_s": round(time.monotonic() - self._began), **table}))
        sys.exit(1 if self.broken else 0)


def make_project(folder: Path, count: int = 600, recipe: str = LONG_RECIPE) -> None:
    """Write a recipe, `trial.toml`, and its data: pictures and labels drawn by chance."""
    rng = np.random.default_rng(0)
    sizes = {"train": count, "validation": 400, "test": 400}
    arrays: dict[str, Any] = {}
    for part, size in sizes.items():
        arrays[f"x_{part}"] = rng.integers(0, 256, (size, 1, 28, 28), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(size) % 10
    np.savez(folder / "noise.npz", **arrays)
    (folder / "trial.toml").write_text(recipe)


@dataclass(frozen=True)
class Ended:
    """What became of a process: its exit code (negative: the signal), and what it said."""

    code: int
    err: str

    @property
    def lines(self) -> list[str]:
        """What it said, but for warnings."""
        return [x for x in self.err.splitlines() if not x.startswith("ellzero: warning: ")]


class Command:
    """The command line in a process of its own, forked from this one, which has all imports.

    Args:
        folder: the current folder of the process.
        arguments: of `ellzero`.
        first: called in the process before the command.
    """

    def __init__(
        self, folder: Path, *arguments: str, first: Callable[[], None] = lambda: None
    ) -> None:
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        self._said = Path(name)
        self.process: ForkProcess = multiprocessing.get_context("fork").Process(
            target=self._run, args=(folder, arguments, first)
        )
        self.process.start()

    def _run(self, folder: Path, arguments: tuple[str, ...], first: Callable[[], None]) -> None:
        with self._said.open("wb") as said:
            os.dup2(said.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # a script in the background may ignore them
        os.chdir(folder)
        sys.argv = ["ellzero", *arguments]
        first()
        ellzero.cli.main()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = LIMIT_S) -> Ended:
        """What became of it; one that takes longer is killed."""
        self.process.join(seconds)
        hangs = self.process.exitcode is None
        if hangs:
            self.process.kill()
            self.process.join()
        text = self._said.read_text(errors="replace")
        self._said.unlink()
        assert not hangs, f"it was still at work after {seconds:g} s; it said {text!r}"
        code = self.process.exitcode
        assert code is not None
        return Ended(code, text)

    def kill_after(self, seconds: float) -> Ended:
        """Kill it at that moment, unless it has ended."""
        self.process.join(seconds)
        self.process.kill()
        return self.wait()


def ellzero_in(folder: Path, *arguments: str, first: Callable[[], None] = lambda: None) -> Ended:
    """The same, waited for."""
    return Command(folder, *arguments, first=first).wait()


def overrides(changes: dict[str, Any]) -> list[str]:
    """As `ellzero run` takes them."""
    return [text for key, value in changes.items() for text in ("--set", f"{key}={value}")]


def begin(run: str, changes: dict[str, Any]) -> list[str]:
    """The command that begins the run."""
    return ["run", "trial.toml", "--output", run, "--json", *overrides(changes)]


def go_on(run: Path, changes: dict[str, Any]) -> list[str]:
    """The command that goes on with what is there, as a user would who was told nothing."""
    if (run / RECIPE).is_file():
        return ["run", "--resume", run.name, "--json"]
    return begin(run.name, changes)


def bits(run: Path) -> dict[str, Any]:
    """All that a run has come to: its networks to the last bit, metrics and record without times.

    Raises:
        AssertionError: it is not done.
    """
    run_folder = RunFolder.at(run)
    assert run_folder.finished is not None, f"{run} is {run_folder.status}: {run_folder.error}"
    files = [run / name for name in MODEL_FILES if (run / name).exists()]
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    record = run_folder.finished.to_table()
    for key in ("seconds", "started", "folder", "recipe"):
        del record[key]
    metrics = [{**m.to_table(), "seconds": 0} for m in run_folder.metrics]
    return {**digests, "record": record, "metrics": metrics}


def require_same_bits(run: Path, whole: dict[str, Any]) -> None:
    """Make sure that a run has come to what an undisturbed one has.

    Raises:
        AssertionError: it has not.
    """
    reached = bits(run)
    differs = [key for key in {**whole, **reached} if reached.get(key) != whole.get(key)]
    assert not differs, f"{run} differs from an undisturbed run: {differs}"


def finish_run(run: Path, changes: dict[str, Any], whole: dict[str, Any]) -> None:
    """Go on with a run in a process that nothing disturbs, and compare what it comes to.

    Raises:
        AssertionError: it fails; it comes to something else.
    """
    if RunFolder.at(run).status != "done":
        ended = ellzero_in(run.parent, *go_on(run, changes))
        assert ended.code == 0, f"going on ended with {ended.code}: {ended.lines}"
        left = {path.name for path in run.iterdir()} & set(CHECKPOINTS)
        left |= {path.name for path in run.glob(".*")}
        assert not left, f"{left} is left in {run}"
    require_same_bits(run, whole)
    shutil.rmtree(run)


Fault = Callable[[int, str, Callable[[], object]], None]


class Writes:
    """Every change that a process makes to files, counted from 1; a fault at one of them.

    Counted are making a folder, making a file, each write, sync, rename and removal. `install` is
    called in the process itself.

    Args:
        fault: called before each change with its number, its kind, and what does a half of it (of
            a write; of others nothing). It raises, or ends the process, or lets it go on.
    """

    def __init__(self, fault: Fault) -> None:
        self.count = multiprocessing.Value("i", 0)
        """How many there were, for the process that looks on as well."""
        self._fault = fault

    def install(self) -> None:
        """Count from here on, in this process."""
        for name in ("mkdir", "replace", "fsync", "unlink"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        opened, opened_path = os.open, Path.open

        def open_counted(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self._change("create")
            return opened(path, flags, *rest, **options)

        writes = self

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                content = memoryview(content)
                writes._change("write", lambda: io.FileIO.write(self, content[: len(content) // 2]))
                return super().write(content)

        def open_path(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if "b" not in mode or "r" in mode:
                return opened_path(self, mode, *rest, **options)
            writes._change("create")
            return io.BufferedWriter(File(self, mode.replace("b", "")))

        os.open = open_counted
        Path.open = open_path  # pyright: ignore[reportAttributeAccessIssue]

    def _counted(self, kind: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._change(kind)
            return change(*arguments, **options)

        return counted

    def _change(self, kind: str, half: Callable[[], object] = lambda: None) -> None:
        self.count.value += 1
        self._fault(self.count.value, kind, half)
