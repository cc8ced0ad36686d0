"""Studies whose workers or whose runner are stopped and killed: their table must be the same.

`python benchmarks/faults/studies.py [--count N] [--minutes M] [--seed S] [--folder F]`: strikes N
times, each time at a random moment of a study by two workers: SIGKILL or SIGSTOP for a worker;
SIGKILL, Ctrl-C, or SIGSTOP for some seconds for the runner. Where the runner has ended, the same
command goes on. In the end nothing disturbs it, and it must come to the undisturbed study's table
and networks.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from trials import Command, Ended, Trials, bits, make_project, options

import ellzero as ez

STUDY = """
name = "trial"
seeds = [0, 1]
sparsities = [0.9]
stalled_minutes = 0.4

[methods]
magnitude = {}
gradual = {}
l1 = {strengths = [1e-5, 1e-3]}

[recipe]
model = "lenet-300-100"
data = {name = "npz", path = "noise.npz"}
device = "cpu"
threads = 1
checkpoint_seconds = 0
reference.epochs = 4
train = {epochs = 6, batch_size = 20}
finetune.epochs = 3
"""

LIMIT_S = 900.0
"""For a study that nothing strikes any more, on a machine with other things to do."""

STRIKES = {
    "SIGKILL for a worker": 3,
    "SIGSTOP for a worker": 1,
    "SIGKILL for the runner": 2,
    "Ctrl-C for the runner": 2,
    "Ctrl-C, a worker stopped": 1,
    "SIGSTOP for the runner": 1,
}
"""How often each is drawn, relative to the others."""


def command(name: str) -> list[str]:
    """What begins the study, and what goes on with it."""
    return ["compare", "study.toml", "--output", name, "--workers", "2", "--json"]


def workers_of(pid: int) -> list[int]:
    """The worker processes of a runner."""
    workers = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if parent == pid and b"ellzero.study.worker" in line:
            workers.append(int(process.name))
    return workers


def figures(folder: Path) -> dict[str, Any]:
    """All that a study has found out.

    Raises:
        AssertionError: a cell of it is not done.
    """
    results = ez.Results.read(folder)
    begun = [cell.folder for cell in results.runs if cell.status != "missing"]
    cells = {folder.name: bits(folder) for folder in begun}
    rows = [(r.method, r.target, r.strength, r.at_edge, r.seeds) for r in results.rows()]
    return {**cells, "rows": rows}


def strike(runner: Command, how: str, rng: random.Random) -> Ended | None:
    """Do one of the `STRIKES`; what became of the runner, if it should end."""
    workers = workers_of(runner.pid)
    if "worker" in how and not workers:
        return None
    if "worker" in how:
        worker = rng.choice(workers)
        os.kill(worker, signal.SIGKILL if how.startswith("SIGKILL") else signal.SIGSTOP)
    if how == "SIGSTOP for the runner":
        os.kill(runner.pid, signal.SIGSTOP)
        time.sleep(rng.uniform(1, 4))
        os.kill(runner.pid, signal.SIGCONT)
    if how == "SIGKILL for the runner":
        runner.process.kill()
        ended = runner.wait()
        for worker in workers:  # one that an earlier strike has stopped would keep its cell
            try:
                os.kill(worker, signal.SIGCONT)
            except ProcessLookupError:
                continue  # its input has closed, so it has ended
        return ended
    if how.startswith("Ctrl-C"):
        os.kill(runner.pid, signal.SIGINT)
        ended = runner.wait()
        # it had ended, or had not begun to handle signals
        known = (0, 1, 130, -signal.SIGINT)
        assert ended.code in known, f"it ended with {ended.code}: {ended.lines}"
        assert "Traceback" not in ended.err, ended.err
        assert not [w for w in workers if Path(f"/proc/{w}").exists()], "a worker is left"
        return ended
    return None


def struck(trials: Trials, folder: Path, name: str, count: int, rng: random.Random) -> int:
    """Strike a study until it is done, at most so many times; how many it took."""
    runner = Command(folder, *command(name))
    strikes = 0
    while strikes < count:
        runner.process.join(rng.uniform(2, 15))
        if not runner.process.is_alive():
            ended = runner.wait()
            if ended.code == 0:
                return strikes
            runner = Command(folder, *command(name))  # a cell's second death is a failure
            continue
        how = rng.choices(list(STRIKES), weights=list(STRIKES.values()))[0]
        strikes += 1
        with trials.trial(how, f"{name}, strike {strikes}"):
            if strike(runner, how, rng) is not None:
                runner = Command(folder, *command(name))
    with trials.trial("last command", name):
        ended = runner.wait(LIMIT_S)
        assert "Traceback" not in ended.err, ended.err
    return strikes


def main() -> None:
    """Print what came of the studies."""
    chosen = options(__doc__, 40, "studies")
    make_project(chosen.folder, count=1000)
    (chosen.folder / "study.toml").write_text(STUDY)
    whole = Command(chosen.folder, *command("whole")).wait(LIMIT_S)
    assert whole.code == 0, whole.err
    expected = figures(chosen.folder / "whole")
    trials, rng = Trials(chosen.minutes), random.Random(chosen.seed)
    left = chosen.count
    for number in trials.numbers("studies", range(chosen.count)):
        name = f"study-{number}"
        left -= struck(trials, chosen.folder, name, left, rng)
        with trials.trial("study", name):
            ended = Command(chosen.folder, *command(name)).wait(LIMIT_S)
            assert ended.code == 0, f"it ended with {ended.code}: {ended.lines}"
            reached = figures(chosen.folder / name)
            differs = [k for k in {**expected, **reached} if reached.get(k) != expected.get(k)]
            assert not differs, f"it differs from an undisturbed one: {differs}"
            shutil.rmtree(chosen.folder / name)
        if left == 0:
            break
    trials.finish()


if __name__ == "__main__":
    main()
