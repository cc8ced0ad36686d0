"""The bar of a study: what it counts."""

import io
from typing import Any

from rich.console import Console

from ellzero.study.progress import StudyBar


def shown(bar: StudyBar) -> Any:
    bar.refresh()
    (task,) = bar._bar.tasks
    return task


def test_epochs_of_done_and_running_cells_are_counted(tmp_path):
    bar = StudyBar(False)
    bar.expect("references", 20)
    assert (shown(bar).total, shown(bar).completed) == (20, 0)
    assert shown(bar).description == "references"
    for name, lines in (("one", 3), ("two", 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("{}\n" * lines)
        bar.begin(tmp_path / name, 5)
    bar.begin(tmp_path / "three", 5)  # which has no metrics yet
    # three epochs, and not more than the cell's work
    assert shown(bar).completed == 3 + 5 + 0
    assert shown(bar).fields["note"] == "0 cells done; now one, two, three"
    bar.end(tmp_path / "one", 5, failed=False)
    assert shown(bar).completed == 5 + 5 + 0
    bar.end(tmp_path / "two", 5, failed=True)
    bar.end(tmp_path / "four", 4, failed=False)  # one that was done before, and did not begin
    assert shown(bar).completed == 14
    assert shown(bar).fields["note"] == "3 cells done, 1 failed; now three"


def test_a_new_stage_says_what_is_still_to_come(tmp_path):
    bar = StudyBar(False)
    bar.expect("tuning", 30)
    bar.end(tmp_path / "one", 6, failed=False)
    bar.expect("seeds", 10)
    task = shown(bar)
    assert (task.description, task.total, task.completed) == ("seeds", 16, 6)


def test_a_study_without_a_terminal_says_how_far_it_is(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("ellzero.progress.LINE_SECONDS", 0.0)
    with StudyBar(True) as bar:
        bar.expect("references", 10)
        bar.begin(tmp_path, 4)
        (tmp_path / "metrics.jsonl").write_text("{}\n{}\n{}\n")
        bar.refresh()
    assert f"references: 30 %; 0 cells done; now {tmp_path.name}" in capfd.readouterr().err


def test_a_bar_that_is_not_wanted_writes_nothing(tmp_path, capfd):
    with StudyBar(False) as bar:
        bar.expect("tuning", 3)
        bar.begin(tmp_path / "one", 3)
        bar.refresh()
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = StudyBar(True)
    bar._bar.live.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with bar:
        bar.expect("tuning", 4)
        bar.begin(tmp_path / "one", 2)
        bar.end(tmp_path / "one", 2, failed=True)
        bar.refresh()
        bar._bar.refresh()
    file = bar._bar.console.file
    assert isinstance(file, io.StringIO)
    text = file.getvalue()
    assert "tuning" in text
    assert "50 %" in text
    assert "1 cells done, 1 failed; now" in text
