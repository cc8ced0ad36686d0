"""`ellzero run`: the whole scheme, by a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ellzero.cli.options import DataRoot, Json, Trust
from ellzero.errors import EllzeroError, InputError, WriteError

if TYPE_CHECKING:
    from ellzero.record import FinishedRecord
    from ellzero.verdict import Verdict


def run(
    recipe: Path | None = None,
    /,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    output: Path | None = None,
    resume: Path | None = None,
    data_root: DataRoot = None,
    seed: int | None = None,
    trust: Trust = False,
    json_: Json = False,
) -> None:
    """Train, prune and fine-tune a network by a recipe; without one, a demonstration.

    Example: ellzero run recipes/lenet-300-100-mnist.toml --set prune.sparsity=0.98

    Parameters
    ----------
    recipe
        TOML file that says how; without it LeNet-300-100 on 5,000 real digits.
    set_
        Override of one value of the recipe, as table.key=value; may be repeated.
    output
        Folder for what the run writes, new or empty; by default runs/RECIPE-N.
    resume
        Folder of a run that was stopped, to go on with; instead of a recipe.
    seed
        Short for --set seed=N.
    """
    from ellzero.factories import built, require_recipe
    from ellzero.processes import is_main, joined
    from ellzero.recipe import Recipe
    from ellzero.run_folder import new_folder, require_resumable
    from ellzero.scheme import compress
    from ellzero.trust import trusted_recipe
    from ellzero.verdict import verdict

    if recipe is not None:
        require_recipe(recipe)
    if trust and resume is None:
        raise InputError("--trust goes with --resume: a recipe that you name is trusted anyway")
    if resume is not None:
        if any(other is not None for other in (recipe, set_, output, seed)):
            raise InputError(
                "--resume goes on with a run as it was begun: no recipe, --set, --output or --seed"
            )
        require_resumable(resume)
        settings = trusted_recipe(resume, trust=trust)
    else:
        overrides = [*(set_ or []), *([] if seed is None else [f"seed={seed}"])]
        demo = Path(str(files("ellzero") / "demo.toml"))
        settings = Recipe.read(demo if recipe is None else recipe, overrides)
    settings, model, data = built(settings, data_root)
    with joined():
        folder = resume or output
        if folder is None and is_main():
            folder = new_folder(Path("runs"), settings.name)
        try:
            result = compress(model, data, settings, folder=folder, resume=resume is not None)
        except BaseException as error:
            if folder is not None and is_main():
                _tidy(folder, error, is_new=resume is None and output is None)
            raise
        if not is_main():
            return
    if json_:
        found = verdict(result.record, result.folder)
        told = {"level": found.level, "sentence": found.sentence}
        print(json.dumps({**result.record.to_table(), "verdict": told}, indent=2))
    elif result.folder is not None:
        _show(result.record, result.folder)


def _tidy(folder: Path, error: BaseException, *, is_new: bool) -> None:
    """Remove a folder in which nothing was begun, or note what is in it."""
    if is_new and not any(folder.iterdir()):
        folder.rmdir()
    elif isinstance(error, WriteError) or not isinstance(error, EllzeroError):
        error.add_note(_kept(folder))


def _kept(folder: Path) -> str:
    from ellzero.run_folder import CHECKPOINTS, RECIPE, RunFolder

    if RunFolder.at(folder).status == "done":
        return f"the run in {folder} is done"
    for name in CHECKPOINTS:
        if (folder / name).is_file():
            return f"{folder / name} is saved, go on with `ellzero run --resume {folder}`"
    if (folder / RECIPE).is_file():
        return f"nothing was saved yet, `ellzero run --resume {folder}` begins anew"
    return f"nothing was saved yet in {folder}"


def _show(record: FinishedRecord, folder: Path) -> None:
    from ellzero.cli.tables import say, show_layers, show_rows, show_warnings
    from ellzero.run_folder import MODEL
    from ellzero.verdict import verdict

    found = verdict(record, folder)
    show_layers(record.layers, record)
    show_rows("Result", list(_result_rows(record)), ("", "reference", "compressed"))
    if found.budget:
        show_rows("Budget", found.budget, ("", "on validation data"))
    if found.rounds:
        show_rows("Rounds", list(_round_rows(found)), ("round", "nonzero ratio", "lost", "result"))
    for note in (record.note, record.living_note):
        if note is not None:
            say(note)
    show_warnings(record.warnings)
    say(found.sentence)
    say(f"{folder / MODEL}: the compressed network")
    say(f"{folder}: record, metrics, resolved recipe and the reference; {record.seconds} s")


def _round_rows(found: Verdict) -> Iterator[tuple[str, str, str, str]]:
    for tried in found.rounds:
        yield str(tried.number), _times(tried.ratio), tried.lost, tried.result


def _result_rows(record: FinishedRecord) -> Iterator[tuple[str, str, str]]:
    for part in ("test", "validation"):
        dense, small = getattr(record.reference, part), getattr(record.compressed, part)
        if small is None or dense is None:
            continue
        if record.scores_accuracy:
            yield f"{part} error", f"{dense.error_percent:.2f} %", f"{small.error_percent:.2f} %"
        else:
            yield f"{part} score", f"{dense.score:.4f}", f"{small.score:.4f}"
        yield f"{part} loss", f"{dense.loss:.4f}", f"{small.loss:.4f}"
    yield "nonzero weights", f"{record.weights:,}", f"{record.nonzeros:,}"
    yield "nonzero ratio", "1x", _times(record.nonzero_ratio)
    yield "all parameters", f"{record.parameters:,}", f"{record.parameters_left:,}"
    yield "parameter ratio", "1x", _times(record.parameter_ratio)
    if record.living_nonzeros is not None and record.inputs_left is not None:
        yield "living nonzeros", "", f"{record.living_nonzeros:,}"
        yield "inputs left", "", f"{len(record.inputs_left):,} of {record.inputs:,}"
    if record.file_bytes is not None:
        yield "float32 / gzip bytes", f"{record.float32_bytes:,}", f"{record.file_bytes:,}"
        yield "file ratio (gzip)", "1x", _times(record.file_ratio)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x"
