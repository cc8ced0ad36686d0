"""Trust, from Python: what is read without importing, what is remembered, and how much."""

import json
import sys
from pathlib import Path

import pytest

import ellzero as ez
import hand_made
from ellzero.errors import InputError
from ellzero.trust import code_in, is_remembered, remember, shown_recipe
from ellzero.user_code import imported, importing
from small import classification, mlp, recipe

HOSTILE = "from pathlib import Path\nPath('imported').touch()\nfrom ellzero.penalties import L1\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The current folder, with a module in it whose import leaves a trace."""
    (tmp_path / "hostile.py").write_text(HOSTILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    sys.modules.pop("hostile", None)


TABLE = {
    "train": {"penalty": {"hostile:L1": [{"strength": 2.0, "form": "decoupled", "of": {"a": 1}}]}},
    "finetune": {"penalty": {"l2": {"strength": 1.0}, "hostile:L1": {"strength": 3.0}}},
    "prune": {"sparsity": 0.5},
}


def test_a_recipe_that_is_shown_keeps_names_and_tables(here):
    with importing(False):
        shown = ez.Recipe.parse(TABLE)
        again = ez.Recipe.parse(shown.to_table())
    assert not Path("imported").exists()
    assert again == shown
    written = shown.to_table()
    (table,) = TABLE["train"]["penalty"]["hostile:L1"]
    assert written["train"]["penalty"] == {"hostile:L1": table}
    assert set(written["finetune"]["penalty"]) == {"l2", "hostile:L1"}
    assert list(code_in(shown)) == ["penalty 'hostile:L1'"] * 2


def test_a_name_alone_cannot_be_trained_with(here):
    with importing(False):
        shown = ez.Recipe.parse({**TABLE, "device": "cpu", "finetune": {"epochs": 0}})
    with pytest.raises(InputError, match=r"penalty 'hostile:L1' is a name alone"):
        ez.compress(mlp(), classification(), shown)
    assert not Path("imported").exists()


@pytest.mark.parametrize(
    "optimizer", ["hostile:Sgd", {"name": "hostile:Sgd", "factor": 2}], ids=str
)
def test_an_optimizer_stays_a_name_as_well(optimizer, here):
    table = {"train": {"optimizer": optimizer}, "device": "cpu", "prune": {"sparsity": 0.5}}
    with importing(False):
        shown = ez.Recipe.parse(table)
        assert ez.Recipe.parse(shown.to_table()) == shown
    assert list(code_in(shown)) == ["optimizer 'hostile:Sgd'"] * 3
    with pytest.raises(InputError, match=r"optimizer 'hostile:Sgd' is a name alone"):
        ez.compress(mlp(), classification(), shown)
    assert not Path("imported").exists()


def test_nothing_at_all_is_imported_where_names_are_shown(here):
    with importing(False), pytest.raises(InputError, match="is not imported"):
        imported("model 'hostile:L1'", "hostile:L1")
    assert not Path("imported").exists()
    imported("model 'hostile:L1'", "hostile:L1")
    assert Path("imported").exists()


def stranger(folder: Path, **keys) -> Path:
    folder.mkdir()
    ez.save(mlp(), folder / "model.safetensors", metadata={"input_shape": [6]})
    (folder / "record.json").write_text(json.dumps(hand_made.table()))
    (folder / "recipe.toml").write_text(
        'prune.sparsity = 0.5\ntrain.penalty."hostile:L1" = {strength = 1}\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    )
    return folder


def test_open_run_says_how_to_trust(here):
    folder = stranger(here / "theirs", model="hostile:L1", data="hostile:L1")
    run = ez.open_run(folder)
    assert run.record is not None
    for use in (lambda: run.model, run.data, run.trace, lambda: run.masks):
        with pytest.raises(
            InputError, match=r"'hostile:L1', whose code .* \(in Python trust=True\)"
        ):
            use()
    assert not Path("imported").exists()
    with pytest.raises(InputError, match="model 'hostile:L1' needs strength"):
        ez.open_run(folder, trust=True).model  # noqa: B018
    assert Path("imported").exists()


def test_a_resumed_folder_is_compared_without_importing_what_it_names(here):
    folder = stranger(here / "theirs")
    (folder / "model.safetensors").unlink()
    (folder / "record.json").write_text('{"format": 1, "status": "interrupted"}')
    told = ez.Recipe.parse({"prune": {"sparsity": 0.5}})
    with pytest.raises(InputError, match=r"has train\.penalty\.hostile:L1\.strength = 1"):
        ez.compress(mlp(), classification(), told, folder=folder, resume=True)
    assert not Path("imported").exists()


STUDY = """
seeds = [0]
sparsities = [0.9]
methods.theirs = {train.penalty."hostile:L1" = {}, strengths = [1e-3]}
"""


def test_a_study_of_a_stranger_s_is_reported_without_importing(here):
    folder = here / "study"
    folder.mkdir()
    (folder / "study.toml").write_text(STUDY)
    cell = hand_made.run(folder, "theirs-0.001-seed0-sparsity-0.9", trained=1, tuned=1)
    (cell / "recipe.toml").write_text(
        'prune.sparsity = 0.9\ntrain.penalty."hostile:L1" = {strength = 1e-3}'
    )
    (row,) = ez.Results.read(folder).rows()
    assert (row.method, row.strength) == ("theirs", 1e-3)
    page = ez.write_report(folder).read_text()
    assert "hostile:L1" in page
    assert not Path("imported").exists()


def test_a_study_of_one_s_own_does_not_import_what_a_cell_names(here):
    study = hand_made.study(here / "study", seeds=[0])
    cell = hand_made.run(here / "study", "magnitude-seed0-sparsity-0.9")
    (cell / "recipe.toml").write_text(
        'prune.sparsity = 0.9\ntrain.penalty."hostile:L1" = {strength = 1e-3}'
    )
    with pytest.raises(InputError, match="was run by another recipe than this study's"):
        ez.compare(study, here / "study")
    assert not Path("imported").exists()


def test_only_runs_that_name_code_are_remembered_and_not_without_end(here, monkeypatch, tmp_path):
    state = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setattr("ellzero.trust.MOST_REMEMBERED", 4)
    folders = [stranger(here / f"run{number}") for number in range(6)]
    for number, folder in enumerate(folders):
        assert not is_remembered(folder)
        with importing(False):
            remember(folder, shown_recipe(folder, trust=False))
        assert is_remembered(folder)
        entries = sorted(state.rglob("*"), key=lambda path: path.stat().st_mtime)
        assert len([entry for entry in entries if entry.is_file()]) <= 4, number
    assert not is_remembered(folders[0])
    before = set(state.rglob("*"))
    remember(folders[0], recipe(model="lenet-300-100", data="mnist-5k"))
    assert set(state.rglob("*")) == before
