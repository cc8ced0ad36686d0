"""The page: what is on it, that it is safe, and that it can be made of anything a run leaves."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ellzero as ez


class Page(HTMLParser):
    """The tags, ids and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.pictures: list[str] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "svg" and "aria-label" in found:
            self.pictures.append(found["aria-label"] or "")

    def handle_data(self, data):
        self.text += " ".join(data.split()) + " "


def change(run: Path, **entries) -> None:
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps({**record, **entries}))


def keep_only(run: Path, *keys: str) -> None:
    record = json.loads((run / "record.json").read_text())
    kept = {key: record[key] for key in ("format", "started", "recipe", *keys)}
    (run / "record.json").write_text(json.dumps(kept))


def test_a_study_has_all_its_pictures_and_tables(folder):
    path = ez.write_report(folder)
    assert path == folder / "report.html"
    page = Page(path)
    names = " / ".join(page.pictures)
    assert names.count("Pareto") == 1
    for what in ("of each method", "before and after", "density per layer", "over the epochs"):
        assert names.count(what) == 2, what  # one a target
    assert names.count("magnitudes of the trained weights") == 5
    assert names.count("seconds and epochs") == 1
    for text in ("learned gates", "no penalty", "Comparison: 75 % zeros", "Effort", "Paired tests"):
        assert text in page.text
    assert "a chosen strength (*) is the lowest or highest" in page.text
    assert "did best on validation data" in page.text
    assert {p.name for p in folder.iterdir()} == {
        "cells", "study.toml", "report.html", "comparison.csv", "comparison.md", "cells.csv",
        "pairs.csv", "efforts.csv",
    }  # fmt: skip


def test_the_headline_names_the_method_with_the_best_validation_score(folder):
    for path in folder.glob("cells/magnitude-*/record.json"):
        record = json.loads(path.read_text())
        record["compressed"]["validation"]["score"] = 1.0
        path.write_text(json.dumps(record))
    text = Page(ez.write_report(folder)).text
    assert "50 % zeros: no penalty did best on validation data (2.0 times fewer weights)" in text
    assert "75 % zeros: no penalty did best on validation data (4.0 times fewer weights)" in text


def test_ids_are_unique_and_nothing_is_loaded_or_run(folder):
    page = Page(ez.write_report(folder))
    assert len(page.ids) == len(set(page.ids)) > 100
    assert not {"script", "iframe", "object"} & set(page.tags)
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')> ]+)""", page.html)
    assert all(link.startswith(("#", "data:")) for link in links)


def test_names_are_escaped(folder, run, label):
    change(run, status="failed", error="<script>boom</script> & more")
    page = Page(ez.write_report(folder))
    assert "script" not in page.tags
    assert label in page.text
    assert "<script>boom</script> & more" in page.text
    (run / "recipe.toml").write_text('name = "<b>bold</b>"')
    change(run, recipe={"name": "<script>name</script>"})
    page = Page(ez.write_report(run))
    assert not {"script", "b"} & set(page.tags)
    assert "<script>name</script>" in page.text


def test_the_same_records_give_the_same_page(folder, run):
    for path in (folder, run):
        first = ez.write_report(path).read_bytes()
        assert ez.write_report(path).read_bytes() == first


def test_a_run_shows_masks_layers_training_and_recipe(run):
    page = Page(ez.write_report(run))
    assert [" ".join(name.split()[:3]) for name in page.pictures] == [
        "0.weight: the mask,", "density per layer", "The validation error",
        "magnitudes of the",
    ]  # fmt: skip
    assert "4 times fewer weights (36 of 144)" in page.text
    assert "[train.penalty.l0]" in page.text
    assert "l0 0.01, l2 1e-05" in page.text


def test_a_run_that_is_still_going_shows_its_metrics(run):
    keep_only(run)
    change(run, status="running")
    (run / "model.safetensors").unlink()
    page = Page(ez.write_report(run))
    assert "The run is running: its record has no results yet" in page.text
    assert "finetune, epoch 2" in page.text
    assert len(page.pictures) == 1


def test_metrics_that_cannot_be_read_leave_their_pictures_out(run):
    (run / "metrics.jsonl").write_text('{"stage": "tr')
    page = Page(ez.write_report(run))
    assert not any("over the epochs" in name for name in page.pictures)
    assert len(page.pictures) == 3


def test_a_run_that_failed_shows_its_error(run):
    keep_only(run)
    change(run, status="failed", error="train_loss became nan in epoch 3")
    (run / "metrics.jsonl").unlink()
    page = Page(ez.write_report(run))
    assert "train_loss became nan in epoch 3" in page.text
    assert page.pictures == []


def test_a_study_that_is_still_going(folder):
    for path in {*folder.glob("cells/*seed1*"), *folder.glob("cells/l0*-0.01-*")}:
        shutil.rmtree(path)
    page = Page(ez.write_report(folder))
    assert "not complete" in page.text
    assert "1 of 2" in page.text
    rows = (folder / "comparison.csv").read_text()
    assert "magnitude" in rows
    assert "l0+l2" not in rows


def test_a_study_that_has_not_begun(folder):
    shutil.rmtree(folder / "cells")
    text = Page(ez.write_report(folder)).text
    assert "no method has come to a result" in text
    assert "none yet" in text


def test_records_that_cannot_be_read_are_listed_and_all_others_shown(folder, run):
    (run / "record.json").write_text('{"format": 1, "sta')
    other = run.with_name(run.name.replace("0.75", "0.5"))
    change(other, format=99)
    page = Page(ez.write_report(folder))
    assert f"{run.name} : unreadable" in page.text
    assert "is not JSON" in page.text
    assert "has format 99" in page.text
    assert any("Pareto" in name for name in page.pictures)


def test_several_runs_are_compared(folder, tmp_path):
    runs = sorted(folder.glob("cells/l1-0.01-seed*"))
    keep_only(runs[0])
    change(runs[0], status="running")
    page = Page(ez.write_report([folder, *runs], tmp_path / "all.html"))
    assert len(runs) == 4
    assert "4 runs" in page.text
    assert "3 done" in page.text
    assert "The runs compared" in page.text
    assert sum("each run" in name for name in page.pictures) == 1
    assert len(page.ids) == len(set(page.ids))
    assert not list(folder.glob("*.csv"))


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_without_the_extra_it_says_what_to_install(module, run, monkeypatch):
    monkeypatch.setattr("ellzero.report.page.find_spec", lambda name: None if name == module else 1)
    with pytest.raises(ez.InputError, match=rf"{module}: pip install 'ellzero\[report\]'"):
        ez.write_report(run)


def test_no_folder_at_all_is_an_error():
    with pytest.raises(ez.InputError, match="no folder was given"):
        ez.write_report([])


def test_methods_that_are_not_trained_alike_are_named(folder):
    text = (folder / "study.toml").read_text()
    (folder / "study.toml").write_text(
        text + "\n[methods.hoyer-square.finetune]\nlearning_rate = 0.125\n"
    )
    page = Page(ez.write_report(folder)).text
    assert (
        "Hoyer-square is not trained as the first method is: finetune.learning_rate = 0.125."
        in page
    )
