"""What `ellzero bench` tells: bytes, multiply-adds, and latency in every way there is to run it."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ellzero.compaction.compact import compact
from ellzero.errors import EllzeroError, EllzeroWarning
from ellzero.graph import Network
from ellzero.measure import runtimes
from ellzero.measure.latency import ROUNDS, Latency, time_calls
from ellzero.measure.macs import LayerCost, layer_costs
from ellzero.measure.size import Size, size_of
from ellzero.progress import shown_progress

Ways = dict[str, Callable[[], runtimes.Call]]
"""What makes the function that is timed, by the name of the way."""


@dataclass(frozen=True)
class Timing:
    """Latency of one way to run a network at one batch size, or why there is none."""

    way: str
    batch: int
    latency: Latency | None
    missing: str | None = None


@dataclass(frozen=True)
class Measurement:
    """All that was measured of one network.

    Args:
        size: its bytes.
        layers: its weights and multiply-adds, as it was given.
        timings: every way at every batch size.
        threads: of PyTorch and onnxruntime; scipy and the compiled C have one.
        device: the processor.
    """

    size: Size
    layers: tuple[LayerCost, ...]
    timings: tuple[Timing, ...]
    threads: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def measure(
    network: Network,
    *,
    batches: Sequence[int] = (1, 64),
    threads: int = 1,
    rounds: int = ROUNDS,
    shown: bool = False,
) -> Measurement:
    """Measure a traced network, in float32; inputs are random, preprocessing is left out.

    Args:
        network: as `ez.trace` or `ez.load` gives it.
        batches: batch sizes.
        threads: of PyTorch and onnxruntime.
        rounds: how many figures each median is of.
        shown: show a bar on standard error.

    Example:
        >>> import torch, ellzero as ez
        >>> network = ez.trace(torch.nn.Linear(8, 4), torch.zeros(1, 8))
        >>> measurement = measure(network, batches=[])  # bytes and multiply-adds alone
        >>> measurement.layers[0].macs, measurement.timings
        (32, ())
    """
    compacted = compact(network).model
    plain, small = _for_timing(network), _for_timing(compacted)
    with _threads(threads), shown_progress(shown=shown) as bar:
        task = bar.add_task("measuring", total=None, note="")
        timings: list[Timing] = []
        for batch in batches:
            ways = _ways(plain, small, batch, threads)
            bar.update(task, description=f"batch {batch}", total=rounds * len(ways), completed=0)
            timings += _timings(ways, batch, rounds, partial(bar.advance, task))
    return Measurement(
        size_of(network, compacted), tuple(layer_costs(network)), tuple(timings), threads, _device()
    )


def _for_timing(network: Network) -> Network:
    """The network in float32 and without its preprocessing."""
    weights = {name: network.weight(name).detach() for name in network.graph.weight_names()}
    weights = {n: w.float() if w.is_floating_point() else w for n, w in weights.items()}
    return Network(network.graph.model_copy(update={"preprocess": None}), weights).eval()


def _ways(plain: Network, small: Network, batch: int, threads: int) -> Ways:
    generator = torch.Generator().manual_seed(0)
    x = plain.examples(batch, generator)
    return {
        "torch dense": lambda: runtimes.torch_dense(plain, x),
        "torch dense, compacted": lambda: runtimes.torch_dense(small, x),
        "torch CSR": lambda: runtimes.torch_csr(plain, x),
        "scipy CSR": lambda: runtimes.scipy_csr(plain, x),
        "onnxruntime": lambda: runtimes.onnx_bound(plain, x, threads),
        "onnxruntime, compacted": lambda: runtimes.onnx_bound(small, x, threads),
        "compiled C": lambda: runtimes.compiled_c(small, x),
        runtimes.CALL_OVERHEAD: lambda: runtimes.empty_c(x),
    }


def _timings(ways: Ways, batch: int, rounds: int, tick: Callable[[], object]) -> list[Timing]:
    calls, missing = {}, {}
    for way, make in ways.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EllzeroWarning)  # compaction has said it
                calls[way] = make()
        except ImportError:
            missing[way] = "needs ellzero[bench]"
        except EllzeroError as error:
            missing[way] = str(error)
    latencies = time_calls(calls, rounds=rounds, tick=tick)
    return [Timing(way, batch, latencies.get(way), missing.get(way)) for way in ways]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
