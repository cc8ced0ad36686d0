"""A cell's folder in two places: what changes in one comes to be in the other."""

import json
import tomllib

import pytest

from ellzero.errors import InputError
from ellzero.run_folder import CHECKPOINT, METRICS, MODEL, PREVIOUS, RECIPE, RECORD
from ellzero.study import mirror as mirror_module
from ellzero.study.mirror import Changes, Mirror, contents


@pytest.fixture
def places(tmp_path):
    """Where a cell is run, and its home."""
    there, home = tmp_path / "there", tmp_path / "home"
    there.mkdir()
    home.mkdir()
    return there, home


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_changed_and_removed_comes_home(places):
    there, home = places
    mirror = Mirror(there, {})
    (there / METRICS).write_bytes(b"1\n")
    (there / CHECKPOINT).write_bytes(b"a")
    mirror.changes().apply(home)
    assert files(home) == {METRICS: b"1\n", CHECKPOINT: b"a"}
    (there / METRICS).write_bytes(b"1\n2\n")
    mirror.changes().apply(home)
    assert files(home) == {METRICS: b"1\n2\n", CHECKPOINT: b"a"}
    (there / CHECKPOINT).unlink()
    (there / MODEL).write_bytes(b"m")
    changes = mirror.changes()
    assert changes == Changes({MODEL: b"m"}, (CHECKPOINT,))  # the metrics are not sent again
    changes.apply(home)
    assert files(home) == {METRICS: b"1\n2\n", MODEL: b"m"}


def test_a_file_that_takes_the_place_of_another_of_its_size_is_sent(places):
    there, _ = places
    (there / CHECKPOINT).write_bytes(b"a")
    mirror = Mirror(there, {})
    assert not mirror.changes()  # it came with the order
    (there / "new").write_bytes(b"b")
    (there / "new").replace(there / CHECKPOINT)
    assert mirror.changes().written == {CHECKPOINT: b"b"}


def test_a_file_that_is_gone_before_it_is_read_is_no_error(places, monkeypatch):
    there, _ = places
    mirror = Mirror(there, {})
    monkeypatch.setattr(mirror_module, "_stamp", lambda path: (1, 1, 1))
    assert mirror.changes() == Changes({}, ())


def test_paths_are_those_at_home(places):
    there, home = places
    inside, outside = str(there), str(home)
    mirror = Mirror(there, {inside: outside, "/tmp/0.safetensors": "dense.safetensors"})
    (there / RECORD).write_text(
        json.dumps({"folder": inside, "note": f"in {inside}", "of": [inside]})
    )
    (there / RECIPE).write_text('reference.file = "/tmp/0.safetensors"\nname = "a"\n')
    mirror.changes().apply(home)
    record = json.loads((home / RECORD).read_text())
    assert record == {"folder": outside, "note": f"in {inside}", "of": [outside]}
    recipe = tomllib.loads((home / RECIPE).read_text())
    assert recipe == {"reference": {"file": "dense.safetensors"}, "name": "a"}


def test_a_record_that_says_done_comes_after_what_it_tells_of(places, monkeypatch):
    _, home = places
    order = []
    monkeypatch.setattr(mirror_module, "write_atomically", lambda path, _: order.append(path.name))
    Changes({RECORD: b"{}", MODEL: b"m", METRICS: b""}).apply(home)
    assert order == [MODEL, METRICS, RECORD]


def test_the_checkpoint_before_goes_with_the_last_one(places):
    _, home = places
    (home / CHECKPOINT).write_bytes(b"b")
    (home / PREVIOUS).write_bytes(b"a")
    assert contents(home) == {CHECKPOINT: b"b"}
    Changes({}, (CHECKPOINT,)).apply(home)
    assert files(home) == {}


def test_a_checkpoint_is_not_gone_while_the_next_one_is_written(places):
    there, home = places
    mirror = Mirror(there, {})
    (there / CHECKPOINT).write_bytes(b"a")
    mirror.changes().apply(home)
    (there / CHECKPOINT).replace(there / PREVIOUS)
    assert not mirror.changes()
    assert contents(there) == {CHECKPOINT: b"a"}
    (there / CHECKPOINT).write_bytes(b"bb")
    (there / CHECKPOINT).replace(there / PREVIOUS)  # before anybody looked
    mirror.changes().apply(home)
    assert files(home) == {CHECKPOINT: b"bb"}
    (there / PREVIOUS).unlink()
    mirror.changes().apply(home)
    assert files(home) == {}


@pytest.mark.parametrize("name", ["../record.json", "/etc/passwd", ".lock", "net.c"])
def test_files_that_no_run_writes_are_refused(places, name):
    _, home = places
    with pytest.raises(InputError, match="which no run writes"):
        Changes({name: b""}).apply(home)
    with pytest.raises(InputError, match="which no run writes"):
        Changes({}, (name,)).apply(home)
    assert files(home) == {}
