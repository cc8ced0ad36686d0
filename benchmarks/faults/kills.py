"""Runs that are killed, by the hundred: each is gone on with and must come to the same bits.

`python benchmarks/faults/kills.py [--count N] [--minutes M] [--seed S] [--folder F] [KIND ...]`:
`random` kills N runs at a moment drawn by chance; `writes` kills one before every change that a run
makes to files, and one in the middle of every write, but for a small N, 3 N drawn by chance;
`chains` kills a run again and again until it is done, a tenth of N times.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trials import (
    SHORT,
    Command,
    Trials,
    Writes,
    begin,
    bits,
    ellzero_in,
    finish_run,
    go_on,
    make_project,
    options,
    require_same_bits,
)

from ellzero.run_folder import RunFolder

LONGEST_CHAIN = 200


def whole_run(folder: Path, changes: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """What a run comes to that nothing disturbs, and the seconds that it takes."""
    began = time.monotonic()
    ended = ellzero_in(folder, *begin("whole", changes))
    seconds = time.monotonic() - began
    assert ended.code == 0, ended.err
    whole = bits(folder / "whole")
    shutil.rmtree(folder / "whole")
    return whole, seconds


def random_kills(trials: Trials, folder: Path, count: int, rng: random.Random) -> None:
    """Kill runs at moments drawn by chance."""
    whole, seconds = whole_run(folder, {})
    for number in trials.numbers("random kills", range(count)):
        moment = rng.uniform(0, seconds)
        run = folder / f"random-{number}"
        with trials.trial("random kill", f"{run.name} after {moment:.3f} s"):
            Command(folder, *begin(run.name, {})).kill_after(moment)
            finish_run(run, {}, whole)


def kills_in_writes(trials: Trials, folder: Path, count: int, rng: random.Random) -> None:
    """Kill a run in every change to files."""
    whole, _ = whole_run(folder, SHORT)
    counted = Writes(lambda *_: None)
    ellzero_in(folder, *begin("counted", SHORT), first=counted.install)
    numbers = list(range(1, counted.count.value + 1))
    print(f"a run makes {len(numbers)} changes to files", flush=True)
    numbers = sorted(rng.sample(numbers, min(3 * count, len(numbers))))
    for how in ("before", "amid"):
        for number in trials.numbers(f"kills {how} a write", numbers):
            run = folder / f"{how}-{number}"
            with trials.trial(f"kill {how} a change", run.name):
                writes = Writes(partial(die, number, how == "amid"))
                ended = ellzero_in(folder, *begin(run.name, SHORT), first=writes.install)
                if ended.code == 0 and how == "amid":  # what has no middle
                    shutil.rmtree(run)
                    continue
                assert ended.code == -signal.SIGKILL, f"it ended with {ended.code}"
                finish_run(run, SHORT, whole)


def die(at: int, amid: bool, number: int, kind: str, half: Callable[[], object]) -> None:
    """Kill this process at a change, or in the middle of it."""
    if number == at and (kind == "write" or not amid):
        if amid:
            half()
        os.kill(os.getpid(), signal.SIGKILL)


def chains(trials: Trials, folder: Path, count: int, rng: random.Random) -> None:
    """Kill a run again and again until it is done, by time and by writes in turn."""
    whole, seconds = whole_run(folder, {})
    for number in trials.numbers("chains", range(max(1, count // 10))):
        run = folder / f"chain-{number}"
        kills = 0
        while RunFolder.at(run).status != "done" and kills < LONGEST_CHAIN:
            with trials.trial("kill in a chain", f"{run.name}, kill {kills}"):
                if number % 2:
                    at = rng.randint(1, 400)
                    writes = Writes(partial(die, at, bool(rng.randrange(2))))
                    ended = ellzero_in(folder, *go_on(run, {}), first=writes.install)
                else:
                    # later and later, for the machine may be busier than when it was measured
                    moment = rng.uniform(0, seconds / 3) * (1 + kills / 20)
                    ended = Command(folder, *go_on(run, {})).kill_after(moment)
                assert ended.code in (0, -signal.SIGKILL), ended.lines
            kills += 1
        with trials.trial("chain", f"{run.name} of {kills} kills"):
            require_same_bits(run, whole)
            shutil.rmtree(run)


KINDS = {"random": random_kills, "writes": kills_in_writes, "chains": chains}


def main() -> None:
    """Print what came of the runs."""
    chosen = options(__doc__, 200, "kills", KINDS)
    make_project(chosen.folder)
    trials = Trials(chosen.minutes)
    for kind in chosen.kinds:
        KINDS[kind](trials, chosen.folder, chosen.count, random.Random(f"{kind} {chosen.seed}"))
    trials.finish()


if __name__ == "__main__":
    main()
