"""What a network would be in each form that can be shipped, side by side, before one is written."""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from ellzero.answers import more_wrong
from ellzero.compaction.compact import compact
from ellzero.data.data import Data
from ellzero.errors import EllzeroError, EllzeroWarning, InputError
from ellzero.export.c.compiled import COMPILERS, compile_c
from ellzero.export.c.source import export_c
from ellzero.export.onnx_file import export_onnx
from ellzero.flags import STANDARD_ERRORS
from ellzero.graph import Network
from ellzero.measure.latency import time_calls
from ellzero.packed.pack import pack
from ellzero.progress import shown_progress
from ellzero.quantization.quantize import quantize
from ellzero.record import Evaluation
from ellzero.run_folder import REFERENCE
from ellzero.runs import Run
from ellzero.training.evaluation import evaluate_each

MORE_LOSS = 0.01
"""Where the score is no accuracy, a form that loses no more than this part counts as good."""

BITS = (8, 5, 4)


@dataclass(frozen=True)
class Form:
    """A network in one form.

    Args:
        name: of the form.
        options: of `ellzero export` that make it; None of the dense reference, which is no choice.
        packed_bytes: of its packed file.
        onnx_bytes: of its ONNX model.
        flash_bytes: of the constants of its C.
        ram_bytes: of the C's working memory, beside input and output.
        latency_s: median seconds for one example, by the preview's `runtime`.
        evaluation: on validation data.
        worse: points of error more than the first form, the dense reference where there is one;
            the score's fall where it is no accuracy.
        missing: why a figure is not there.
    """

    name: str
    options: tuple[str, ...] | None
    packed_bytes: int | None = None
    onnx_bytes: int | None = None
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    latency_s: float | None = None
    evaluation: Evaluation | None = None
    worse: float | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preview:
    """All forms of a network, and the one to take.

    Args:
        forms: a row each.
        scores_accuracy: whether the score is an accuracy.
        runtime: what the latency is of, on one thread: the compiled C, or onnxruntime.
        best: the form to take; None where none can be packed.
        reason: why it is that one.
    """

    forms: tuple[Form, ...]
    scores_accuracy: bool
    runtime: str | None
    best: Form | None
    reason: str


def preview(run: Run, *, data: Data | None = None, progress: bool = True) -> Preview:
    """Make every form of a run's network in temporary files, and measure it on validation data.

    The forms are the dense reference, the compacted network in float32, with codebooks of 8, 5 and
    4 bits that are not fine-tuned, and as a network of integers. The one to take is the smallest
    packed file among those whose error exceeds the compacted network's by no more than two standard
    errors, paired over the validation examples (without an accuracy: whose loss is at most 1 %
    more).

    Args:
        run: what `ez.open_run` gave; nothing of it changes.
        data: by default those that it was made with.
        progress: show on standard error how far it is.

    Raises:
        InputError: a network that cannot be traced; no data.
    """
    data = run.data() if data is None else data
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory() as folder,
        shown_progress(shown=progress) as bar,
    ):
        warnings.simplefilter("ignore", EllzeroWarning)  # the run's record has said it
        task = bar.add_task("tracing", total=len(BITS) + 3, note="")
        small = compact(run.trace()).model
        makers: dict[str, tuple[tuple[str, ...] | None, Callable[[], Network]]] = {}
        if run.reference is not None:
            # as the compressed one's, its file says how it preprocesses
            dense = replace(run, file=run.file.parent / REFERENCE)
            makers["dense"] = None, dense.trace
        makers["compacted"] = (), lambda: small
        for bits in BITS:
            makers[f"{bits} bits"] = ("--bits", str(bits)), lambda bits=bits: _coded(small, bits)
        integers = ("--activations", "8")
        makers["integers"] = integers, lambda: _of_integers(small, data)
        measured: list[tuple[Form, Tensor | None, Callable[[], object] | None]] = []
        runtime = _runtime(small)
        for name, (options, make) in makers.items():
            bar.update(task, description=name)
            place = Path(folder) / str(len(measured))
            place.mkdir()
            measured.append(_measured(Form(name, options), make, data, place, runtime))
            bar.advance(task)
        calls = {form.name: call for form, _, call in measured if call is not None}
        latencies = time_calls(calls)
    latency = {name: found.median_s for name, found in latencies.items()}
    forms = [replace(form, latency_s=latency.get(form.name)) for form, _, _ in measured]
    forms = [_beside(form, forms[0], data.scores_accuracy) for form in forms]
    answers = {form.name: right for form, right, _ in measured}
    best, reason = best_of(forms, answers)
    return Preview(tuple(forms), data.scores_accuracy, runtime if calls else None, best, reason)


def _coded(network: Network, bits: int) -> Network:
    network = copy.deepcopy(network)
    quantize(network, bits=bits, progress=False)
    return network


def _of_integers(network: Network, data: Data) -> Network:
    return quantize(network, activations=8, data=data).model


def _runtime(network: Network) -> str | None:
    """What latency is measured with: one way for all forms, or they could not be compared."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_c(network, Path(folder) / "c")
        except InputError:
            compiler = None
        else:
            compiler = next(filter(shutil.which, COMPILERS), None)
    if compiler is not None:
        return "compiled C"
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    return "onnxruntime"


def _measured(
    form: Form, make: Callable[[], Network], data: Data, folder: Path, runtime: str | None
) -> tuple[Form, Tensor | None, Callable[[], object] | None]:
    """A form with its sizes and what it reaches, its right answers, and a call that runs it."""
    figures: dict[str, Any] = {}
    missing: list[str] = []
    call: Callable[[], object] | None = None
    try:
        network = make()
        figures["evaluation"], right = evaluate_each(network, data, "validation")
    except EllzeroError as error:
        return replace(form, missing=(str(error),)), None, None
    try:
        packed = pack(network, folder / "net.ellz", progress=False)
        figures["packed_bytes"] = packed.size_bytes
    except EllzeroError as error:
        missing.append(f"packed: {error}")
    try:
        figures["onnx_bytes"] = export_onnx(network, folder / "net.onnx").size_bytes
        if runtime == "onnxruntime":
            call = _by_onnxruntime(network, folder / "net.onnx")
    except EllzeroError as error:
        missing.append(f"ONNX: {error}")
    try:
        storage = "dense" if form.options is None else "smallest"
        source = export_c(network, folder / "c", storage=storage)
        figures |= {"flash_bytes": source.constant_bytes, "ram_bytes": source.scratch_bytes}
        if runtime == "compiled C":
            compiled = compile_c(source)
            inputs = np.zeros((1, compiled.inputs), compiled.dtype)
            call = compiled.bound(inputs, np.empty((1, compiled.outputs), compiled.dtype))
    except EllzeroError as error:
        missing.append(f"C: {error}")
    return replace(form, **figures, missing=tuple(missing)), right, call


def _by_onnxruntime(network: Network, path: Path) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
    names = (known.name for known in session.get_inputs())
    feed = dict(zip(names, (x.numpy() for x in network.examples(1)), strict=True))
    return lambda: session.run(None, feed)


def _beside(form: Form, dense: Form, accuracy: bool) -> Form:
    if form.evaluation is None or dense.evaluation is None:
        return form
    fall = dense.evaluation.score - form.evaluation.score
    return replace(form, worse=100 * fall if accuracy else fall)


def best_of(forms: Sequence[Form], answers: Mapping[str, Tensor | None]) -> tuple[Form | None, str]:
    """The smallest packed file that is as good as the compacted network, and why."""
    chosen = [form for form in forms if form.options is not None and form.packed_bytes is not None]
    plain = next((form for form in chosen if not form.options), None)
    if plain is None or plain.evaluation is None:
        return None, "nothing can be packed"
    good = [form for form in chosen if _as_good(form, plain, answers)]
    best = min(good, key=lambda form: cast("int", form.packed_bytes))
    accuracy = answers[plain.name] is not None
    reason = "the smallest packed file that loses no more than the noise of the validation data"
    if not accuracy:
        reason = "the smallest packed file whose loss is at most 1 % more than in float32"
    return best, reason


def _as_good(form: Form, plain: Form, answers: Mapping[str, Tensor | None]) -> bool:
    if form.evaluation is None or plain.evaluation is None:
        return False
    right, before = answers[form.name], answers[plain.name]
    if right is None or before is None:
        return form.evaluation.loss <= plain.evaluation.loss * (1 + MORE_LOSS)
    lost, error = more_wrong(~right.numpy(), ~before.numpy())
    return lost <= STANDARD_ERRORS * error
