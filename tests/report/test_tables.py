"""The tables, recomputed from the records by a few lines of their own."""

import csv
import json
import re
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

import ellzero as ez
import hand_made
from ellzero.report.facts import StudyFacts
from ellzero.report.figures import Quality, figures
from ellzero.report.pareto import pareto_points
from ellzero.report.study_section import study_section
from ellzero.report.tables import Text, cells, comparison, write_tables
from ellzero.run_folder import RunFolder
from ellzero.study.results import Results
from small import mlp, recipe, regression


def record(folder: Path, name: str) -> dict:
    return json.loads((folder / "cells" / name / "record.json").read_text())


def metrics(folder: Path, name: str) -> list[dict]:
    lines = (folder / "cells" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_cells_hold_what_the_records_say(folder):
    write_tables(StudyFacts(Results.read(folder)), folder)
    rows = read(folder / "cells.csv")
    # 4 methods with 2 strengths and one without, 2 seeds, 2 targets
    assert len(rows) == 9 * 2 * 2
    for row in rows:
        told = record(folder, row["cell"])
        assert float(row["test_error_percent"]) == told["test_error_percent"]
        assert float(row["reference_error_percent"]) == told["reference_error_percent"]
        assert float(row["validation_score"]) == told["validation_score"]
        assert float(row["file_ratio"]) == told["file_ratio"]
        assert int(row["nonzeros"]) == told["nonzeros"]
        assert row["status"] == "done"
        assert float(row["parameter_ratio"]) == 163 / (163 - 144 + told["nonzeros"])
        assert int(row["living_nonzeros"]) == told["living_nonzeros"] <= told["nonzeros"]
        assert int(row["inputs_left"]) == len(told["inputs_left"]) <= 6
        assert int(row["warnings"]) == len(told["warnings"]) >= 3
        assert row["warning_texts"].split(" | ") == told["warnings"]
        lines = metrics(folder, row["cell"])
        (pruned,) = [m for m in lines if m["stage"] == "finetune" and m["epoch"] == 0]
        before = 100 * (1 - pruned["validation_score"])
        assert float(row["validation_error_percent_before_finetuning"]) == pytest.approx(before)
        # three of training and two of fine-tuning; the reference was given
        assert int(row["epochs"]) == 5


@pytest.mark.parametrize(("told", "count"), [([], 0), ([3, 7], 2), (None, None)])
def test_inputs_that_are_left_are_counted(told, count):
    run = hand_made.finished(inputs_left=told)
    assert figures(run, Quality(accuracy=True, part="test"))["inputs_left"] == count


def test_the_comparison_has_median_and_range_of_the_chosen_strength(folder):
    rows = comparison(StudyFacts(Results.read(folder)))
    assert len(rows) == 5 * 2
    for row in rows:
        strength = "" if row["strength"] is None else f"-{row['strength']:g}"
        names = [f"{row['method']}{strength}-seed{seed}-{row['target']}" for seed in (0, 1)]
        records = [record(folder, name) for name in names]
        errors = [told["test_error_percent"] for told in records]
        assert row["result_median"] == pytest.approx(median(errors))
        assert (row["result_low"], row["result_high"]) == pytest.approx((min(errors), max(errors)))
        drops = [told["test_error_percent"] - told["reference_error_percent"] for told in records]
        assert row["drop_median"] == pytest.approx(median(drops))
        assert row["at_edge"] == (row["strength"] is not None)


def test_the_figures_of_each_run_are_computed_once(tmp_path, monkeypatch):
    hand_made.study(tmp_path, seeds=[0], methods={"magnitude": {}, "l1": {"strengths": [1e-4]}})
    for method in ("magnitude", "l1-0.0001"):
        hand_made.run(tmp_path, f"{method}-seed0-sparsity-0.9", tuned=2)
    computed: Counter[Path] = Counter()

    def counting(run: RunFolder, quality: Quality):
        computed[run.folder] += 1
        return figures(run, quality)

    monkeypatch.setattr("ellzero.report.facts.figures", counting)
    facts = StudyFacts(Results.read(tmp_path))
    write_tables(facts, tmp_path)
    study_section(facts, "name")
    assert computed == dict.fromkeys((run.folder for run in facts.results.runs), 1)
    assert len(computed) == 3


def test_pareto_points_are_the_comparison(folder):
    facts = StudyFacts(Results.read(folder))
    rows = comparison(facts)
    points = [(p.method, p.ratio.median, p.result.low, p.result.high) for p in pareto_points(facts)]
    keys = ("method", "nonzero_ratio_median", "result_low", "result_high")
    assert points == [tuple(row[key] for key in keys) for row in rows]
    assert {ratio for _, ratio, _, _ in points} == {2.0, 4.0}


def test_markdown_shows_names_as_they_are(folder):
    write_tables(StudyFacts(Results.read(folder)), folder)
    text = (folder / "comparison.md").read_text()
    for line in text.splitlines():
        if line.startswith("|") and "script" in line:
            assert "<" not in line
            assert "&lt;script&gt;" in line
            columns = len(re.findall(r"(?<!\\)\|", line)) - 1
            assert columns in (10, 5, 6)
    assert "Comparison: 50 % zeros" in text
    assert "## Effort" in text
    assert re.search(r"\| train data has 60 examples, .* \| 38 \|", text)
    text = Text("a", ("b",), (("c\n| d",),)).markdown()
    assert text == "## a\n\n| b |\n| --- |\n| c \\| d |\n"


def test_text_from_files_is_neither_a_formula_nor_an_escape(tmp_path):
    methods = {
        "magnitude": {"label": "=1+1"},
        "l1": {"label": "@SUM(A1)\x1b[31m", "strengths": [1e-4]},
    }
    hand_made.study(tmp_path, seeds=[0], methods=methods)
    warnings = ["\t=cmd|' /C calc'!A0", "a\x1b[2Jb"]
    for name in ("magnitude-seed0-sparsity-0.9", "l1-0.0001-seed0-sparsity-0.9"):
        hand_made.run(tmp_path, name, score=-0.5, warnings=warnings)
    paths = write_tables(StudyFacts(Results.read(tmp_path)), tmp_path)
    assert not any("\x1b" in path.read_text() for path in paths)
    for row in read(tmp_path / "cells.csv"):
        assert row["warning_texts"] == r"'=cmd|' /C calc'!A0 | a\x1b[2Jb"
        assert row["validation_score"] == "-0.5", "a number stays one"
    labels = [row["label"] for row in read(tmp_path / "comparison.csv")]
    assert labels == ["'=1+1", r"'@SUM(A1)\x1b[31m"]


def test_a_cell_that_failed_is_in_the_table_and_one_that_is_missing_is_not(folder):
    names = sorted(path.name for path in (folder / "cells").glob("l1*"))
    (folder / "cells" / names[0] / "record.json").write_text("{")
    (folder / "cells" / names[1] / "record.json").unlink()
    rows = {row["cell"]: row for row in cells(StudyFacts(Results.read(folder)))}
    assert rows[names[0]]["status"] == "unreadable"
    assert "is not JSON" in rows[names[0]]["error"]
    assert rows[names[0]]["nonzeros"] is None
    assert names[1] not in rows


def test_a_score_that_is_no_accuracy_is_shown_as_it_is(tmp_path):
    folder = tmp_path / "run"
    ez.compress(mlp(outputs=1), regression(), recipe(), folder=folder)
    run = RunFolder.at(folder)
    record, quality = run.finished, Quality.of([run])
    assert (quality.noun, quality.part, quality.label()) == ("score", "test", "test score")
    assert record is not None
    assert record.compressed.test is not None
    assert record.reference.test is not None
    reached = figures(run, quality)
    assert reached["result"] == record.compressed.test.score
    assert reached["drop"] == record.reference.test.score - record.compressed.test.score


@pytest.mark.parametrize(
    ("told", "quality"), [(True, "validation error, %"), (None, "validation score")]
)
def test_of_a_study_on_validation_data_alone(told, quality, folder):
    for path in folder.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        for who in ("reference", "compressed"):
            del record[who]["test"]
        record["test_error_percent"] = record["reference_error_percent"] = None
        record["scores_accuracy"] = told  # older records do not tell it
        path.write_text(json.dumps(record))
    rows = comparison(StudyFacts(Results.read(folder)))
    assert {row["quality"] for row in rows} == {quality}
