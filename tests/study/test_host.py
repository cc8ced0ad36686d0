"""A cell in a process elsewhere: its files go there with the order, and come back while it runs."""

import threading
import time
from pathlib import Path

import pytest

import ellzero as ez
from ellzero.factories import build_data, build_model
from ellzero.run_folder import CHECKPOINT, MODEL, REFERENCE, RunFolder
from ellzero.study.host import Ended, Host
from ellzero.study.mirror import contents
from own_study import RECIPE

TABLE = {**RECIPE, "threads": 1, "prune": {"sparsity": 0.5}, "checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def host(project):
    made = Host()
    yield made
    made.close()
    assert made._worker.wait(30)
    made._worker.release()
    made._log.close()


@pytest.fixture(scope="module")
def here(project):
    """The same cell, run in this process."""
    recipe = ez.Recipe.parse(TABLE)
    model, data = build_model(recipe.model, recipe.seed), build_data(recipe.data)
    ez.compress(model, data, recipe, folder="here", progress=False)
    return Path("here")


class Order(threading.Thread):
    """A cell that is run elsewhere, while this thread keeps its folder here up to date."""

    def __init__(self, host: Host, folder: Path, networks: tuple[str, ...] = (), **changes) -> None:
        super().__init__()
        self._host, self._folder = host, folder
        folder.mkdir(exist_ok=True)
        recipe = ez.Recipe.parse({**TABLE, **changes})
        files = {name: Path(name).read_bytes() for name in networks}
        self._order = (str(folder), recipe.to_table(), contents(folder), files)
        self.ended = Ended(changes={})  # pyright: ignore[reportArgumentType]
        self.log = b""

    def run(self) -> None:
        running = threading.Thread(target=self._run)
        running.start()
        while running.is_alive():
            changes = self._host.changes()
            self.log += changes.log
            changes.apply(self._folder)
        running.join()
        self.log += self.ended.changes.log
        self.ended.changes.apply(self._folder)

    def _run(self) -> None:
        self.ended = self._host.run(*self._order)


def run(host: Host, folder: str, **options) -> Order:
    order = Order(host, Path(folder), **options)
    order.run()
    return order


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_cell_comes_to_the_same_networks_as_here(host, here):
    order = run(host, "there")
    assert (order.ended.warning, order.ended.death) == (None, None)
    there = Path("there")
    cell = RunFolder.at(there)
    assert cell.finished is not None
    assert cell.finished.folder == there
    for name in (MODEL, REFERENCE):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    assert [m.train_loss for m in cell.metrics] == [
        m.train_loss for m in RunFolder.at(here).metrics
    ]
    assert {path.name for path in there.iterdir()} == {path.name for path in here.iterdir()}


def test_networks_that_it_starts_from_go_along_and_keep_their_paths(host, here):
    reference = {"file": f"{here}/{REFERENCE}"}
    train = {**TABLE["train"], "start": "initial"}  # as it does where the reference is trained
    order = run(host, "based", networks=(reference["file"],), reference=reference, train=train)
    assert order.ended.death is None
    table = ez.Recipe.read(Path("based/recipe.toml")).to_table()
    assert table["reference"]["file"] == reference["file"]
    assert Path("based", MODEL).read_bytes() == (here / MODEL).read_bytes()


def test_a_cell_whose_process_dies_goes_on_from_the_checkpoint_that_came(host):
    folder = Path("killed")
    order = Order(host, folder, train={**TABLE["train"], "epochs": 500})
    order.start()
    until(lambda: (folder / CHECKPOINT).exists() and len(RunFolder.at(folder).metrics) > 5)
    host.kill("it was told to")
    order.join(60)
    assert order.ended.death == "it was told to"
    before = RunFolder.at(folder).metrics
    assert before
    order = Order(host, folder, train={**TABLE["train"], "epochs": 500})
    order.start()
    until(lambda: len(RunFolder.at(folder).metrics) > len(before))
    host.kill("that is enough")
    order.join(60)
    # one that had begun anew would have measured its epochs again
    assert [m.seconds for m in RunFolder.at(folder).metrics][:5] == [m.seconds for m in before][:5]


def test_a_failure_and_what_was_printed_come_home(host):
    order = run(host, "failed", model={"name": "own_project:network", "wings": 2})
    assert (order.ended.warning, order.ended.death) == (None, None)
    cell = RunFolder.at(Path("failed"))
    assert cell.status == "failed"
    assert "wings" in str(cell.error)
    assert b"Traceback" in order.log
    assert b"wings" in order.log
