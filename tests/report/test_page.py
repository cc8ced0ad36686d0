"""The page: what is on it, that it is safe, and that it can be made of anything a run leaves."""

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ellzero as ez
import hand_made
from ellzero.report.run_pictures import first_layer, layer_bars
from ellzero.run_folder import RunFolder


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


@pytest.fixture(scope="module")
def study_page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study that nothing has happened to, in the study's folder."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("whole") / "small")
    path = ez.write_report(folder)
    assert path == folder / "report.html"
    return path


def test_a_study_has_all_its_pictures_and_tables(study_page):
    page = Page(study_page)
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
    assert {p.name for p in study_page.parent.iterdir()} == {
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


def test_ids_are_unique_and_nothing_is_loaded_or_run(study_page):
    page = Page(study_page)
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


def test_the_same_records_give_the_same_page(run, study_page):
    for first in (study_page, ez.write_report(run)):
        before = first.read_bytes()
        assert ez.write_report(first.parent).read_bytes() == before


def test_a_run_shows_masks_layers_training_and_recipe(run):
    page = Page(ez.write_report(run))
    assert [" ".join(name.split()[:3]) for name in page.pictures] == [
        "0.weight: the mask,", "density per layer", "The validation error",
        "magnitudes of the",
    ]  # fmt: skip
    assert "4 times fewer weights (36 of 144)" in page.text
    assert "Weigh it: 4 times fewer weights, on test data" in page.text
    assert "Budget" not in page.text
    assert "[train.penalty.l0]" in page.text
    assert "l0 0.01, l2 1e-05" in page.text


def test_a_run_under_a_budget_shows_its_rounds(run):
    outcome = {"stage": "finetune", "score": 0.9, "loss": 0.1}
    rounds = [
        {**outcome, "round": 1, "nonzeros": 72, "used": 0.25, "within": True},
        {**outcome, "round": 2, "nonzeros": 18, "used": 2.5, "within": False},
    ]
    told = json.loads((run / "record.json").read_text())["recipe"]
    told["prune"] = {"budget": {"max_accuracy_drop": 1.0}}
    change(run, outcomes=rounds, recipe=told)
    page = Page(ez.write_report(run))
    assert "2 tried, 1 within the budget, 1 refused" in page.text
    assert re.search(r"1\s+72\s+2\.0x\s+0\.25 points\s+within the budget", page.text)
    assert re.search(r"2\s+18\s+8\.0x\s+2\.50 points\s+refused: 1\.50 points too much", page.text)


def test_a_run_shows_what_is_not_covered_what_lives_and_what_it_warns_of(run):
    change(
        run, parameters=10_899, parameters_left=1_060, parameter_ratio=10.28, living_nonzeros=29,
        inputs=784, inputs_left=[3, 77], warnings=["mind <this>", "and that"],
    )  # fmt: skip
    page = Page(ez.write_report(run))
    assert "10.3 times fewer parameters in all" in page.text
    assert re.search(r"all parameters\W+10,899\W+1,060\W+10\.3x", page.text)
    assert re.search(r"living nonzeros\W+29", page.text)
    assert re.search(r"inputs left\W+2 of 784: 3, 77", page.text)
    assert page.html.count('<p class="warning">') == 2
    assert "mind <this>" in page.text
    change(run, inputs_left=list(range(100)), living_nonzeros=None, living_note="it is opaque")
    page = Page(ez.write_report(run))
    assert re.search(r"inputs left\W+100 of 784\W+[a-z]", page.text), "too many to list"
    assert "it is opaque" in page.text


LATER_KEYS = (
    "parameters", "parameters_left", "parameter_ratio", "living_nonzeros", "inputs", "inputs_left",
    "warnings",
)  # fmt: skip


@pytest.mark.slow
def test_records_from_before_these_figures_are_shown_with_what_they_tell(folder, run, tmp_path):
    for path in folder.glob("cells/*/record.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in record.items() if k not in LATER_KEYS}))
    page = Page(ez.write_report(run))
    # 652 bytes of float32 are 163 parameters, of which 108 are zero
    assert "4 times fewer weights (36 of 144), 2.96 times fewer parameters" in page.text
    assert 'class="warning"' not in page.html
    other = run.with_name(run.name.replace("0.75", "0.5"))
    page = Page(ez.write_report([folder, run, other], tmp_path / "all.html"))
    assert "fewer than 100" not in page.text
    ez.write_report(folder)
    assert "fewer than 100" not in (folder / "comparison.md").read_text()


def test_the_same_warning_of_many_runs_is_told_once(folder, run, study_page):
    text = Page(study_page).text
    assert text.count("train data has 60 examples") == 1
    assert re.search(r"train data has 60 examples[^(]*\(38 runs\)", text)  # 36 and two references
    change(run, warnings=["a loss of 0.365 against 0.154"])
    other = run.with_name(run.name.replace("0.75", "0.5"))
    change(other, warnings=["a loss of 1.25 against 1", "another"])
    text = Page(ez.write_report(folder)).text
    assert text.count("a loss of") == 1
    assert re.search(r"a loss of [\d.]+ against [\d.]+ \(2 runs\)", text)
    assert "another (1 run)" in text
    assert re.search(r"train data has 60 examples[^(]*\(36 runs\)", text)


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


@pytest.mark.parametrize(
    "line",
    [
        '{"stage": "train"',
        "[" * 3000,
        '"\\ud800"',
        '{"validation_score": NaN}',
        '{"penalty": 1e200}',
    ],
)
def test_metrics_that_cannot_be_read_are_told_of(line, run):
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    changed = line
    if line.endswith("}"):
        ((key, value),) = json.loads(line).items()
        changed = json.dumps({**json.loads(metrics[0]), key: value})
    (run / "metrics.jsonl").write_text("\n".join([*metrics, changed]))
    warnings = RunFolder.at(run).warnings
    assert RunFolder.at(run).metrics == ()
    assert "metrics.jsonl cannot be read, so its epochs are left out: " in warnings[-1]
    assert len(warnings[-1]) < 500


def test_a_layer_s_name_in_a_picture_is_plain_and_not_endless(run):
    record = json.loads((run / "record.json").read_text())
    record["layers"][0]["name"] = "\x1b[31m" + "x" * 500
    (run / "record.json").write_text(json.dumps(record))
    picture = layer_bars(RunFolder.at(run), name="a")
    assert picture is not None
    assert "\x1b" not in picture.svg
    assert "xxx…" in picture.svg
    assert "x" * 40 not in picture.svg


@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor(1.0), torch.zeros(0, 6), torch.zeros(16, 6, dtype=torch.int8),
        torch.zeros(3, 3), torch.zeros(16, 6).to(torch.float8_e5m2),
    ],
    ids=lambda w: f"{w.dtype} {tuple(w.shape)}",
)  # fmt: skip
def test_weights_that_are_not_the_record_s_have_no_picture(weights, run):
    save_file({"0.weight": weights}, run / "model.safetensors")
    assert first_layer(RunFolder.at(run), name="a") is None


def test_a_run_that_failed_shows_its_error(run):
    keep_only(run)
    change(run, status="failed", error="train_loss became nan in epoch 3")
    (run / "metrics.jsonl").unlink()
    page = Page(ez.write_report(run))
    assert "train_loss became nan in epoch 3" in page.text
    assert page.pictures == []


@pytest.mark.parametrize(
    ("recipe", "shown"),
    [
        ({"train": 5, "model": [], "data": "x"}, "out of disk"),
        (
            {"train": {"penalty": {"l0": 7, "l1": {"strength": "much"}}}},
            "l0 \N{EN DASH}, l1 \N{EN DASH}",
        ),
        ({"train": {"penalty": {"l0": {"strength": 0.5}}, "gates": 3}}, "l0 0.5"),
    ],
)
def test_a_recipe_in_a_record_that_makes_no_sense_is_left_out(recipe, shown, tmp_path):
    run = hand_made.run(tmp_path, "one", status="failed", error="out of disk", recipe=recipe)
    (run / "metrics.jsonl").unlink()
    assert shown in Page(ez.write_report(run)).text


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


@pytest.fixture
def opened(monkeypatch) -> Counter[Path]:
    """Which files of runs were read, and how often."""
    counts: Counter[Path] = Counter()
    opening = Path.open

    def counting(self: Path, *arguments, **options):
        if self.name in ("record.json", "metrics.jsonl", "study.toml"):
            counts[self] += 1
        return opening(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", counting)
    return counts


def test_each_record_and_each_metrics_file_is_read_once(folder, tmp_path, opened):
    ez.write_report(folder)
    runs = list(folder.glob("cells/*"))
    expected = {run / name: 1 for run in runs for name in ("record.json", "metrics.jsonl")}
    assert opened == expected | {folder / "study.toml": 1}
    opened.clear()
    ez.write_report(runs[:2], tmp_path / "two.html")
    assert opened == {k: 1 for k in expected if k.parent in runs[:2]}


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
