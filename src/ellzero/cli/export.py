"""`ellzero export`: a network as a packed file, an ONNX model, C source."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ellzero.cli.options import DataRoot, Flag, Json, Model, Trust

if TYPE_CHECKING:
    from ellzero.preview import Form
    from ellzero.runs import Run
    from ellzero.shipping import Shipped

NOTHING = (None, None, None, "net", "smallest", "arrays", "project", False)
"""What is to be written where no option says so."""


def export(
    model: Model,
    /,
    *,
    ellz: Path | None = None,
    onnx: Path | None = None,
    c: Path | None = None,
    name: str = "net",
    storage: Literal["smallest", "fastest", "dense"] = "smallest",
    c_weights: Literal["arrays", "blob"] = "arrays",
    package: Literal["source", "project", "arduino"] = "project",
    bits: int | None = None,
    biases: int | None = None,
    uniform: Flag = False,
    int8: Flag = False,
    activations: int | None = None,
    max_accuracy_drop: float | None = None,
    max_loss_increase: float | None = None,
    finetune: int = 0,
    data: str | None = None,
    data_root: DataRoot = None,
    trust: Trust = False,
    overwrite: Flag = False,
    json_: Json = False,
) -> None:
    """Write a network compacted, and quantized if you ask: packed, as ONNX, as C source.

    With the network alone nothing is written: a table shows what it would be in each form, its
    error on validation data, and which one to take.

    Example: ellzero export runs/demo-1 --ellz demo.ellz --max-accuracy-drop 0.1

    Parameters
    ----------
    ellz
        Packed file to write.
    onnx
        ONNX model to write.
    c
        Folder for C source.
    name
        Name of the C files and functions.
    storage
        How weights lie in the C; dense is the network as it is, zeros and all, for comparison.
    c_weights
        Weights in arrays of the C, or in a blob: a binary file beside it, for large networks.
    package
        The C source alone, with a README, a Makefile and a CMakeLists.txt, or as an Arduino
        library.
    bits
        Quantize to codebooks of 2^bits values a layer, 2 to 8.
    biases
        Bits of a bias beside quantized weights, 2 to 8; by default 16.
    uniform
        With --bits: whole multiples of a step that are as exact as such codebooks, and mostly take
        fewer bytes in a packed file.
    int8
        Quantize the weights alone to uniform int8; the network still computes in floating point.
    activations
        8 for a network of integers, weights as well as values: C without floating point. Instead
        of --int8, not beside it.
    max_accuracy_drop
        Quantize to as few bits as lose at most so many points on validation data.
    max_loss_increase
        The same by the loss, for a regression: 0.1 allows 1.1 times the loss.
    finetune
        Epochs for which the codebooks are trained, or the network of integers.
    data
        Data set for a budget, finetune, activations and the table; by default the run's.
    overwrite
        Replace files that are there already.
    """
    from ellzero.pruning.budget import Budget
    from ellzero.runs import open_run
    from ellzero.shipping import Destinations, Quantization, ship

    drops = {"max_accuracy_drop": max_accuracy_drop, "max_loss_increase": max_loss_increase}
    drops = {key: drop for key, drop in drops.items() if drop is not None}
    settings = bits, biases, activations, *drops.values()
    quantizes = int8 or uniform or finetune or any(setting is not None for setting in settings)
    written = (ellz, onnx, c, name, storage, c_weights, package, overwrite)
    if not quantizes and written == NOTHING:
        _preview(open_run(model, data_root=data_root, trust=trust), model, data, json_)
        return
    files = Destinations(
        ellz=ellz,
        onnx=onnx,
        c=c,
        name=name,
        storage=storage,
        c_weights=c_weights,
        package=package,
        overwrite=overwrite,
    )
    quantization = None
    if quantizes:
        budget = Budget(**drops) if drops else None
        quantization = Quantization(
            bits=bits,
            int8=int8,
            activations=activations,
            budget=budget,
            finetune_epochs=finetune,
            biases=biases,
            uniform=uniform,
        )
    run = open_run(model, data_root=data_root, trust=trust)
    shipped = ship(run, files, quantization, data=data)
    if json_:
        print(json.dumps({"model": str(run.file), **shipped.to_table()}, indent=2))
    else:
        _show(shipped, run)


def _preview(run: Run, path: Path, data: str | None, as_json: bool) -> None:
    from dataclasses import asdict

    from ellzero.cli.tables import say, show_rows
    from ellzero.preview import preview

    found = preview(run, data=run.data(data))
    command = None
    if found.best is not None:
        where = "--ellz net.ellz" if found.best.flash_bytes is None else "--ellz net.ellz --c net-c"
        parts = ["ellzero export", shlex.quote(str(path)), *(found.best.options or ()), where]
        command = " ".join(parts)
    if as_json:
        document = {"model": str(run.file), **asdict(found), "command": command}
        print(json.dumps(document, indent=2))
        return
    figure = "error, %" if found.scores_accuracy else "score"
    show_rows(
        f"{run.file} in each form",
        [_form_row(form, found.scores_accuracy) for form in found.forms],
        ("", "packed", "ONNX", "C flash", "C RAM", "µs", figure, "drop"),
    )
    dense = "" if found.forms[0].options is not None else "dense is the reference; "
    say(f"{dense}compacted is float32; integers have 8 bits, weights and values")
    say(f"µs: {found.runtime or 'not known'}, one example; {figure}: on validation data")
    names: dict[str, list[str]] = {}
    for form in found.forms:
        for reason in form.missing:
            names.setdefault(reason, []).append(form.name)
    for reason, forms in names.items():
        say(f"{', '.join(forms)}: {reason}")
    if found.best is None:
        say(found.reason)
        return
    say(f"Take {found.best.name}: {found.reason}. Write it by")
    say(command)
    if found.best.options and found.best.options[0] == "--bits":
        say("Fewer bits lose less where their codebooks are trained: --finetune 5")


def _form_row(form: Form, accuracy: bool) -> tuple[str, ...]:
    sizes = (form.packed_bytes, form.onnx_bytes, form.flash_bytes, form.ram_bytes)
    of = form.evaluation
    score = None if of is None else f"{of.error_percent:.2f}" if accuracy else f"{of.score:.4g}"
    drop = (
        None if form.worse is None else f"{form.worse:+.2f}" if accuracy else f"{form.worse:+.2g}"
    )
    latency = None if form.latency_s is None else f"{1e6 * form.latency_s:,.1f}"
    return (form.name, *(text or "-" for text in (*map(_bytes, sizes), latency, score, drop)))


def _bytes(count: int | None) -> str | None:
    """Three digits, so that the table fits a terminal; --json has them all."""
    if count is None or count < 1000:
        return None if count is None else f"{count} B"
    return f"{count / 1e3:.3g} kB" if count < 999_500 else f"{count / 1e6:,.3g} MB"


def _show(shipped: Shipped, run: Run) -> None:
    from ellzero.cli.tables import say, show_rows

    sizes = []
    if shipped.ellz is not None:
        sizes.append(("packed", shipped.ellz.size_bytes, shipped.ellz.path))
    if shipped.onnx is not None:
        sizes.append(("ONNX", shipped.onnx.size_bytes, shipped.onnx.path))
    if shipped.c is not None:
        sizes.append(("C, constants", shipped.c.constant_bytes, shipped.c.folder))
    dense = shipped.float32_bytes
    rows = [("float32", f"{dense:,}", "1x")]
    rows += [(what, f"{size:,}", f"{dense / size:.1f}x") for what, size, _ in sizes]
    show_rows(str(run.file), rows, ("", "bytes", "file ratio"))
    if shipped.bits is not None:
        say("bits: " + ", ".join(f"{name} {bits}" for name, bits in shipped.bits.items()))
    elif shipped.ellz is not None and not _is_quantized(run):
        say("weights are packed as they are; --bits 4 or --max-accuracy-drop 0.1 makes it smaller")
    if shipped.before is not None and shipped.after is not None:
        before, after = shipped.before, shipped.after
        if shipped.scores_accuracy:
            was, found = (f"{figures.error_percent:.2f} %" for figures in (before, after))
        else:
            was, found = (f"{figures.score:.4f}" for figures in (before, after))
        noun = "error" if shipped.scores_accuracy else "score"
        say(f"validation {noun}: {found}; before it was quantized: {was}")
    for kept in shipped.kept:
        say(f"kept: {kept}")
    for _, _, path in sizes:
        say(path)


def _is_quantized(run: Run) -> bool:
    """Whether weights share values, as those of a float32 network hardly ever do."""
    from ellzero.codebook import find_codebook

    for w in run.masks.weights.values():
        codebook = find_codebook(w)
        if codebook is not None and len(codebook.values) < int(w.count_nonzero()):
            return True
    return False
