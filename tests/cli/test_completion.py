"""Shell completion: the script that is installed completes commands and options in a real bash."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ellzero.cli.app import COMMANDS, app

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "ellzero"
    path.write_text(app.generate_completion(shell="bash"))
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words of a command line."""
    line = " ".join(f"'{word}'" for word in ("ellzero", *words))
    code = f"""
    source {script}
    complete -p ellzero || exit 1
    function_name=$(complete -p ellzero | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    COMP_WORDS=({line}); COMP_CWORD={len(words)}
    $function_name ellzero '{words[-1]}' '{("ellzero", *words)[-2]}'
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([str(BASH), "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in done.stdout.splitlines()[1:]}


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_bash_completes_commands_options_and_choices(script):
    assert {command.__name__ for command in COMMANDS} <= completed(script, "")
    assert completed(script, "ins") == {"inspect"}
    assert {"--set", "--data-root", "--json"} <= completed(script, "run", "--")
    assert completed(script, "init", "--for", "im") == {"images"}


def test_installing_it_writes_one_file_and_leaves_startup_files_alone(
    ellzero, project, monkeypatch
):
    home = project / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / ".bashrc").write_text("mine\n")
    done = ellzero("--install-completion", "--shell", "bash")
    assert (done.code, done.err) == (0, "")
    assert (home / ".bashrc").read_text() == "mine\n"
    (script,) = {path for path in home.rglob("*") if path.is_file()} - {home / ".bashrc"}
    assert str(script) in done.out
    assert script.read_text() == app.generate_completion(shell="bash")
