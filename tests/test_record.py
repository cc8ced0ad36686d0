"""Records: folders with numbers, what is read back, and what a run's weights are like."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import ellzero as ez
from cases import fill
from ellzero.errors import InputError
from ellzero.record import (
    WRITTEN,
    clear_folder,
    fail,
    layer_table,
    magnitudes,
    new_folder,
    read_record,
    take_folder,
    write_record,
)
from small import classification, convnet, mlp, recipe


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


# failures


def test_a_failure_is_written_into_the_record_there_is(tmp_path):
    write_record(tmp_path, {"format": 1, "status": "running", "recipe": {"name": "mine"}})
    fail(tmp_path, "it went wrong")
    assert read_record(tmp_path) == {
        "format": 1,
        "status": "failed",
        "recipe": {"name": "mine"},
        "error": "it went wrong",
    }


@pytest.mark.parametrize("before", [None, "nothing", "{ half a rec", "[]"])
def test_a_failure_without_a_record_makes_one(before, tmp_path):
    folder = tmp_path / "a" / "b"
    if before is not None:
        folder.mkdir(parents=True)
    if before not in (None, "nothing"):
        (folder / "record.json").write_text(before)
    fail(folder, "it went wrong")
    record = read_record(folder)
    assert (record["status"], record["error"]) == ("failed", "it went wrong")
    assert record["folder"] == str(folder)
    assert record["versions"]["torch"] == torch.__version__
    assert [path.name for path in folder.iterdir()] == ["record.json"]


def test_a_folder_is_cleared_of_what_a_run_left_and_of_nothing_else(tmp_path):
    data = classification()
    ez.compress(mlp(), data, recipe(), folder=tmp_path)
    (tmp_path / "checkpoint.safetensors").write_text("left by one that was killed")
    assert {path.name for path in tmp_path.iterdir()} == set(WRITTEN)
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "model").mkdir()
    clear_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "model"]
    clear_folder(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


# magnitudes


def histogram(*layers) -> dict:
    model = nn.Sequential(*(nn.Linear(len(w), 1, bias=False, dtype=w.dtype) for w in layers))
    for layer, w in zip(ez.select(model).values(), layers, strict=True):
        fill(layer, w)
    found = magnitudes(ez.select(model))
    assert sum(found["counts"]) + found["zeros"] == sum(len(w) for w in layers)
    assert json.loads(json.dumps(found)) == found
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_magnitudes_are_counted_in_tenths_of_decades(dtype):
    generator = torch.Generator().manual_seed(0)
    layers = []
    for count in (700, 300):
        logs = torch.rand(count, generator=generator, dtype=torch.float64) * 9.9 - 7.95
        signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
        w = (signs * 10**logs).to(dtype)
        w[::50] = 0.0
        w[::100] = -0.0
        layers.append(w)
    found = histogram(*layers)
    every = np.concatenate([w.double().numpy() for w in layers])
    logs = np.log10(np.abs(every[every != 0]))
    counts, _ = np.histogram(logs, np.linspace(-8, 2, 101))
    assert found["counts"] == counts.tolist()
    assert found["zeros"] == int((every == 0).sum()) >= 14 + 6
    assert (found["smallest"], found["per_decade"]) == (-8, 10)


def bins(*weights: float, dtype: torch.dtype = torch.float64) -> list[int]:
    counts = histogram(torch.tensor(weights, dtype=dtype))["counts"]
    assert len(counts) == 100
    return [index for index, count in enumerate(counts) for _ in range(count)]


def test_magnitudes_beyond_either_end_are_counted_there():
    assert bins(1e-9, -1e-30, 1e-300) == [0, 0, 0]
    assert bins(100.0, -101.0, 1e30, 1e300, math.inf) == [99] * 5


def test_the_lower_edge_belongs_to_a_bin():
    # 10^0 and 10^1 are the edges that floating point has exactly
    assert bins(1.0, -10.0) == [80, 90]
    assert bins(1.0, 10.0, dtype=torch.float32) == [80, 90]
    assert bins(0.999, 9.99) == [79, 89]
    # 10^0.1 = 1.2589 and 10^-0.1 = 0.7943
    assert bins(1.258, 1.26, 0.794, 0.795) == [78, 79, 80, 81]


def test_all_zeros():
    found = histogram(torch.zeros(5))
    assert (found["zeros"], sum(found["counts"])) == (5, 0)
