"""Files that a run goes on from, with one bit flipped or their end cut off: none may be accepted.

`python benchmarks/faults/flips.py [--count N] [--minutes M] [--seed S] [--folder F]`: N bits, a
third each of a checkpoint, a reference and a trained network, half of them in the file's header;
and a tenth as many cuts. Every 200th file goes through the command line: a damaged checkpoint gives
way to the one before, and the run must come to the same bits; a damaged network is refused.
"""

import random
import shutil
from collections.abc import Callable
from contextlib import chdir, suppress
from functools import partial
from pathlib import Path
from typing import Any

from kills import whole_run
from trials import SHORT, Trials, begin, ellzero_in, finish_run, make_project, options, overrides

import ellzero as ez
from ellzero.factories import build_data, build_model
from ellzero.run_folder import CHECKPOINT, PREVIOUS, REFERENCE, TRAINED
from ellzero.training import checkpoint
from ellzero.training.state import State

DRAWN = 200

STARTS = {REFERENCE: "reference.file", TRAINED: "train.file"}
"""The key by which another run starts from the file."""


def stop_run(folder: Path) -> ez.Recipe:
    """A run that is stopped in its fine-tuning, so that it has all the files; its recipe."""
    recipe = ez.Recipe.read(folder / "trial.toml", overrides(SHORT)[1::2])

    def stop(metrics: ez.EpochMetrics) -> None:
        if metrics.stage == "finetune" and metrics.epoch == 1:
            raise KeyboardInterrupt

    model = build_model(recipe.model, recipe.seed)
    with chdir(folder), suppress(KeyboardInterrupt):  # where the recipe finds its data
        ez.compress(model, build_data(recipe.data), recipe, folder="stopped", callback=stop)
    return recipe


def reader_of(name: str, run: Path, recipe: ez.Recipe) -> Callable[[], object]:
    """What reads the file as a run does that starts from it."""
    model = build_model(recipe.model, recipe.seed)
    if name != CHECKPOINT:
        return partial(ez.load, run / name, model)
    state = State(model, ez.select(model), start={})
    return partial(checkpoint.load, state, run, recipe)


def require_refused(read: Callable[[], object]) -> None:
    """Make sure that a file is refused, by an error of ellzero's.

    Raises:
        AssertionError: it is not.
    """
    try:
        read()
    except ez.InputError:
        return
    raise AssertionError("it was accepted")


def damaged(content: bytes, rng: random.Random) -> tuple[str, str, bytes]:
    """A damaged file: of which kind, what was done, and its content."""
    if rng.random() < 1 / 11:
        length = rng.randrange(len(content))
        return "cut", f"cut to {length} of {len(content)} bytes", content[:length]
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    bit = rng.choice((rng.randrange(header), rng.randrange(header, 8 * len(content))))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return "flip", f"bit {bit} of {8 * len(content)}, header of {header}", bytes(changed)


def use_by_command(name: str, run: Path, whole: dict[str, Any]) -> None:
    """Give the damaged file to the command line.

    Raises:
        AssertionError: it is accepted, or the run does not go on as it should.
    """
    if name == CHECKPOINT:
        copy = Path(shutil.copytree(run, run.with_name("resumed")))
        finish_run(copy, SHORT, whole)
        return
    start = {**SHORT, STARTS[name]: run / name}
    ended = ellzero_in(run.parent, *begin("other", start))
    shutil.rmtree(run.with_name("other"), ignore_errors=True)
    assert ended.code == 1, f"it ended with {ended.code}"
    assert len(ended.lines) == 1, ended.lines
    assert name in ended.lines[0], ended.lines


def main() -> None:
    """Print what became of the files."""
    chosen = options(__doc__, 10_000, "flips")
    make_project(chosen.folder)
    whole, _ = whole_run(chosen.folder, SHORT)
    recipe = stop_run(chosen.folder)
    run = chosen.folder / "stopped"
    trials, rng = Trials(chosen.minutes), random.Random(chosen.seed)
    for name in (CHECKPOINT, REFERENCE, TRAINED):
        content = (run / name).read_bytes()
        read = reader_of(name, run, recipe)
        read()
        aside = (run / PREVIOUS).rename(chosen.folder / PREVIOUS)  # lest it takes the other's place
        for number in trials.numbers(name, range(chosen.count * 11 // 30)):
            kind, what, changed = damaged(content, rng)
            (run / name).write_bytes(changed)
            with trials.trial(f"{kind} {name.partition('.')[0]}", what):
                require_refused(read)
            if number % DRAWN == 0:
                aside.rename(run / PREVIOUS)
                with trials.trial(f"{name.partition('.')[0]} by command", what):
                    use_by_command(name, run, whole)
                (run / PREVIOUS).rename(aside)
        (run / name).write_bytes(content)
        aside.rename(run / PREVIOUS)
    trials.finish()


if __name__ == "__main__":
    main()
