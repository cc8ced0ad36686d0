"""A user's mistakes: one line on standard error, an exit code, nothing lost, no traceback."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from small import mlp


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.wrong=nan", "wrong is nan; expected a finite number, or text in quotes"),
        ("data.wrong='nan'", "train inputs hold NaN or inf"),
        ("data.wrong=label", "labels run from 0 to 3; expected 0 to 2"),
        ("data.wrong=empty", "train data is empty"),
        ("data.wrong=width", "Sequential cannot take the data, train inputs of"),
        ("data.wrnog=x", "no option 'wrnog'; did you mean wrong?"),
        ("prune.sparsity=1", "prune.sparsity"),
        ("prune.sparsity=-0.5", "prune.sparsity"),
        ("prune.sparsity=most", "prune.sparsity"),
        ("prune.nonzeros=1000", "1000; only 144 weights are selected"),
        ("prune.exclude=['*']", "no weights selected"),
        ("prune.exclude=['fc*']", "pattern 'fc*' matches no parameter"),
        ("train.penalty.l0.strength=-1", "strength is -1"),
        ("train.epocs=3", "unknown key 'epocs'; did you mean epochs or"),
        ("model=lenet", "model 'lenet' is not built in"),
        ("model=nowhere:f", "there is no module 'nowhere'"),
        ("model=own_project:f", "own_project has no function 'f'"),
        ("data=own_project:network", "gave Sequential; expected ez.Data"),
        ("device=tpu9", "device 'tpu9' cannot be used"),
        ("reference.file=none.safetensors", "no model file at none.safetensors"),
        ("name=a/b", "name"),
        ("seed", "not of the form table.key=value"),
    ],
)
def test_a_mistake_in_recipe_model_or_data_is_one_line_and_leaves_no_folder(
    setting, expected, ellzero, project
):
    for output in ((), ("--output", "made")):
        line = ellzero("run", "mine.toml", "--set", setting, *output).says()
        assert expected in line
    assert not (project / "made").exists()
    assert not list(project.glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "none.toml"), "cannot read recipe none.toml: No such file"),
        (("run", "own_project.py"), "is not TOML"),
        (("run", "--resume", "none"), "no folder none"),
        (("run", "--resume", "."), "there is no recipe.toml in it"),
        (("run", "mine.toml", "--resume", "."), "--resume goes on with a run as it was begun"),
        (("run", "--resume", ".", "--seed", "1"), "--resume goes on with a run as it was begun"),
        (("evaluate", "none"), "no model at none"),
        (("evaluate", "."), "no model at model.safetensors"),
        (("inspect", "mine.toml"), "mine.toml is no model file"),
    ],
)
def test_a_path_that_is_not_what_it_should_be(arguments, expected, ellzero):
    assert expected in ellzero(*arguments).says()


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export", "bench"])
def test_a_run_that_has_no_network_yet(command, ellzero, project):
    Path("begun").mkdir()
    shutil.copy("mine.toml", "begun/recipe.toml")
    Path("begun/record.json").write_text('{"format": 1, "status": "interrupted"}')
    options = ("--ellz", "a.ellz") if command == "export" else ()
    line = ellzero(command, "begun", *options).says()
    assert "begun is interrupted and has no network yet; go on with `ellzero run --resume" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("rnu",),
        ("run", "--setting", "a=b"),
        ("run", "mine.toml", "other.toml"),
        ("run", "mine.toml", "--seed", "three"),
        ("run", "--output"),
        ("evaluate",),
        ("evaluate", ".", "--part", "most"),
        ("inspect", ".", "--jsno"),
    ],
)
def test_a_command_that_is_written_wrong(arguments, ellzero, project):
    line = ellzero(*arguments).says()
    assert "--help" in line
    assert not (project / "runs").exists()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_output_folder_in_use_is_left_as_it_is(what, ellzero, project):
    precious = project / "made" / "precious.txt"
    if what == "folder":
        precious.parent.mkdir()
    else:
        precious = project / "made"
    precious.write_text("precious")
    assert "output folder made" in ellzero("run", "mine.toml", "--output", "made").says()
    assert precious.read_text() == "precious"
    assert what == "file" or list(precious.parent.iterdir()) == [precious]


@pytest.mark.parametrize("taken", ["runs", "made"])
def test_a_place_that_cannot_be_written_to(taken, ellzero, project):
    (project / taken).write_text("a file where a folder should be")
    output = () if taken == "runs" else ("--output", "made/deep")
    assert taken in ellzero("run", "mine.toml", *output).says()


def test_a_finished_run_is_not_resumed(ellzero, project):
    assert ellzero("run", "mine.toml", "--output", "made").code == 0
    assert "is done; there is nothing to resume" in ellzero("run", "--resume", "made").says()


def test_a_loss_that_becomes_nan(ellzero, project):
    line = ellzero(
        "run", "mine.toml", "--set", "data.wrong=loss", "--set", "reference.penalty={}"
    ).says()
    assert "train_loss became nan in epoch 1 of reference (no penalty" in line
    assert "runs/mine-1/checkpoint.safetensors holds the last good state" in line
    assert (project / "runs/mine-1/checkpoint.safetensors").is_file()
    record = json.loads((project / "runs/mine-1/record.json").read_text())
    assert record["status"] == "failed"


def test_a_budget_that_nothing_satisfies(ellzero, project):
    settings = ("prune.budget={max_loss_increase=0}", "train.epochs=0", "finetune.epochs=0",
                "reference.epochs=30", "prune.rounds=1")  # fmt: skip
    options = [text for setting in settings for text in ("--set", setting)]
    line = ellzero("run", "mine.toml", *options).says()
    assert "none of 1 rounds stayed within the budget" in line
    assert "the best found lost" in line
    assert (project / "runs/mine-1/metrics.jsonl").is_file()


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_a_model_file_that_is_damaged_or_of_another_network_or_a_pickle(command, ellzero, project):
    assert ellzero("run", "mine.toml", "--output", "made").code == 0
    file = project / "made" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    assert "is truncated or not a safetensors file" in ellzero(command, "made").says()
    torch.save(mlp().state_dict(), file)
    assert "is a pickle" in ellzero(command, "made").says()
    file.write_bytes(content)
    recipe = project / "made" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"own_project:network"', '"lenet-300-100"'))
    assert ellzero(command, "made").code == 1
    shutil.move(recipe, project / "made" / "x")
    assert "there is no recipe.toml beside" in ellzero(command, "made").says()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import no_such_library\n", "ModuleNotFoundError"),
        ("def f():\n    1 / 0\n", "ZeroDivision"),
    ],
)
def test_the_users_own_traceback_is_shown_before_the_line(text, error, ellzero, project):
    (project / "broken.py").write_text(text)
    done = ellzero("run", "mine.toml", "--set", "model=broken:f")
    assert (done.code, done.out) == (1, "")
    *traceback, line = done.err.splitlines()
    assert traceback[0].startswith("Traceback")
    assert any("broken.py" in part and "line" in part for part in traceback)
    assert traceback[-1].startswith(error)
    assert line.startswith("ellzero: model 'broken:f'")
    assert not (project / "runs").exists()


@pytest.mark.parametrize("setting", ["model.dropout=2", "model.inputs=abc"])
def test_a_wrong_option_of_a_built_in_network(setting, ellzero, project):
    line = ellzero("run", "mine.toml", "--set", "model=lenet-300-100", "--set", setting).says()
    assert "model 'lenet-300-100' failed" in line


def test_a_loss_of_the_users_that_fails_is_shown_and_named(ellzero, project):
    with (project / "own_project.py").open("a") as module:
        module.write("""
def badly():
    (part,) = data().train.batches(1000, torch.device("cpu"))
    loss = lambda outputs, targets: outputs.no_such_thing
    return ez.Data(tuple(part), tuple(part), loss=loss, score="loss")
""")
    done = ellzero("run", "mine.toml", "--set", "data=own_project:badly")
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("ellzero: AttributeError: ")
