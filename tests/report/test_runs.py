"""Several runs on one page: who is first, who is on the front, and by how much they differ."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import hand_made
from ellzero.report.page import write_report
from ellzero.report.runs_section import runs_section
from ellzero.run_folder import RunFolder

DENSE = 0.985


def made(folder: Path, name: str, *, nonzeros: int, wrong: int, **entries: Any) -> RunFolder:
    """A run with so many of 10,000 test answers wrong, the first ones; the reference has 150."""
    of = {"validation": {"score": 0.99, "loss": 0.02}}
    table = hand_made.table(
        nonzeros=nonzeros,
        reference={**of, "test": {"score": entries.pop("dense", DENSE), "loss": 0.02}},
        compressed={**of, "test": {"score": 1 - wrong / 10_000, "loss": 0.02}, "epoch": 1},
        test_error_percent=wrong / 100,
        **entries,
    )
    run = folder / name
    run.mkdir()
    (run / "record.json").write_text(json.dumps(table))
    right = {"reference": torch.arange(10_000) >= 150, "compressed": torch.arange(10_000) >= wrong}
    save_file(right, run / "answers.safetensors")
    return RunFolder.at(run)


def test_the_smallest_run_to_ship_comes_first(tmp_path):
    runs = [
        made(tmp_path, "large", nonzeros=200, wrong=149),
        made(tmp_path, "beaten", nonzeros=250, wrong=149),
        made(tmp_path, "small", nonzeros=20, wrong=152),  # 2 more: two standard errors are 2.8
        made(tmp_path, "lossy", nonzeros=10, wrong=250),
    ]
    section = runs_section(runs, "runs")
    (table,) = section.tables
    places = [(row[0].rpartition("/")[2], *row[1:3]) for row in table.rows]
    assert places == [
        ("small", "Ship it", "yes"),
        ("large", "Ship it", "yes"),
        ("beaten", "Ship it", "no"),
        ("lossy", "Weigh it", "yes"),
    ]
    first, second = section.summary
    assert first.endswith(
        "small is the smallest of 3 runs to ship: 50 times fewer weights, test error 1.52 %."
    )
    # three answers differ: two standard errors are 2 sqrt(3) of 10,000
    assert "large (5 times fewer weights): 0.03 points less, within the noise of 10,000" in second
    assert "(two standard errors: 0.03)" in second
    assert section.warnings == []


def test_references_that_differ_are_said(tmp_path):
    runs = [
        made(tmp_path, "a", nonzeros=200, wrong=150),
        made(tmp_path, "b", nonzeros=100, wrong=150, dense=0.97),
    ]
    (warning,) = runs_section(runs, "runs").warnings
    assert warning.startswith("The dense references differ, from 1.50 % to 3.00 %")


def test_runs_on_different_data_are_said(tmp_path):
    data = ["mnist", {"name": "mnist", "data_root": "/data"}, {"name": "mnist", "augment": 2}]
    runs = [
        made(tmp_path, str(n), nonzeros=200, wrong=150, recipe={"data": of})
        for n, of in enumerate(data)
    ]
    assert runs_section(runs[:2], "runs").warnings == []
    (warning,) = runs_section(runs, "runs").warnings
    assert warning == "The runs were made with different data (mnist): their errors do not compare."


def test_of_equally_good_runs_the_smallest_is_the_best(tmp_path):
    runs = [made(tmp_path, str(n), nonzeros=n, wrong=150) for n in (200, 100)]
    first, second = runs_section(runs, "runs").summary
    assert "100 is the smallest of 2 runs" in first
    assert second == "It also has the best test error of all runs."


def test_without_a_run_to_ship_the_front_is_named(tmp_path):
    runs = [
        made(tmp_path, "a", nonzeros=20, wrong=300),
        made(tmp_path, "b", nonzeros=10, wrong=300),
        made(tmp_path, "c", nonzeros=10, wrong=299),
    ]
    (sentence,) = runs_section(runs, "runs").summary
    assert sentence.endswith(f"On the Pareto front: {tmp_path / 'c'}.")


def test_two_runs_of_one_recipe_have_titles_of_their_own(tmp_path):
    runs = [
        made(tmp_path, name, nonzeros=20, wrong=150, recipe={"name": "one"}).folder
        for name in ("a", "b")
    ]
    page = write_report(runs, tmp_path / "page.html").read_text()
    assert f"<h1>one ({runs[0]})</h1>" in page
    assert f"<h1>one ({runs[1]})</h1>" in page


def test_the_axis_does_not_blow_up_noise(tmp_path):
    # without answers there is no noise to draw: 1.50 and 1.51 % are not to fill the picture
    runs = [made(tmp_path, str(n), nonzeros=20 + n, wrong=150 + n) for n in (0, 1)]
    for run in runs:
        (run.folder / "answers.safetensors").unlink()
    (picture,) = runs_section(runs, "runs").first
    ticks = [float(text) for text in re.findall(r">(1\.\d+)<", picture.svg)]
    assert min(ticks) <= 1.40
    assert max(ticks) >= 1.60
