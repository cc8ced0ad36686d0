"""Files that are missing, damaged or another's, and folders that are wrong: one line each."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import Command

SPOIL: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pickle": lambda file: file.write_bytes(b"\x80\x04noise" * 20),
    "another document": lambda file: file.write_text('{"a": [1, 2]}'),
}

RUN = (
    "--set", "reference.epochs=1", "--set", "train.epochs=1", "--set", "finetune.epochs=1",
)  # fmt: skip


@pytest.fixture
def made(ellzero: Command, project: Path) -> Command:
    """The command line beside a finished run and its packed file."""
    assert ellzero("run", "mine.toml", "--output", "made", *RUN).code == 0
    assert ellzero("export", "made", "--ellz", "net.ellz").code == 0
    return ellzero


def said(done) -> list[str]:
    """The lines of a command without warnings, which must be one at most, and none of Python's."""
    lines = [line for line in done.err.splitlines() if "warning: " not in line]
    assert len(lines) <= 1, done.err
    assert all(line.startswith("ellzero: ") for line in lines)
    assert bool(lines) == (done.code != 0)
    return lines


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export", "report"])
def test_every_file_of_a_run_spoilt(command, made):
    needed = {"record.json"} if command == "report" else {"model.safetensors", "recipe.toml"}
    options = {"export": ("--c", "bad-c"), "report": ()}.get(command, ())
    trusted = ("--trust", *options)
    for name in sorted(path.name for path in Path("made").iterdir() if path.is_file()):
        ways = SPOIL if name in needed else {"truncated": SPOIL["truncated"]}
        for how, spoil in ways.items():
            for folder in ("bad", "bad-c"):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree("made", "bad")
            spoil(Path("bad", name))
            lines = said(made(command, "bad", *trusted))
            if name in needed:
                assert lines, f"{name} {how}: {command} says nothing"
                assert "bad" in lines[0], f"{name} {how}: {lines[0]}"
            assert not lines or not Path("bad-c").exists()


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export", "bench"])
def test_a_packed_file_spoilt_in_every_way(command, made):
    options = {
        "evaluate": ("--data", "own_project:data"),
        "export": ("--c", "bad-c"),
    }.get(command, ())
    for how, spoil in SPOIL.items():
        file = Path(f"{how}.ellz")
        shutil.copy("net.ellz", file)
        spoil(file)
        (line,) = said(made(command, file, *options))
        assert str(file) in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("run made", "or go on with a run by `ellzero run --resume made`"),
        ("check made", "made is a folder, no recipe"),
        ("check net.ellz", "net.ellz is a packed file, no recipe"),
        ("run net.ellz", "net.ellz is a packed file, no recipe"),
        ("run made/model.safetensors", "made/model.safetensors is not TOML"),
        ("run mine.toml --output made", "go on with its run by `ellzero run --resume made`"),
        ("run mine.toml --output mine.toml", "cannot make output folder mine.toml: File exists"),
        ("run mine.toml --output mine.toml/deep", "mine.toml/deep: Not a directory"),
        ("run --resume mine.toml", "no folder mine.toml to resume"),
        ("evaluate made/record.json", "made/record.json is no model file"),
        ("evaluate made --data mnist --data-root none", "none', which is no folder"),
        ("evaluate made --data csv", "data 'csv' needs path and target; write data = {name ="),
        ("evaluate made --data own_project:narrow", "cannot take the data, train inputs of"),
        ("inspect .", "no model at model.safetensors"),
        ("report .", ". holds neither a run nor a study"),
        ("report mine.toml", "no folder mine.toml to report on"),
        ("compare made", "cannot read study made: Is a directory"),
        ("compare mine.toml", "unknown key"),
        ("export made --c mine.toml", "mine.toml is a file; expected a folder for C source"),
        ("export made --ellz made", "made is a folder; give the name of a file"),
        ("export made --ellz none/a.ellz", "cannot write none/a.ellz: there is no folder none"),
        ("export made --onnx net.ellz", "net.ellz is there already; give another name"),
    ],
)
def test_a_path_of_another_kind(arguments, expected, made, project):
    with (project / "own_project.py").open("a") as module:
        module.write('\ndef narrow():\n    return data("width")\n')
    sys.modules.pop("own_project", None)
    before = (project / "mine.toml").read_bytes(), (project / "net.ellz").read_bytes()
    assert expected in made(*arguments.split()).says()
    assert before == ((project / "mine.toml").read_bytes(), (project / "net.ellz").read_bytes())


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export", "bench"])
def test_a_module_is_not_found_from_another_folder_which_says_how(
    command, made, project, monkeypatch
):
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    monkeypatch.setattr(
        sys, "path", [p for p in sys.path if not (Path(p) / "own_project.py").is_file()]
    )
    sys.modules.pop("own_project", None)
    options = ("--c", "net-c") if command == "export" else ()
    line = made(command, "../made", *options).says()
    assert "there is no module 'own_project'" in line
    assert "work in the folder that holds own_project.py, or name it in PYTHONPATH" in line
    monkeypatch.syspath_prepend(project)  # as PYTHONPATH does
    assert command != "inspect" or made(command, "../made").code == 0


def test_a_regressions_export_names_an_option_that_there_is(made, project):
    with (project / "own_project.py").open("a") as module:
        module.write("""
def numbers():
    parts = [tuple(next(iter(p.batches(60, torch.device("cpu"))))) for p in data().parts]
    return ez.Data(*((x, x[:, :3]) for x, _ in parts))
""")
    sys.modules.pop("own_project", None)
    changed = ("--set", "data=own_project:numbers")
    assert made("run", "mine.toml", "--output", "numbers", *RUN, *changed).code == 0
    line = made("export", "numbers", "--ellz", "a.ellz", "--max-accuracy-drop", "1").says()
    assert "use max_loss_increase (--max-loss-increase)" in line
    done = made("export", "numbers", "--ellz", "a.ellz", "--max-loss-increase", "1")
    assert done.code == 0
    assert "bits: " in done.out
