"""`ellzero run`: the whole scheme, by a recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ellzero.errors import InputError


def run(
    recipe: Path | None = None,
    /,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    output: Path | None = None,
    resume: Path | None = None,
    data_root: Path | None = None,
    seed: int | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
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
    data_root
        Folder that holds data sets, each in a folder of its name.
    seed
        Short for --set seed=N.
    json_
        Print one JSON document instead of tables.
    """
    from ellzero.factories import PACKED, build_data, build_model, with_data_root
    from ellzero.recipe import Recipe
    from ellzero.record import RECIPE, new_folder
    from ellzero.scheme import compress

    if recipe is not None and recipe.suffix == PACKED:
        raise InputError(
            f"{recipe} is a packed file, no recipe; name it in one as its model, or with "
            f"--set model={recipe}"
        )
    if resume is not None:
        _check_resume(resume, recipe, set_, output, seed)
        told = Recipe.read(resume / RECIPE)
    else:
        overrides = [*(set_ or []), *([] if seed is None else [f"seed={seed}"])]
        demo = Path(str(files("ellzero") / "demo.toml"))
        told = Recipe.read(demo if recipe is None else recipe, overrides)
    told = told.model_copy(update={"data": with_data_root(told.data, data_root)})
    data = build_data(told.data)
    model = build_model(told.model, told.seed)
    folder = resume or output or new_folder(Path("runs"), told.name)
    try:
        result = compress(model, data, told, folder=folder, resume=resume is not None)
    except KeyboardInterrupt:
        print(f"ellzero: interrupted; {_saved(folder)}", file=sys.stderr)
        sys.exit(130)
    except BaseException:
        if resume is None and output is None and not any(folder.iterdir()):
            folder.rmdir()  # nothing was begun, so nothing is left behind
        raise
    if json_:
        print(json.dumps(result.record, indent=2))
    else:
        _show(result.record)


def _check_resume(folder: Path, *others: object) -> None:
    from ellzero.record import CHECKPOINT, RECIPE, read_record

    if any(other is not None for other in others):
        raise InputError(
            "--resume goes on with a run as it was begun: no recipe, --set, --output or --seed"
        )
    if not folder.is_dir():
        raise InputError(f"no folder {folder} to resume")
    if read_record(folder)["status"] == "done":
        raise InputError(f"the run in {folder} is done; there is nothing to resume")
    for name in (RECIPE, CHECKPOINT):
        if not (folder / name).is_file():
            raise InputError(f"{folder} cannot be resumed: there is no {name} in it")


def _saved(folder: Path) -> str:
    from ellzero.record import CHECKPOINT

    if (folder / CHECKPOINT).is_file():
        return f"{folder / CHECKPOINT} is saved, go on with `ellzero run --resume {folder}`"
    return f"nothing was saved yet in {folder}"


def _show(record: dict[str, Any]) -> None:
    from ellzero.cli.tables import show_layers, show_rows, show_warnings

    show_layers(record["layers"], record)
    show_rows("Result", list(_result_rows(record)), ("", "reference", "compressed"))
    for name in ("note", "living_note"):
        if name in record:
            print(record[name])
    show_warnings(record["warnings"])
    folder = Path(record["folder"])
    print(f"{folder / 'model.safetensors'}: the compressed network")
    print(f"{folder}: record, metrics, resolved recipe and the reference; {record['seconds']} s")


def _result_rows(record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    dense, small = record["reference"], record["compressed"]
    if record["test_error_percent"] is not None:
        yield (
            "test error",
            f"{record['reference_error_percent']:.2f} %",
            f"{record['test_error_percent']:.2f} %",
        )
    for part in ("test", "validation"):
        if part in small:
            yield f"{part} score", f"{dense[part]['score']:.4f}", f"{small[part]['score']:.4f}"
            yield f"{part} loss", f"{dense[part]['loss']:.4f}", f"{small[part]['loss']:.4f}"
    ratio = record["nonzero_ratio"]
    yield "nonzero weights", f"{record['weights']:,}", f"{record['nonzeros']:,}"
    yield "nonzero ratio", "1x", "-" if ratio is None else f"{ratio:.1f}x"
    ratio = record["parameter_ratio"]
    yield "all parameters", f"{record['parameters']:,}", f"{record['parameters_left']:,}"
    yield "parameter ratio", "1x", "-" if ratio is None else f"{ratio:.1f}x"
    if record["living_nonzeros"] is not None:
        yield "living nonzeros", "", f"{record['living_nonzeros']:,}"
        left, inputs = len(record["inputs_left"]), record["inputs"]
        yield "inputs left", "", f"{left:,} of {inputs:,}"
    yield "float32 / gzip bytes", f"{record['float32_bytes']:,}", f"{record['file_bytes']:,}"
    yield "file ratio (gzip)", "1x", f"{record['file_ratio']:.1f}x"
