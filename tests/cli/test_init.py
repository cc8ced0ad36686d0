"""`ellzero init`: what it writes runs as it is, fits the user's data, and overwrites nothing."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import ellzero as ez

SHORT = [
    text for key in ("reference", "train", "finetune") for text in ("--set", f"{key}.epochs=1")
]


@pytest.fixture(autouse=True)
def forget_module():
    yield
    sys.modules.pop("my_project", None)


def table(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def run_in(folder: Path, ellzero, monkeypatch, *options: str) -> dict:
    monkeypatch.chdir(folder)
    done = ellzero("run", "recipe.toml", "--json", *options)
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.parametrize(("kind", "outputs"), [("network", 3), ("images", 10), ("table", 3)])
def test_what_is_written_runs_as_it_is(kind, outputs, ellzero, project, monkeypatch):
    written = json.loads(ellzero("init", "new", "--for", kind, "--json").out)
    assert written["for"] == kind
    assert {*map(Path, written["files"])} == {*Path("new").iterdir()}
    record = run_in(project / "new", ellzero, monkeypatch, *SHORT)
    last = record["layers"][-1]
    assert last["shape"][0] == outputs
    assert record["weights"] / record["nonzeros"] == pytest.approx(10, rel=0.01)
    assert record["living_nonzeros"] is not None  # it can be traced, so it can be shipped
    assert not [text for text in record["warnings"] if "fewer than" in text]


@pytest.mark.slow
def test_the_table_under_a_budget_needs_the_columns_that_the_state_hangs_on(
    ellzero, project, monkeypatch
):
    assert ellzero("init", "new", "--for", "table").code == 0
    recipe = project / "new" / "recipe.toml"
    lines = recipe.read_text().splitlines()
    # as the comment in the file says
    kept = [line.removeprefix("# ") if "budget = " in line else line for line in lines
            if not line.startswith(("sparsity", "gradual"))]  # fmt: skip
    recipe.write_text("\n".join(kept))
    record = run_in(project / "new", ellzero, monkeypatch)
    assert record["test_error_percent"] < 10
    assert record["nonzero_ratio"] > 10
    # three categories of the maker, then temperature, vibration and hours; never all of the noise
    assert {3, 4, 5} <= {*record["inputs_left"]}
    assert len(record["inputs_left"]) < record["inputs"] == 14


def test_a_table_of_ones_own(ellzero, project, monkeypatch):
    rows = [f"{i % 7}.5;{['red', 'white'][i % 2]};n{i};{3 * (i % 2)}" for i in range(60)]
    rows = [row.replace(";red;", ";;") for row in rows[:20]] + rows[20:]  # a category, too
    table(project / "wine.csv", "acid;colour;number;quality", rows)
    done = ellzero("init", "deep/wine", "--data", "wine.csv")
    assert done.code == 0
    assert "the column to predict is 'quality' (the last column;" in done.out
    assert "left out: 'number'" in done.out
    told = ez.Recipe.read("deep/wine/recipe.toml")
    assert told.data is not None
    assert told.data.model_dump() == {
        "name": "csv",
        "path": "../../wine.csv",
        "target": "quality",
        "task": "classification",
        "delimiter": ";",
        "categorical": ["colour"],
        "exclude": ["number"],
    }
    assert told.model is not None
    # acid, and three colours, one of them empty; two qualities
    assert told.model.options == {"inputs": 4, "outputs": 2}
    record = run_in(project / "deep/wine", ellzero, monkeypatch, *SHORT)
    assert record["layers"][0]["shape"] == [64, 4]


@pytest.mark.parametrize(
    ("cells", "task", "outputs"),
    [
        ([f"{i % 20}" for i in range(60)], "classification", 20),
        ([f"{i % 21}" for i in range(63)], "regression", 1),
        ([f"{i % 5}.5" for i in range(60)], "regression", 1),
        (["ab"[i % 2] for i in range(60)], None, 2),
    ],
)
def test_the_task_of_a_table(cells, task, outputs, ellzero, project):
    rows = [f"{cell},{index / 7:.3f}" for index, cell in enumerate(cells)]
    table(project / "some.csv", "goal,x", rows)
    assert ellzero("init", "new", "--data", "some.csv", "--target", "goal").code == 0
    told = ez.Recipe.read("new/recipe.toml")
    assert told.data is not None
    assert told.model is not None
    assert told.data.options.get("task") == task
    assert told.model.options == {"inputs": 1, "outputs": outputs}
    # under a budget an accuracy may fall, where there is one; a loss may rise
    budget = "max_loss_increase" if task == "regression" else "max_accuracy_drop"
    assert f"# budget = {{ {budget} = " in Path("new/recipe.toml").read_text()


@pytest.mark.parametrize(
    ("shapes", "mode", "expected"),
    [
        ([(20, 12)], "L", {"size": [12, 20], "grey": True}),
        ([(20, 12)], "RGB", {"size": [12, 20]}),
        ([(20, 12), (12, 20)], "RGB", {"size": [64, 64]}),
        ([(90, 70)], "RGB", {"size": [64, 64]}),
    ],
)
def test_images_of_ones_own(shapes, mode, expected, ellzero, project):
    for name in ("cat", "dog"):
        (project / "pets" / name).mkdir(parents=True)
        for number in range(10):
            shape = shapes[number % len(shapes)]
            Image.new(mode, shape, number).save(project / f"pets/{name}/{number}.png")
    done = ellzero("init", "new", "--data", project / "pets")
    assert done.code == 0
    assert "20 images of 2 classes (cat, dog)" in done.out
    told = ez.Recipe.read("new/recipe.toml")
    assert told.data is not None
    assert told.model is not None
    assert told.data.options == {"path": str(project / "pets"), **expected}
    channels = 1 if mode == "L" else 3
    height, width = expected["size"]
    assert told.model.options == {
        "channels": channels, "height": height, "width": width, "classes": 2
    }  # fmt: skip
    network = runpy.run_path("new/my_project.py")["network"]
    outputs = network(**told.model.options)(torch.zeros(2, channels, height, width))
    assert outputs.shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--data", "none.csv"), "none.csv is no file"),
        (("--data", "mine.csv", "--target", "gaol"), "no column 'gaol'; did you mean goal?"),
        (("--data", "mine.csv", "--for", "images"), "mine.csv is no folder, .zip"),
        (("--data", "mine.csv", "--for", "network"), "--for network reads no data"),
        (("--target", "goal", "--for", "table"), "give the table with --data"),
        (("--target", "goal", "--for", "images"), "--target names a column of a table"),
        (("--data", "empty"), "empty has no images"),
        (("--data", "broken.csv"), "broken.csv, row 3 has 1 cells; expected 2"),
        (("--for", "tabel"), 'Did you mean "table"?'),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    arguments, expected, ellzero, project
):
    table(project / "mine.csv", "x,goal", [f"{i},{'ab'[i % 2]}" for i in range(40)])
    table(project / "broken.csv", "x,goal", ["1,a", "2"])
    (project / "empty").mkdir()
    assert expected in ellzero("init", "new", *arguments).says()
    assert not (project / "new").exists()


def test_nothing_is_overwritten(ellzero, project):
    precious = project / "recipe.toml"
    precious.write_text("precious")
    before = {*project.iterdir()}
    assert "has recipe.toml already, and nothing is overwritten" in ellzero("init").says()
    assert precious.read_text() == "precious"
    assert {*project.iterdir()} == before
    assert "mine.toml is a file" in ellzero("init", "mine.toml").says()
    # beside files of other names it is written
    precious.rename(project / "other.toml")
    assert ellzero("init").code == 0
    names = {"own_project.py", "mine.toml", "other.toml", "recipe.toml", "my_project.py"}
    names.add("recipe.schema.json")
    assert {path.name for path in project.iterdir()} == names
