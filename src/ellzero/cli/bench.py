"""`ellzero bench`: bytes, multiply-adds and latency of a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ellzero.cli.options import DataRoot, Json, Model, Trust
from ellzero.errors import InputError

if TYPE_CHECKING:
    from ellzero.measure.measurement import Measurement, Timing


def bench(
    model: Model,
    /,
    *,
    threads: int = 1,
    data_root: DataRoot = None,
    trust: Trust = False,
    json_: Json = False,
) -> None:
    """Measure a network: its bytes, its multiply-adds, and how long it takes, run in every way.

    Example: ellzero bench runs/demo-1

    Parameters
    ----------
    threads
        Threads of PyTorch and onnxruntime; scipy and the compiled C take one.
    """
    from ellzero.measure.measurement import measure
    from ellzero.runs import open_run

    if threads < 1:
        raise InputError(f"--threads is {threads}; expected at least 1")
    run = open_run(model, data_root=data_root, trust=trust)
    measurement = measure(run.trace(), threads=threads, shown=True)
    if json_:
        print(json.dumps({"model": str(run.file), **measurement.to_json()}, indent=2))
    else:
        _show(measurement, run.file)


def _show(measurement: Measurement, file: Path) -> None:
    from ellzero.cli.tables import show_rows

    size = measurement.size
    packed = "needs ellzero[export]"
    if size.packed_bytes is not None:
        packed = f"{size.packed_bytes:,} ({size.float32_bytes / size.packed_bytes:.1f}x smaller)"
    macs = sum(layer.macs for layer in measurement.layers)
    effective = sum(layer.effective_macs for layer in measurement.layers)
    show_rows(
        str(file),
        [
            ("parameters", f"{size.parameters:,}", f"{size.nonzeros:,} not zero"),
            ("bytes", f"{size.float32_bytes:,}", f"packed {packed}"),
            ("multiply-adds", f"{macs:,}", f"{effective:,} effective"),
        ],
        ("", "dense", "as it is"),
    )
    batches = list(dict.fromkeys(timing.batch for timing in measurement.timings))
    ways = list(dict.fromkeys(timing.way for timing in measurement.timings))
    by_place = {(timing.way, timing.batch): timing for timing in measurement.timings}
    where = f"{measurement.threads} thread(s), {measurement.device}"
    show_rows(
        f"Microseconds a batch, median (quartiles); {where}",
        [(way, *(_figure(by_place[way, batch]) for batch in batches)) for way in ways],
        ("", *(f"batch {batch}" for batch in batches)),
    )


def _figure(timing: Timing) -> str:
    if timing.latency is None:
        return timing.missing or "-"
    median, low, high = (
        f"{1e6 * seconds:,.1f}"
        for seconds in (timing.latency.median_s, timing.latency.low_s, timing.latency.high_s)
    )
    return f"{median} ({low}-{high})"
