"""Records: folders with numbers, and what is read back."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import ellzero as ez
from ellzero.errors import InputError
from ellzero.record import layer_table, new_folder, read_record, take_folder, write_record
from small import convnet


def test_runs_are_numbered_and_gaps_are_filled(tmp_path):
    root = tmp_path / "runs"
    assert [new_folder(root, "demo").name for _ in range(3)] == ["demo-1", "demo-2", "demo-3"]
    assert new_folder(root, "other") == root / "other-1"
    (root / "demo-2").rmdir()
    assert new_folder(root, "demo").name == "demo-2"


def test_runs_that_start_at_once_get_a_folder_each(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path, "run"), range(40)))
    assert len(set(folders)) == 40


def test_a_folder_is_taken_with_its_parents(tmp_path):
    assert take_folder(tmp_path / "a" / "b").is_dir()
    assert take_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    with pytest.raises(InputError, match="in use"):
        take_folder(tmp_path / "a")


def test_a_record_is_read_back(tmp_path):
    write_record(tmp_path, {"format": 1, "status": "done"})
    assert read_record(tmp_path) == {"format": 1, "status": "done"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "holds no run"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        (json.dumps({"format": 2, "status": "done"}), "has format 2; .* install a newer one"),
        (json.dumps({"format": "x", "status": "done"}), "has format 'x'"),
        (json.dumps({"format": 1}), "is no record of a run"),
        ("[]", r"record\.json"),
    ],
)
def test_what_is_no_record(text, expected, tmp_path):
    if text is not None:
        (tmp_path / "record.json").write_text(text)
    with pytest.raises(InputError, match=expected):
        read_record(tmp_path)


def test_a_row_for_every_layer():
    model = convnet()
    ez.prune(model, nonzeros=99)
    rows = layer_table(ez.select(model))
    assert [(r["name"], r["kind"], r["shape"], r["weights"]) for r in rows] == [
        ("0.weight", "conv", [4, 2, 3, 3], 72),
        ("3.weight", "conv", [6, 4, 3, 3], 216),
        ("6.weight", "dense", [2, 54], 108),
    ]
    assert sum(r["nonzeros"] for r in rows) == 99
    assert [r["density"] for r in rows] == [r["nonzeros"] / r["weights"] for r in rows]
