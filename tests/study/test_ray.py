"""Studies on a Ray cluster of two nodes on this machine, one of which is killed on purpose."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

import ellzero as ez
from ellzero.study import ray_cluster
from ellzero.study.results import Results
from own_study import a_study, assert_equal_networks, figures, records

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

SCRIPT = """
import sys
import ellzero as ez
try:
    ez.compare(ez.Study.read("study.toml"), sys.argv[1], cluster=ez.RayCluster(sys.argv[2]))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture(scope="module")
def study():
    methods = {"magnitude": {}, "l1": {"strengths": [1e-4, 1e-3]}}
    recipe = {"train": {"epochs": 80}, "checkpoint_seconds": 0}
    return a_study(recipe, seeds=[0, 1], sparsities=[0.5, 0.9], methods=methods)


@pytest.fixture(scope="module")
def here(project, study):
    """What the study comes to on this machine alone."""
    (project / "study.toml").write_text(study.to_toml())
    (project / "compare.py").write_text(SCRIPT)
    return ez.compare(study, "here", progress=False)


class Node:
    """A node with room for one cell; the first one, which has no address to join, is the head."""

    def __init__(self, address: str | None = None) -> None:
        role = ["--address", address] if address else ["--head", "--include-dashboard=false"]
        port = 0
        if address is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            role += ["--port", str(port)]
        self.address = address or f"127.0.0.1:{port}"
        command = [str(Path(sys.executable).parent / "ray"), "start", *role, "--num-cpus=1"]
        command += ["--node-ip-address=127.0.0.1", "--block"]  # it listens on the loopback alone
        # as a machine of its own would have; the path of a socket must be short
        self._files = Path(tempfile.mkdtemp(prefix="ray-"))
        command += ["--temp-dir", str(self._files)]
        log = self._files / "log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OWN_PAUSE": "0.1"},  # a cell takes longer than a node to begin
                start_new_session=True,
            )
        until(lambda: "now block" in log.read_text() or self._process.poll() is not None)
        assert self._process.poll() is None, log.read_text()

    def kill(self) -> None:
        """As if its machine lost power: every process that was started here."""
        for pid in reversed([self._process.pid, *descendants(self._process.pid)]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._files, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and these in turn."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


@pytest.fixture(scope="module")
def head(project):
    """A cluster of two nodes, by the first one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = [Node()]
        nodes.append(Node(nodes[0].address))
        yield nodes[0]
        for node in nodes:
            node.kill()


def running(folder: str) -> int:
    """How many cells are in work, as their records here say."""
    if not Path(folder, "study.toml").is_file():
        return 0
    return [run.status for run in Results.read(Path(folder)).runs].count("running")


def until(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@needs_ray
def test_a_node_that_dies_loses_its_cell_which_goes_on_elsewhere(head, study, here):
    third = Node(head.address)

    def strike():
        until(lambda: running("struck") == 3)  # one of them on the third node
        third.kill()

    striking = threading.Thread(target=strike, daemon=True)
    striking.start()
    with pytest.warns(ez.EllzeroWarning, match="was lost .*; it is tried once more"):
        results = ez.compare(
            study, "struck", workers=3, cluster=ez.RayCluster(head.address), progress=False
        )
    striking.join()
    assert results.failures() == []
    assert figures(results) == figures(here)
    assert_equal_networks(Path("struck"), here.folder)
    for name, record in records(Path("struck")).items():
        assert record["folder"] == f"struck/cells/{name}"
    assert "the user's module is imported" in Path("struck/workers.log").read_text()


@pytest.mark.slow
@needs_ray
def test_an_interrupted_study_saves_its_cells_and_goes_on_without_the_cluster(head, study, here):
    command = [sys.executable, "compare.py", "stopped", head.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: running("stopped") == 2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    stopped = [n for n, r in records(Path("stopped")).items() if r["status"] == "interrupted"]
    assert stopped
    assert not {"running", "failed"} & {r["status"] for r in records(Path("stopped")).values()}
    for name in stopped:
        cell = Path("stopped/cells", name)
        # one that had only just begun has neither: it starts from the beginning
        assert (cell / "checkpoint.safetensors").is_file() or not (cell / "metrics.jsonl").exists()
    results = ez.compare(study, "stopped", progress=False)
    assert figures(results) == figures(here)
    assert_equal_networks(Path("stopped"), here.folder)


@pytest.mark.slow
@needs_ray
def test_a_cell_that_fits_on_no_node_is_refused_unless_nodes_may_come(head, study):
    large = ez.RayCluster(head.address, cpus=64)
    with pytest.raises(ez.InputError, match=r"no node of the Ray cluster .* has room for a cell"):
        ez.compare(study, "large", cluster=large, progress=False)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nonsense"])
def test_an_address_without_a_cluster_is_one_sentence(project, study, address):
    with pytest.raises(ez.InputError, match=f"on the Ray cluster '{address}': ") as told:
        ez.compare(study, "nowhere", cluster=ez.RayCluster(address), progress=False)
    assert "\n" not in str(told.value)


def test_without_ray_the_extra_is_named(project, study, monkeypatch):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(ez.InputError, match=r"needs ray: pip install 'ellzero\[ray\]'"):
        ez.compare(study, "without", cluster=ez.RayCluster(), progress=False)


@pytest.mark.parametrize(
    "options", [{"cpus": 0}, {"cpus": "2"}, {"gpus": -1}, {"memory": 0}, {"cpus": float("nan")}]
)
def test_a_cell_takes_what_is_a_number(options):
    (name,) = options
    with pytest.raises(ez.InputError, match=f"{name} is .*; expected a number >= "):
        ez.RayCluster(**options)
