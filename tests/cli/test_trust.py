"""Folders of strangers: their recipes run no code unless they are trusted."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ellzero as ez
import hand_made
from ellzero.data import DATA_SETS
from ellzero.networks import NETWORKS
from small import mlp

HOSTILE = """
from pathlib import Path
Path("imported").touch()
from ellzero.penalties import L1
from ellzero.regularizers import HardConcrete as Gates
from own_project import network, data
class Pull(L1):
    pass
"""
OWN = {"model": "own_project:network", "data": "own_project:data"}


@pytest.fixture
def theirs(project: Path) -> Iterator[Path]:
    """A run's folder that came from elsewhere; its network is whole."""
    (project / "hostile.py").write_text(HOSTILE)
    folder = project / "theirs"
    folder.mkdir()
    ez.save(mlp(), folder / "model.safetensors", metadata={"input_shape": [6]})
    counted = {"zeros": 0, "smallest": -2, "per_decade": 1, "counts": [50, 50]}
    record = hand_made.table(trained={"magnitudes": counted})
    (folder / "record.json").write_text(json.dumps(record))
    yield folder
    sys.modules.pop("hostile", None)


def tell(folder: Path, *more: str, **keys: str) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    text = "\n".join([*lines, "prune.sparsity = 0.5", "device = 'cpu'", *more])
    (folder / "recipe.toml").write_text(text)


PENALTY = 'train.penalty."hostile:Pull" = {strength = 1e-4, form = "gradient"}'
GATES = 'train.gates."hostile:Gates" = {strength = 1e-4}'
OPTIMIZER = 'train.optimizer = "hostile:Descent"'
COMMANDS = {
    "inspect": ("inspect", "theirs"),
    "evaluate": ("evaluate", "theirs"),
    "export": ("export", "theirs", "--ellz", "net.ellz"),
    "bench": ("bench", "theirs"),
    "report": ("report", "theirs"),
    "run": ("run", "--resume", "theirs"),
}


def use(name: str, ellzero, theirs: Path, *options: str):
    if name == "run":
        (theirs / "record.json").write_text('{"format": 1, "status": "interrupted"}')
        (theirs / "model.safetensors").unlink()
    return ellzero(*COMMANDS[name], *options)


@pytest.mark.parametrize("name", ["inspect", "evaluate", "export", "bench", "run"])
def test_a_network_of_a_stranger_s_is_refused_in_one_sentence(name, ellzero, theirs, project):
    tell(theirs, model="hostile:network", data="mnist-5k")
    line = use(name, ellzero, theirs).says()
    assert "theirs/recipe.toml names the model 'hostile:network', whose code would be run" in line
    assert line.endswith("add --trust (in Python trust=True)")
    assert not (project / "imported").exists()
    assert not (project / "net.ellz").exists()


@pytest.mark.parametrize("name", ["inspect", "evaluate", "export", "bench", "run"])
def test_a_command_in_the_place_of_a_network_is_not_run(
    name, ellzero, theirs, project, monkeypatch
):
    monkeypatch.setitem(DATA_SETS, "mine", OWN["data"])
    tell(theirs, 'model = {name = "os:system", command = "touch ran"}', data="mine")
    assert (
        "names the model 'os:system', whose code would be run" in use(name, ellzero, theirs).says()
    )
    assert not (project / "ran").exists()


@pytest.mark.parametrize("name", ["evaluate", "run"])
def test_data_of_a_stranger_s_are_refused(name, ellzero, theirs, project):
    tell(theirs, data="hostile:data", model="lenet-300-100")
    assert "names the data 'hostile:data', whose" in use(name, ellzero, theirs).says()
    assert not (project / "imported").exists()


SHOWN = [
    ("inspect", GATES),
    *((name, OPTIMIZER) for name in ("inspect", "report", "run")),
    *((name, PENALTY) for name in ("inspect", "evaluate", "report", "run")),
]


@pytest.mark.parametrize(("name", "more"), SHOWN)
def test_penalties_gates_and_optimizers_of_a_stranger_s_are_shown_and_not_imported(
    name, more, ellzero, theirs, project, monkeypatch
):
    # a network that this process has registered is built in, so that the commands go on
    monkeypatch.setitem(NETWORKS, "mine", OWN["model"])
    monkeypatch.setitem(DATA_SETS, "mine", OWN["data"])
    tell(theirs, more, model="mine", data="mine")
    done = use(name, ellzero, theirs)
    assert not (project / "imported").exists()
    if name == "run":
        assert "'hostile:" in done.says()
    else:
        assert done.code == 0, done.err
    if name == "report" and more is PENALTY:
        assert "not imported (--trust)" in (theirs / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:.*has no checkpoint")
@pytest.mark.parametrize("name", ["inspect", "evaluate", "run"])
def test_with_trust_the_code_is_run(name, ellzero, theirs, project):
    tell(theirs, PENALTY, "train.epochs = 1", "reference.epochs = 1", "finetune.epochs = 0",
         model="hostile:network", data="hostile:data")  # fmt: skip
    done = use(name, ellzero, theirs, "--trust")
    assert done.code == 0, done.err
    assert (project / "imported").exists()


def test_what_this_user_began_in_its_folder_needs_no_trust(ellzero, project):
    assert ellzero("run", "mine.toml", "--output", "made").code == 0
    assert ellzero("evaluate", "made").code == 0
    assert ellzero("inspect", project / "made" / "reference.safetensors").code == 0
    # in another place, or with another recipe, it is not what was begun
    shutil.copytree("made", "copy")
    assert "--trust" in ellzero("inspect", "copy").says()
    assert ellzero("inspect", "copy", "--trust").code == 0
    recipe = project / "made" / "recipe.toml"
    recipe.write_text(recipe.read_text() + "# as if somebody else had been here\n")
    assert "--trust" in ellzero("inspect", "made").says()


def test_a_run_does_not_fail_where_nothing_can_be_remembered(ellzero, project, monkeypatch):
    (project / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "file"))
    assert ellzero("run", "mine.toml", "--output", "made").code == 0
    assert "--trust" in ellzero("inspect", "made").says()


def test_trust_is_for_folders(ellzero):
    assert "--trust goes with --resume" in ellzero("run", "mine.toml", "--trust").says()


def test_data_that_one_names_oneself_need_no_trust(ellzero, theirs, monkeypatch):
    monkeypatch.setitem(NETWORKS, "mine", OWN["model"])
    tell(theirs, model="mine", data="hostile:data")
    assert ellzero("evaluate", "theirs", "--data", OWN["data"]).code == 0


def test_a_module_of_the_same_name_in_another_project_is_not_taken(project, ellzero, monkeypatch):
    assert ellzero("run", "mine.toml", "--output", "made").code == 0
    other = project.parent / f"{project.name}-other"
    other.mkdir()
    (other / "own_project.py").write_text((project / "own_project.py").read_text())
    monkeypatch.chdir(other)
    monkeypatch.setattr(sys, "path", [str(other), *sys.path])
    sys.modules.pop("own_project")
    for command in ("evaluate", "inspect"):
        said = ellzero(command, project / "made").says()
        assert f"own {project / 'own_project.py'}; work in {project}" in said
    sys.modules.pop("own_project")
    monkeypatch.setattr(sys, "path", [str(project), *sys.path])
    assert ellzero("evaluate", project / "made").code == 0


def test_a_file_of_the_same_name_in_another_project_is_not_taken(ellzero, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "small", "small:mlp")  # of six inputs and three classes
    rows = [f"{n % 7},{n % 5},{n % 4},{n % 2},1,{n % 9},{'abc'[n % 3]}" for n in range(60)]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").write_text("\n".join(["u,v,w,x,y,z,kind", *rows]))
    table = {"name": "csv", "path": "rows.csv", "target": "kind"}
    recipe = {"model": "small", "data": table, "train": {"epochs": 1}, "prune": {"sparsity": 0.5}}
    (tmp_path / "one" / "mine.toml").write_text(ez.Recipe.parse(recipe).to_toml())
    monkeypatch.chdir(tmp_path / "one")
    assert ellzero("run", "mine.toml", "--output", "runs/made").code == 0
    assert ellzero("evaluate", "runs/made").code == 0
    monkeypatch.chdir(tmp_path / "one" / "runs")
    assert "rows.csv is no file" in ellzero("evaluate", "made").says()
    monkeypatch.chdir(tmp_path / "other")
    said = ellzero("evaluate", "../one/runs/made").says()
    assert f"own {tmp_path / 'one' / 'rows.csv'}; work in {tmp_path / 'one'}" in said
