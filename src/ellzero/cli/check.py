"""`ellzero check`: a run, looked at before it is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ellzero.cli.options import DataRoot, Json
from ellzero.errors import InputError
from ellzero.terminal import plain

if TYPE_CHECKING:
    from ellzero.checking import Check


def check(
    recipe: Path,
    /,
    *,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    data_root: DataRoot = None,
    seed: int | None = None,
    json_: Json = False,
) -> None:
    """Show what a run would be, before any training: its layers, steps, time, and what is wrong.

    Nothing is written. A few steps are trained on a copy, to estimate the time.

    Example: ellzero check recipe.toml --set prune.sparsity=0.98

    Parameters
    ----------
    recipe
        TOML file of a run, or of a study, each of whose recipes is then read.
    set_
        Override of one value of the recipe, as table.key=value; may be repeated.
    seed
        Short for --set seed=N.
    """
    from ellzero.checking import check as look
    from ellzero.documents import read_toml
    from ellzero.factories import built, require_recipe
    from ellzero.recipe import Recipe

    require_recipe(recipe)
    if "methods" in read_toml(recipe, "recipe"):
        if set_ or seed is not None:
            raise InputError(f"{recipe} is a study; --set and --seed go with a recipe")
        _check_study(recipe, json_)
        return
    overrides = [*(set_ or []), *([] if seed is None else [f"seed={seed}"])]
    settings, model, data = built(Recipe.read(recipe, overrides), data_root)
    found = look(model, data, settings)
    if json_:
        print(json.dumps(found.to_table(), indent=2))
    else:
        _show(recipe, found)


def _check_study(path: Path, json_: bool) -> None:
    from ellzero.cli.tables import say
    from ellzero.study.study import Study

    cells = len(list(Study.read(path).cells()))
    if json_:
        print(json.dumps({"study": str(path), "cells": cells}, indent=2))
    else:
        say(f"{path} is a study of up to {cells} cells, whose recipes can be read")
        say(f"next: ellzero compare {path}")


def _show(path: Path, found: Check) -> None:
    from ellzero.checking.check import differences
    from ellzero.cli.tables import say, show_rows, show_warnings

    say(f"{path} on {found.device}; what is not at its default:")
    for key, value in differences(found.recipe).items():
        print(f"  {key} = {plain(_toml(value))}")
    headings = ("layer", "kind", "shape", "weights", "penalized", "pruned")
    show_rows("Layers", list(_layers(found)), headings)
    for sentence in (*_left_out(found), *_obstacles(found)):
        say(sentence)
    show_rows("Stages", list(_stages(found)), ("stage", "epochs", "steps", "estimate"))
    most = "at most " if found.recipe.prune.budget else ""
    say(f"in all {most}about {_duration(found.seconds)}, estimated by some steps of each stage")
    show_warnings(found.warnings)


def _layers(found: Check) -> Iterator[tuple[str, ...]]:
    """A row for each that is pruned, and for each matrix that is not."""
    for p in found.parameters:
        if p.pruned or len(p.shape) > 1:
            shape = " x ".join(map(str, p.shape))
            penalized = ", ".join(p.penalized) or ("by nothing" if p.pruned else "no")
            pruned = "yes" if p.pruned else f"no: {p.reason}"
            yield p.name, p.kind, shape, f"{p.count:,}", penalized, pruned


def _left_out(found: Check) -> Iterator[str]:
    total = sum(parameter.count for parameter in found.parameters)
    rest = found.left_out
    shares = ", ".join(f"{reason} {count / total:.2%}" for reason, count in rest.items())
    share = sum(rest.values()) / total
    yield f"left out of penalty and pruning: {share:.2%} of {total:,} parameters" + (
        f" ({shares})" if shares else ""
    )


def _obstacles(found: Check) -> Iterator[str]:
    ways = found.obstacles
    if ways.untraced is not None:
        yield (
            "it cannot be seen as layers, so it is not compacted, there is no C of it, and a "
            f"packed file needs its class: {ways.untraced}"
        )
        return
    yield "; ".join(ways.compaction) or "all layers can be compacted"
    needs = "; ".join(ways.packing)
    yield (
        f"a packed file needs the network's class, for the code of {needs}"
        if needs
        else "a packed file needs no code of yours"
    )
    yield f"no C for {'; '.join(ways.c)}" if ways.c else "there is C for all of it"
    yield ways.integers or "and C in integers"


def _stages(found: Check) -> Iterator[tuple[str, ...]]:
    for stage in found.stages:
        times = "" if stage.rounds == 1 else f"{stage.rounds} x "
        most = "up to " if times and found.recipe.prune.budget else ""
        yield (
            stage.stage,
            f"{most}{times}{stage.epochs:,}",
            f"{most}{times}{stage.steps:,}",
            _duration(stage.seconds),
        )


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{max(seconds, 0.1):.1f} s"
