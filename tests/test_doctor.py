"""`ellzero doctor`: what it says is there is there, and what is broken is a finding."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ellzero.data.mnist import MNIST
from ellzero.doctor import Finding, examine


def found(section: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine() if finding.section == section}


def test_data_sets_are_found_where_they_lie_and_the_others_say_how_to_get_them(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("ELLZERO_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mnist").mkdir()
    for name in MNIST.sha256:
        (tmp_path / "mnist" / name).write_bytes(gzip.compress(b""))
    data = found("data")
    assert (data["mnist"].state, data["mnist"].detail) == ("ok", str(tmp_path / "mnist"))
    assert (data["cifar-10"].state, data["spoken-digits"].state) == ("missing", "missing")
    assert "downloaded when it is first used" in data["cifar-10"].detail
    assert "put free-spoken-digit-dataset.zip from https://" in data["spoken-digits"].detail
    # a part of it is not it
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    assert found("data")["mnist"].state == "missing"


def test_tools_are_those_of_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler = tmp_path / "clang"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    tools = found("tools")
    assert tools["clang"] == Finding("tools", "clang", "ok", str(compiler))
    assert {name for name, finding in tools.items() if finding.state == "missing"} == {
        *("cc", "c++", "arm-none-eabi-gcc", "qemu-system-arm")
    }


def test_extras_are_read_from_the_metadata_of_the_package(tmp_path, monkeypatch):
    about = tmp_path / "ellzero-9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ellzero\nVersion: 9\n"
        "Requires-Dist: torch>=2\n"
        "Provides-Extra: some\nRequires-Dist: numpy>=1; extra == 'some'\n"
        "Provides-Extra: odd\nRequires-Dist: no-such-package[x]>=1; extra == 'odd'\n"
        "Provides-Extra: more\nRequires-Dist: ellzero[some,odd]; extra == 'more'\n"
        "Requires-Dist: rich; extra == 'more'\n"
        "Provides-Extra: dev\nRequires-Dist: also-not-there; extra == 'dev'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    extras = found("extras")
    how = "pip install 'ellzero[{}]' brings no-such-package"
    assert extras == {
        "some": Finding("extras", "some", "ok", "numpy"),
        "odd": Finding("extras", "odd", "missing", how.format("odd")),
        "more": Finding("extras", "more", "missing", how.format("more")),
    }
    assert {*found("versions")} == {"Python", "ellzero", "torch"}


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert found("folders")["here"].state == "ok"
    assert list(tmp_path.iterdir()) == []
    if not Path("/proc/self").is_dir():
        pytest.skip("no folder here that nobody can write to")
    monkeypatch.chdir("/proc/self")
    here = found("folders")["here"]
    assert here.state == "warning"
    assert "cannot be written to" in here.detail


def doctor(*options: str, broken: str = "") -> subprocess.CompletedProcess:
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({broken.split()}));"
        f"sys.argv[1:] = {('doctor', *options)}; runpy.run_module('ellzero', run_name='__main__')"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)


def test_the_command_without_any_extra():
    done = doctor(broken="mlxtend PIL pooch jinja2 matplotlib onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("ellzero works here\n")
    for section in ("versions", "devices", "data", "extras", "tools", "folders"):
        assert f"{section}\n  " in done.stdout


def test_the_command_says_what_is_broken():
    done = doctor("--json", broken="torch")
    assert (done.returncode, done.stderr) == (1, "")
    document = json.loads(done.stdout)
    assert document["works"] is False
    broken = [f["name"] for f in document["findings"] if f["state"] == "broken"]
    assert broken == ["torch"]
