"""`ellzero bench` on a small project: what it counts and names."""

import json

import pytest

from ellzero.measure.latency import time_calls

WAYS = {
    "torch dense",
    "torch dense, compacted",
    "torch CSR",
    "scipy CSR",
    "onnxruntime",
    "onnxruntime, compacted",
    "compiled C",
    "an empty C function",
}


@pytest.fixture
def run(ellzero) -> str:
    return json.loads(ellzero("run", "mine.toml", "--json", "--set", "prune.sparsity=0.5").out)[
        "folder"
    ]


@pytest.mark.slow
def test_bench_counts_and_times_every_way(ellzero, run):
    done = ellzero("bench", run, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["size"]["parameters"] == 6 * 16 + 16 + 16 * 3 + 3
    assert found["size"]["float32_bytes"] == 4 * found["size"]["parameters"]
    assert [layer["macs"] for layer in found["layers"]] == [96, 48]
    assert sum(layer["effective_macs"] for layer in found["layers"]) == 72
    for batch in (1, 64):
        timings = {t["way"]: t["latency"] for t in found["timings"] if t["batch"] == batch}
        assert set(timings) == WAYS
        for latency in timings.values():
            assert 0 < latency["low_s"] <= latency["median_s"] <= latency["high_s"] < 1
    assert found["threads"] == 1


def test_bench_prints_tables_for_people(ellzero, run, monkeypatch):
    monkeypatch.setitem(time_calls.__kwdefaults__, "seconds", 1e-4)  # how long matters to nobody
    done = ellzero("bench", run)
    assert (done.code, done.err) == (0, "")
    for text in ("compiled C", "onnxruntime", "batch 64", "effective", "smaller", "1 thread"):
        assert text in done.out


def test_threads_below_one_are_refused(ellzero, run):
    assert "--threads is 0" in ellzero("bench", run, "--threads", "0").says()
