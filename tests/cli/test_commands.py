"""The commands on a project of one's own: what they print, write and refuse to overwrite."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ellzero as ez
from small import blobs, right_answers

KEYS = {
    "nonzero_ratio",
    "file_ratio",
    "reference_error_percent",
    "test_error_percent",
    "validation_score",
    "seconds",
    "folder",
}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def test_run_prints_one_json_document_with_the_numbers_that_prove_it(ellzero, project):
    done = ellzero("run", "mine.toml", "--json")
    assert (done.code, done.err) == (0, "")
    document = json.loads(done.out)
    assert set(document) >= KEYS
    folder = Path(document["folder"])
    assert folder == Path("runs/mine-1")
    found = document.pop("verdict")
    assert json.loads((folder / "record.json").read_text()) == document
    assert found["level"] == "weigh"
    assert "noise of 30 answers" in found["sentence"]
    model = ez.load(folder / "model.safetensors", network())
    nonzeros = sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim > 1)
    assert nonzeros == 36
    assert document["nonzero_ratio"] == 4.0
    wrong = 30 - right_answers(model, blobs(30, 3))
    assert document["test_error_percent"] == pytest.approx(100 * wrong / 30)
    wrong = 30 - right_answers(ez.load(folder / "reference.safetensors", network()), blobs(30, 3))
    assert document["reference_error_percent"] == pytest.approx(100 * wrong / 30)
    right = right_answers(model, blobs(45, 2))
    assert document["validation_score"] == pytest.approx(right / 45)
    packed = (folder / "model.safetensors.gz").stat().st_size
    assert document["file_ratio"] == pytest.approx(4 * (144 + 19) / packed)


def test_a_run_under_a_budget_prints_what_was_used_and_its_rounds(ellzero, project):
    sets = ("prune={budget={max_accuracy_drop=20}, rounds=3}", "train.penalty.l0.strength=1e-3")
    done = ellzero("run", "mine.toml", *(part for key in sets for part in ("--set", key)))
    assert (done.code, done.err) == (0, "")
    record = json.loads((project / "runs/mine-1/record.json").read_text())
    dense, small = (record[who]["validation"]["score"] for who in ("reference", "compressed"))
    used = 100 * (dense - small)
    assert re.search(r"allowed\W+20\.00 points", done.out)
    assert re.search(rf"used\W+{used:.2f} points", done.out)
    assert re.search(rf"left\W+{20 - used:.2f} points", done.out)
    rounds = [outcome for outcome in record["outcomes"] if outcome["stage"] == "finetune"]
    refused = sum(not outcome["within"] for outcome in rounds)
    assert f"{len(rounds)} tried, {len(rounds) - refused} within the budget" in done.out
    assert done.out.count("refused:") == refused


def test_run_prints_tables_for_people(ellzero, project):
    done = ellzero("run", "mine.toml")
    assert (done.code, done.err) == (0, "")
    for text in ("reference", "compressed", "test error", "4.0x", "25.00 %", "runs/mine-1"):
        assert text in done.out
    record = json.loads((project / "runs/mine-1/record.json").read_text())
    # 36 of 144 weights are left, and the 19 biases
    assert re.search(r"all parameters\W+163\W+55\W+33\.74 %", done.out)
    assert re.search(r"parameter ratio\W+1x\W+3\.0x", done.out)
    assert "score" not in done.out, "error stands beside error"
    assert "\nWeigh it: 4 times fewer weights, on test data " in done.out
    assert "Budget" not in done.out
    assert re.search(rf"living nonzeros\W+{record['living_nonzeros']}\b", done.out)
    assert re.search(rf"inputs left\W+{len(record['inputs_left'])} of 6\b", done.out)
    assert record["warnings"]
    for text in record["warnings"]:
        assert f"warning: {text}\n" in done.out


def test_runs_are_numbered(ellzero, project):
    folders = [json.loads(ellzero("run", "mine.toml", "--json").out)["folder"] for _ in range(2)]
    assert folders == ["runs/mine-1", "runs/mine-2"]
    # the same recipe and seed: the same network
    first, second = (Path(f, "model.safetensors").read_bytes() for f in folders)
    assert first == second


def test_set_and_seed_override_the_recipe(ellzero, project):
    options = ("--set", "prune.sparsity=0.5", "--set", "train.epochs=1", "--seed", "3")
    document = json.loads(ellzero("run", "mine.toml", "--json", *options).out)
    assert document["nonzeros"] == 72
    told = ez.Recipe.read(Path(document["folder"]) / "recipe.toml")
    assert (told.prune.sparsity, told.train.epochs, told.seed) == (0.5, 1, 3)


def test_a_resolved_recipe_gives_the_same_run(ellzero, project):
    first = Path(json.loads(ellzero("run", "mine.toml", "--json").out)["folder"])
    again = ellzero("run", first / "recipe.toml", "--output", "again", "--json")
    assert json.loads(again.out)["folder"] == "again"
    model = (project / "again" / "model.safetensors").read_bytes()
    assert model == (first / "model.safetensors").read_bytes()


def test_without_a_test_part_there_is_no_test_error(ellzero, project):
    document = json.loads(ellzero("run", "mine.toml", "--json", "--set", "data.test=false").out)
    assert document["test_error_percent"] is None
    assert "test" not in document["compressed"]
    assert ellzero("run", "mine.toml", "--set", "data.test=false").code == 0


@pytest.fixture
def run_folder(ellzero, project) -> Path:
    assert ellzero("run", "mine.toml", "--output", "made").code == 0
    return project / "made"


@pytest.mark.parametrize("name", ["", "model.safetensors", "reference.safetensors"])
@pytest.mark.parametrize(("part", "count", "seed"), [("test", 30, 3), ("", 45, 2)])
def test_evaluate(name, part, count, seed, run_folder, ellzero):
    options = ("--part", part) if part else ()  # the test part on request only
    done = ellzero("evaluate", run_folder / name, *options, "--json")
    document = json.loads(done.out)
    model = ez.load(run_folder / (name or "model.safetensors"), network())
    x, y = blobs(count, seed)
    right = right_answers(model, (x, y))
    assert document["score"] == pytest.approx(right / count)
    assert document["error_percent"] == pytest.approx(100 - 100 * right / count)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y).item()
    assert document["loss"] == pytest.approx(loss, rel=1e-5)
    assert document["part"] == (part or "validation")


def test_evaluate_on_other_data_and_as_a_table(run_folder, ellzero, project):
    (project / "broken.py").write_text(
        "import torch, ellzero as ez\n"
        "def ones():\n"
        "    x, y = torch.ones(4, 6), torch.zeros(4, dtype=torch.long)\n"
        "    return ez.Data((x, y), (x, y), (x, y))\n"
    )
    document = json.loads(ellzero("evaluate", run_folder, "--data", "broken:ones", "--json").out)
    assert document["data"] == "broken:ones"
    assert document["score"] in (0.0, 1.0)
    done = ellzero("evaluate", run_folder)
    assert done.code == 0
    assert f"{run_folder / 'model.safetensors'} on own_project:data, validation\n" in done.out


def test_inspect(run_folder, ellzero):
    document = json.loads(ellzero("inspect", run_folder, "--json").out)
    assert (document["weights"], document["nonzeros"], document["nonzero_ratio"]) == (144, 36, 4.0)
    assert (document["parameters"], document["parameters_left"]) == (163, 55)
    assert document["parameter_ratio"] == pytest.approx(163 / 55)
    model = ez.load(run_folder / "model.safetensors", network())
    for row, name in zip(document["layers"], ("0.weight", "2.weight"), strict=True):
        weight = model.get_parameter(name)
        assert (row["shape"], row["nonzeros"]) == (list(weight.shape), int((weight != 0).sum()))
    dense = json.loads(ellzero("inspect", run_folder / "reference.safetensors", "--json").out)
    assert (dense["nonzeros"], dense["nonzero_ratio"]) == (144, 1.0)
    done = ellzero("inspect", run_folder)
    assert done.code == 0
    assert "25.00 %" in done.out
    assert "0.weight" in done.out
    assert re.search(r"all parameters\W+163\W+55\W+33\.74 %", done.out)


def test_a_run_is_resumed_from_its_folder(ellzero, project, monkeypatch):
    expected = ellzero("run", "mine.toml", "--output", "whole")
    assert expected.code == 0
    calls = 0

    def interrupting(folder, history):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("ellzero.training.run.write_metrics", interrupting)
    done = ellzero("run", "mine.toml", "--output", "part")
    assert done.code == 130
    assert "part/checkpoint.safetensors is saved" in done.says()
    assert "ellzero run --resume part" in done.says()
    monkeypatch.undo()
    monkeypatch.chdir(project)
    document = json.loads(ellzero("run", "--resume", "part", "--json").out)
    assert document["status"] == "done"
    for name in ("model.safetensors", "reference.safetensors"):
        assert (project / "part" / name).read_bytes() == (project / "whole" / name).read_bytes()
