"""`ellzero compare`: a study by one command, its report, and what it says of a failure."""

import json
import sys

import pytest

import hand_made
from ellzero.study import process

STUDY = """
seeds = [0]
sparsities = [0.75]

[recipe]
model = "own_project:network"
data = "own_project:data"
device = "cpu"
reference.epochs = 1
train = {epochs = 1, batch_size = 16, learning_rate = 0.02}
finetune.epochs = 1

[methods]
magnitude = {}
l1 = {strengths = [1e-4]}
"""


@pytest.fixture
def study(project):
    (project / "mine.study.toml").write_text(STUDY)
    return "mine.study.toml"


def test_a_study_is_run_and_reported_and_not_run_again(ellzero, project, study):
    first = ellzero("compare", study, "--output", "made")
    assert (first.code, first.err) == (0, "")
    assert "made/report.html" in first.out
    assert "no penalty" in first.out
    written = project / "made" / "cells" / "l1-0.0001-seed0-sparsity-0.75" / "record.json"
    record = json.loads(written.read_text())
    assert (record["status"], record["nonzeros"]) == ("done", 36)  # a quarter of 144
    before = written.stat().st_mtime_ns
    again = ellzero("compare", study, "--output", "made", "--json")
    assert (again.code, again.err) == (0, "")
    document = json.loads(again.out)
    assert written.stat().st_mtime_ns == before
    assert [(row["method"], row["strength"]) for row in document["comparison"]] == [
        ("magnitude", None),
        ("l1", 1e-4),
    ]
    assert document["failures"] == {}
    assert any("train data has 60 examples" in text for text in document["warnings"])
    assert first.out.count("train data has 60 examples") == 1
    assert "parameter" in first.out
    assert (project / document["report"]).read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_a_failed_cell_is_named_and_the_others_are_reported(ellzero, project, study):
    table = "\n[methods.wild]\nstrengths = [1]\ntrain = {learning_rate = 1e38, penalty.l2 = {}}\n"
    (project / study).write_text(STUDY + table)
    done = ellzero("compare", study)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("ellzero: runs/mine.study/cells/wild-1-seed0-sparsity-0.75: ")
    assert "DivergenceError" in line
    assert "no penalty" in done.out
    page = (project / "runs/mine.study/report.html").read_text()
    assert "wild-1-seed0-sparsity-0.75" in page


LEAVES_ALONE = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"warning": json.loads(line)["folder"] + " is left alone"}), flush=True)
"""


@pytest.mark.filterwarnings("always::ellzero.EllzeroWarning")
def test_a_cell_that_another_process_holds_is_warned_of_and_the_study_not_done(
    ellzero, project, monkeypatch
):
    # the worker itself is tested beside its module
    monkeypatch.setattr(process, "COMMAND", (sys.executable, "-I", "-c", LEAVES_ALONE))
    study = hand_made.study(project / "made", seeds=[0], methods={"magnitude": {}})
    hand_made.run(project / "made", "magnitude-seed0-sparsity-0.9")
    hand_made.run(project / "made", "reference-seed0", status="running")
    (project / "mine.toml").write_text(study.to_toml())
    done = ellzero("compare", "mine.toml", "--output", "made")
    assert done.code == 1
    assert done.err == "ellzero: warning: made/cells/reference-seed0 is left alone\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("l1 =", "l3 ="), "unknown method 'l3'; did you mean l2 or l1 or l0?"),
        (("[1e-4]", '["strong"]'), "methods.l1: strengths holds 'strong'; expected finite"),
        (("[0.75]", "[]"), "expected exactly one of sparsities, nonzeros, budgets, and not empty"),
        (("[0.75]", "[0.75, 0.750]"), "two cells have the name magnitude-seed0-sparsity-0.75"),
        (("[recipe]", "[recipe"), "is not TOML"),
    ],
)
def test_a_mistake_in_a_study_is_one_line_before_anything_is_written(
    ellzero, project, study, change, said
):
    (project / study).write_text(STUDY.replace(*change))
    assert said in ellzero("compare", study).says()
    assert not (project / "runs").exists()


def test_no_such_study(ellzero):
    assert "cannot read study none.toml" in ellzero("compare", "none.toml").says()
