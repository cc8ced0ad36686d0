"""`ellzero report`: what it writes and prints, and what it says of a mistake."""

import json

import pytest

import hand_made
from ellzero.cli.app import main


@pytest.fixture
def ellzero(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["report", *map(str, arguments)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return command


def test_a_study_s_page_and_tables_are_written_into_its_folder(ellzero, folder):
    code, out, err = ellzero("small")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "small/report.html"
    names = ["comparison.csv", "comparison.md", "cells.csv", "pairs.csv", "efforts.csv"]
    assert lines[1:6] == [f"small/{name}" for name in names]
    assert all((folder.parent / line).stat().st_size > 100 for line in lines[:6])
    # of 36 runs and 2 references, each with 60, 45 and 30 examples, the warnings once
    few = [line for line in lines[6:] if "fewer than 100" in line]
    assert [line.split()[:6] for line in few] == [
        ["warning:", part, "data", "has", str(count), "examples,"]
        for part, count in (("train", 60), ("validation", 45), ("test", 30))
    ]


def test_a_study_s_winner_and_the_stars_are_on_the_terminal(ellzero, tmp_path):
    study = tmp_path / "study"
    hand_made.study(study, seeds=[0], methods={"magnitude": {}, "l1": {"strengths": [1e-5, 1e-4]}})
    wrong = {"magnitude": 400, "l1-1e-05": 100, "l1-0.0001": 200}
    for name, count in wrong.items():
        right = [0] * count + [1] * (2000 - count)
        score, error = 1 - count / 2000, count / 20
        cell = f"{name}-seed0-sparsity-0.9"
        hand_made.run(study, cell, wrong=error, score=score, right=right)
    code, out, _ = ellzero(study)
    assert code == 0
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    names = [row[0].strip() for row in rows if row[0].strip()]
    assert names[-2:] == ["l1", "no penalty"], "the winner first"
    (worse,) = [row for row in rows if "no penalty" in row[0]]
    assert worse[2].strip() == "+15.00 **"  # 400 - 100 of 2000
    assert "90 % zeros: l1 did best on validation data" in out
    assert "** the two differ, by a paired bootstrap" in out
    assert "* the chosen strength is the lowest or highest" in out


def test_a_run_and_an_output_of_one_s_own(ellzero, run, tmp_path):
    code, out, _ = ellzero(run, "--output", "page.html", "--json")
    assert code == 0
    told = json.loads((run / "record.json").read_text())["warnings"]
    assert any("train data has 60 examples" in text for text in told)
    assert json.loads(out) == {"page": "page.html", "tables": [], "warnings": told}
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert not (run / "report.html").exists()


def test_a_folder_as_output_gets_the_page(ellzero, run, tmp_path):
    (tmp_path / "there").mkdir()
    for output in ("there", "new/", "fresh"):
        code, out, _ = ellzero(run, "--output", output)
        assert code == 0
        assert out.splitlines()[0] == f"{output.rstrip('/')}/report.html"
        assert (tmp_path / output / "report.html").stat().st_size > 1000
    assert ellzero(run, "--output", "new/")[0] == 0, "an older report is replaced"


def test_another_file_than_a_report_is_not_replaced(ellzero, run, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<title>mine</title>")
    code, out, err = ellzero(run, "--output", mine)
    assert (code, out) == (1, "")
    assert "is there already and no report" in err
    assert mine.read_text() == "<title>mine</title>"
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = ellzero(run, "--output", "notes.txt")
    assert code == 1
    assert "cannot make folder notes.txt for the page: File exists" in err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_mistakes_are_one_line_each(ellzero, folder, run):
    half, newer, other = sorted(folder.glob("cells/magnitude-*"))[:3]
    (half / "record.json").write_text('{"format": 1')
    (newer / "record.json").write_text('{"format": 2, "status": "done"}')
    (other / "record.json").write_text("[]")
    (folder.parent / "empty").mkdir()
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken" / "study.toml").write_text("seeds = 3")
    cases = {
        ("none",): "no folder none to report on",
        (run / "record.json",): "to report on",
        ("empty",): "holds neither a run nor a study",
        (half,): "is not JSON",
        (newer,): "has format 2; this ellzero reads up to 1",
        (other,): "is no record of a run",
        ("broken",): "study broken/study.toml",
        (folder, run): "needs an output",
        (run, "--output", "nowhere/a.html"): "there is no folder nowhere",
    }
    for arguments, expected in cases.items():
        code, out, err = ellzero(*arguments)
        assert (code, out) == (1, ""), arguments
        (line,) = err.splitlines()
        assert expected in line
    assert not list(folder.parent.glob("**/*.html"))


def test_of_several_runs_one_that_cannot_be_read_is_shown_as_that(ellzero, folder, run):
    half = folder / "cells" / "magnitude-seed0-sparsity-0.5"
    (half / "record.json").write_text('{"format": 1')
    code, out, err = ellzero(run, half, "--output", "both.html")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if "cannot be read" in line]
    assert line.startswith(f"warning: {half} cannot be read: ")
    page = (folder.parent / "both.html").read_text()
    assert "unreadable" in page
    assert "is not JSON" in page
    assert "4 times fewer weights" in page, "the run that can be read"


def test_no_folder_is_a_command_written_wrong(ellzero):
    code, out, err = ellzero()
    assert (code, out) == (2, "")
    assert "--help" in err
