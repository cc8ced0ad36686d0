"""`ellzero export`: a network as a packed file, an ONNX model, C source."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ellzero.errors import InputError

StorageChoice = Literal["smallest", "fastest", "dense"]

if TYPE_CHECKING:
    from torch import nn

    from ellzero.data.data import Data
    from ellzero.graph import Network


def export(
    model: Path,
    /,
    *,
    ellz: Path | None = None,
    onnx: Path | None = None,
    c: Path | None = None,
    name: str = "net",
    storage: StorageChoice = "smallest",
    bits: int | None = None,
    int8: Annotated[bool, Parameter(negative=())] = False,
    max_accuracy_drop: float | None = None,
    finetune: int = 0,
    data: str | None = None,
    data_root: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Write a network compacted, and quantized if you ask: packed, as ONNX, as C source.

    Example: ellzero export runs/demo-1 --ellz demo.ellz --max-accuracy-drop 0.1

    Parameters
    ----------
    model
        Run folder, a .safetensors in one, or a packed file.
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
    bits
        Quantize to codebooks of 2^bits values a layer, 2 to 8.
    int8
        Quantize to uniform int8.
    max_accuracy_drop
        Quantize to as few bits as lose at most so many points on validation data.
    finetune
        Epochs for which the codebooks are trained.
    data
        Data set for max-accuracy-drop and finetune; by default the run's.
    data_root
        Folder that holds data sets, each in a folder of its name.
    overwrite
        Replace files that are there already.
    json_
        Print one JSON document instead of a table.
    """
    from ellzero.cli.model import open_model
    from ellzero.compaction.compact import compacted_of
    from ellzero.compaction.folding import folded
    from ellzero.compaction.living import warn_if_dead
    from ellzero.export.c.plan import plan
    from ellzero.graph import Network

    if sum((bits is not None, int8, max_accuracy_drop is not None)) > 1:
        raise InputError("--bits, --int8 and --max-accuracy-drop are three ways; give one")
    if finetune < 0:
        raise InputError(f"--finetune is {finetune}; expected a number of epochs")
    _check_targets(ellz, onnx, c, name, overwrite)
    opened = open_model(model)
    whole = opened.traced(data_root)
    if c is not None:
        plan(whole)  # says now what there is no C for, not after minutes of fine-tuning
    changed = folded(whole)
    warn_if_dead(changed)
    if whole.graph.opaque:  # weights alone can be packed, so they stay as the network has them
        shipped, kept = opened.network, (_not_compacted(whole),)
    else:
        compacted = compacted_of(changed)
        shipped, kept = compacted.model, compacted.kept
    document: dict[str, Any] = {
        "model": str(opened.file),
        "float32_bytes": 4 * sum(p.numel() for p in opened.network.parameters()),
        "kept": list(kept),
    }
    if bits is not None or int8 or max_accuracy_drop is not None:
        needs_data = max_accuracy_drop is not None or finetune
        document["quantized"] = _quantize(
            shipped,
            opened.data(data, data_root) if needs_data else None,
            bits,
            int8,
            max_accuracy_drop,
            finetune,
        )
    elif finetune:
        raise InputError("--finetune trains codebooks: it goes with --bits, --int8 or a drop")
    with _nothing_said_twice():
        if ellz is not None:
            document["ellz"] = _pack(shipped, ellz)
        if onnx is not None:
            small = shipped if isinstance(shipped, Network) else opened.traced(data_root)
            document["onnx"] = _write_onnx(small, onnx)
        if c is not None:
            document["c"] = _write_c(whole if storage == "dense" else shipped, c, name, storage)
    if json_:
        print(json.dumps(document, indent=2))
    else:
        _show(document)


def _check_targets(
    ellz: Path | None, onnx: Path | None, c: Path | None, name: str, overwrite: bool
) -> None:
    """Refuse now what could not be written later on, or would replace something unasked."""
    files = [path for path in (ellz, onnx) if path is not None]
    if c is not None:
        from ellzero.export.c.source import check_name

        check_name(name)
        if c.exists() and not c.is_dir():
            raise InputError(f"--c {c} is a file; expected a folder")
        if not c.parent.is_dir():
            raise InputError(f"cannot write {c}: there is no folder {c.parent}")
        files += [c / f"{name}{end}" for end in (".h", ".c", "_test.c")]
    if not files:
        raise InputError("nothing to write: give --ellz FILE, --onnx FILE or --c FOLDER")
    for file in files:
        if file.is_dir():
            raise InputError(f"{file} is a folder; give the name of a file")
        if file.exists() and not overwrite:
            raise InputError(f"{file} is there already; give another name, or --overwrite")
        if file.parent != c and not file.parent.is_dir():
            raise InputError(f"cannot write {file}: there is no folder {file.parent}")
    if len({file.resolve() for file in files}) < len(files):
        raise InputError("two of the outputs are one file; give each a name of its own")


def _quantize(
    network: nn.Module,
    examples: Data | None,
    bits: int | None,
    int8: bool,
    max_accuracy_drop: float | None,
    finetune: int,
) -> dict[str, Any]:
    """Quantize in place; what came of it, with the validation error where there are data."""
    from ellzero.pruning.budget import Budget
    from ellzero.quantization.quantize import quantize
    from ellzero.training.evaluation import evaluate

    before = None if examples is None else evaluate(network, examples, "validation")
    budget = None if max_accuracy_drop is None else Budget(max_accuracy_drop=max_accuracy_drop)
    quantized = quantize(
        network,
        bits=bits,
        method="int8" if int8 else "kmeans",
        data=None if budget is None else examples,
        budget=budget,
    )
    if finetune and examples is not None:
        quantized.finetune(examples, epochs=finetune)
    found: dict[str, Any] = {"bits": quantized.bits}
    if before is not None and examples is not None:
        after = evaluate(network, examples, "validation")
        found |= {"validation_score": after.score, "validation_score_before": before.score}
    return found


def _not_compacted(network: Network) -> str:
    node = network.graph.opaque[0]
    target = getattr(node.op, "target", node.op.kind)
    return (
        f"the network as it is, not compacted and packed as weights alone: {node.name} ({target})"
    )


def _pack(network: nn.Module, path: Path) -> dict[str, Any]:
    from ellzero.packed.pack import pack

    packed = pack(network, path)
    return {
        "path": str(path),
        "bytes": packed.size_bytes,
        "parts": packed.parts,
        "self_contained": packed.self_contained,
    }


def _write_onnx(network: Network, path: Path) -> dict[str, Any]:
    from ellzero.export.onnx_file import export_onnx

    model = export_onnx(network, path)
    return {"path": str(path), "bytes": model.size_bytes, "difference": model.difference}


def _write_c(network: nn.Module, folder: Path, name: str, storage: StorageChoice) -> dict[str, Any]:
    from ellzero.export.c.source import export_c

    source = export_c(network, folder, name=name, storage=storage)
    return {
        "path": str(folder),
        "bytes": source.constant_bytes,
        "scratch_bytes": source.scratch_bytes,
        "layers": [asdict(layer) for layer in source.layers],
    }


@contextmanager
def _nothing_said_twice() -> Iterator[None]:
    """What is dead has been said of the whole network; what was compacted has other counts."""
    from ellzero.compaction.living import DeadWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeadWarning)
        yield


def _show(document: dict[str, Any]) -> None:
    from ellzero.cli.tables import show_rows

    dense = document["float32_bytes"]
    rows = [("float32", f"{dense:,}", "1x")]
    for key, what in (("ellz", "packed"), ("onnx", "ONNX"), ("c", "C, constants")):
        if key in document:
            size = document[key]["bytes"]
            rows.append((what, f"{size:,}", f"{dense / size:.1f}x"))
    show_rows(document["model"], rows, ("", "bytes", "file ratio"))
    quantized = document.get("quantized")
    if quantized is not None:
        print("bits: " + ", ".join(f"{name} {bits}" for name, bits in quantized["bits"].items()))
        if "validation_score" in quantized:
            before, after = (quantized[f"validation_score{end}"] for end in ("_before", ""))
            print(f"validation score: {after:.4f}, {before:.4f} before it was quantized")
    elif "ellz" in document:
        print(
            "weights are packed as they are; --bits 4 or --max-accuracy-drop 0.1 makes it smaller"
        )
    for kept in document["kept"]:
        print(f"kept: {kept}")
    for key in ("ellz", "onnx", "c"):
        if key in document:
            print(document[key]["path"])
