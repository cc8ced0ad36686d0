"""Records: folders with numbers, what is read back, and what a run's weights are like."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import ellzero as ez
import hand_made
from cases import fill
from ellzero.errors import InputError
from ellzero.record import FinishedRecord, Magnitudes, Record, layer_table, magnitudes
from ellzero.run_folder import (
    CHECKPOINTS,
    WRITTEN,
    RunFolder,
    clear_folder,
    fail,
    new_folder,
    read_record,
    take_folder,
    write_metrics,
    write_record,
)
from small import blobs, classification, convnet, mlp, recipe

BINS = {"zeros": 0, "smallest": -8, "per_decade": 10, "counts": [1, 2]}


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
    with pytest.raises(InputError, match=r"a is not empty; name another one$"):
        take_folder(tmp_path / "a")
    (tmp_path / "a" / "record.json").write_text("{}")
    with pytest.raises(InputError, match="not empty; name another one, or go on with its run by"):
        take_folder(tmp_path / "a")


@pytest.mark.parametrize("status", ["running", "failed", "done"])
def test_a_record_is_read_back_as_it_was_written(status, tmp_path):
    table = hand_made.table() if status == "done" else {"format": 1}
    (tmp_path / "record.json").write_text(json.dumps({**table, "status": status}))
    record = read_record(tmp_path)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert isinstance(record, FinishedRecord) == (status == "done")


def test_what_was_not_told_does_not_stand_in_the_file(tmp_path):
    result = ez.compress(mlp(), classification(), recipe(), folder=tmp_path)
    table = json.loads((tmp_path / "record.json").read_text())
    assert table == result.record.to_table()
    assert not {"error", "note", "living_note"} & set(table)
    assert list(table["compressed"]) == ["validation", "test", "epoch"]
    assert table["compressed"]["test"].keys() == {"score", "loss"}
    assert {"used", "within"} <= table["outcomes"][0].keys()  # null stands where it always stood
    without_test = ez.Data(blobs(60, 1), blobs(45, 2))
    table = ez.compress(mlp(), without_test, recipe()).record.to_table()
    assert list(table["compressed"]) == ["validation", "epoch"]
    assert table["test_error_percent"] is table["folder"] is None
    assert "file_bytes" not in table


def test_records_of_the_first_versions_are_read(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(hand_made.table(nonzeros=20)))
    record = read_record(tmp_path)
    assert isinstance(record, FinishedRecord)
    # 4,040 bytes in float32 are 1,010 parameters, and 980 of the 1,000 selected ones are zero
    assert (record.parameters, record.parameters_left) == (1010, 30)
    assert record.parameter_ratio == pytest.approx(1010 / 30)
    assert (record.warnings, record.trained, record.living_nonzeros) == ((), None, None)


def test_unknown_keys_of_an_evaluation_are_ignored():
    reached = {"score": 0.5, "loss": 1.0}
    table = hand_made.table(reference={"validation": {**reached, "top5": 0.9}})
    reference = FinishedRecord.model_validate(table).reference
    assert reference.to_table() == {"validation": reached}


def test_unknown_keys_are_ignored(tmp_path):
    table = hand_made.table(later=[1, 2], layers=[])
    table["compressed"]["colour"] = "blue"
    (tmp_path / "record.json").write_text(json.dumps(table))
    assert read_record(tmp_path) == FinishedRecord.model_validate(hand_made.table())


def test_a_record_cannot_be_changed():
    record = FinishedRecord.model_validate(hand_made.table())
    with pytest.raises(ValueError, match="frozen"):
        record.nonzeros = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "holds no run"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        (json.dumps({"format": 2, "status": "done"}), "has format 2; .* install a newer one"),
        (json.dumps({"format": "x", "status": "done"}), "has format 'x'; .* whole number$"),
        (json.dumps({"format": 1}), "is no record of a run"),
        ("[]", r"record\.json"),
        (json.dumps({"format": 1, "status": "asleep"}), "status is 'asleep'; .* 'running'"),
        (json.dumps({"format": 1, "status": "failed", "error": 3}), "error is 3; .* string"),
        (json.dumps({"format": 1, "status": "done"}), "is not whole: no weights; no nonzeros"),
        (json.dumps(hand_made.table(seconds="long")), "seconds is 'long'; .* number"),
        (json.dumps(hand_made.table(reference={})), r"is not whole: no reference\.validation$"),
        (
            json.dumps(hand_made.table(compressed={"validation": {"score": 1}, "epoch": 1})),
            r"is not whole: no compressed\.validation\.loss$",
        ),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
        (
            '{"format": 1, "status": "done", "recipe": ' + "[" * 99 + "]" * 99 + "}",
            r"recipe\.0\.0\.0\.0\.0\.0\.0\.\.\. lies more than 32 deep",
        ),
        ('{"format": 1, "status": "failed", "error": "\\ud800"}', r"error is .* no Unicode text"),
        (json.dumps(hand_made.table(nonzero_ratio=0)), "nonzero_ratio is 0; .* greater than 0$"),
        (
            json.dumps(hand_made.table(score=1e200)),
            r"validation_score is 1e\+200; beyond 1e\+100, or no finite number$",
        ),
        (json.dumps(hand_made.table(sparsity=1.5)), "sparsity is 1.5; .* less than or equal to 1$"),
        (
            json.dumps(hand_made.table(trained={"magnitudes": {**BINS, "counts": []}})),
            "counts is .*; .* at least 1 item",
        ),
        (
            json.dumps(hand_made.table(trained={"magnitudes": {**BINS, "smallest": 308}})),
            "its bins end at 1e308",
        ),
        (json.dumps({"format": True, "status": "done"}), "has format True; .* whole number$"),
        (json.dumps({"format": 0, "status": "failed"}), "format is 0; .* than or equal to 1$"),
        (json.dumps(hand_made.table(weights=0)), "weights is 0; .* than or equal to 1$"),
        (json.dumps(hand_made.table(inputs=-5)), "inputs is -5; .* than or equal to 0$"),
        (json.dumps(hand_made.table(inputs=10**300)), "inputs is a number beyond 64 bits$"),
        (json.dumps(hand_made.table(seconds=math.inf)), "seconds is inf; .* finite number$"),
        (
            json.dumps(hand_made.table(trained={"magnitudes": {**BINS, "per_decade": 0}})),
            r"is not whole: trained\.magnitudes\.per_decade is 0; .* than or equal to 1$",
        ),
    ],
)
def test_what_is_no_record(text, expected, tmp_path):
    if text is not None:
        (tmp_path / "record.json").write_text(text)
    with pytest.raises(InputError, match=expected) as caught:
        read_record(tmp_path)
    assert str(tmp_path) in str(caught.value)
    run = RunFolder.at(tmp_path)
    assert (run.status, run.record) == ("missing" if text is None else "unreadable", None)


def test_metrics_are_read_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_metrics(tmp_path, [hand_made.metrics("train"), hand_made.metrics("finetune", epoch=2)])
    run = RunFolder.at(tmp_path)
    assert [(m.stage, m.epoch) for m in run.metrics] == [("train", 1), ("finetune", 2)]
    path.unlink()
    assert len(run.metrics) == 2
    assert RunFolder.at(tmp_path).metrics == ()
    for text in ("{", '{"stage": "train"}\n'):
        path.write_text(text)
        assert RunFolder.at(tmp_path).metrics == ()


def test_a_row_for_every_layer():
    model = convnet()
    ez.prune(model, nonzeros=99)
    rows = layer_table(ez.select(model))
    assert [(r.name, r.kind, r.shape, r.weights) for r in rows] == [
        ("0.weight", "conv", (4, 2, 3, 3), 72),
        ("3.weight", "conv", (6, 4, 3, 3), 216),
        ("6.weight", "dense", (2, 54), 108),
    ]
    assert sum(r.nonzeros for r in rows) == 99
    assert [r.density for r in rows] == [r.nonzeros / r.weights for r in rows]


# failures


def test_a_failure_is_written_into_the_record_there_is(tmp_path):
    write_record(tmp_path, Record(format=1, status="running", recipe={"name": "mine"}))
    fail(tmp_path, "it went wrong")
    assert json.loads((tmp_path / "record.json").read_text()) == {
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
    assert (record.status, record.error) == ("failed", "it went wrong")
    assert record.folder == folder
    assert record.versions["torch"] == torch.__version__
    assert [path.name for path in folder.iterdir()] == ["record.json"]


def test_a_folder_is_cleared_of_what_a_run_left_and_of_nothing_else(tmp_path):
    data = classification()
    ez.compress(mlp(), data, recipe(), folder=tmp_path)
    for name in CHECKPOINTS:
        (tmp_path / name).write_text("left by one that was killed")
    assert {path.name for path in tmp_path.iterdir()} == set(WRITTEN)
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "model").mkdir()
    clear_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "model"]
    clear_folder(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


# magnitudes


def histogram(*layers) -> Magnitudes:
    model = nn.Sequential(*(nn.Linear(len(w), 1, bias=False, dtype=w.dtype) for w in layers))
    for layer, w in zip(ez.select(model).values(), layers, strict=True):
        fill(layer, w)
    found = magnitudes(ez.select(model))
    assert sum(found.counts) + found.zeros == sum(len(w) for w in layers)
    assert Magnitudes(**json.loads(json.dumps(found.to_table()))) == found
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
    assert list(found.counts) == counts.tolist()
    assert found.zeros == int((every == 0).sum()) >= 14 + 6
    assert (found.smallest, found.per_decade) == (-8, 10)


def bins(*weights: float, dtype: torch.dtype = torch.float64) -> list[int]:
    counts = histogram(torch.tensor(weights, dtype=dtype)).counts
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
    assert (found.zeros, sum(found.counts)) == (5, 0)


def test_a_copy_of_a_record_leaves_what_others_have_set_alone():
    records = [Record(format=1, status="running") for _ in range(2)]
    changed = records[0].changed(error="no space left")
    assert changed.to_table() == {"format": 1, "status": "running", "error": "no space left"}
    assert [record.to_table() for record in records] == [{"format": 1, "status": "running"}] * 2
