"""Shipping: a network compacted, quantized if that is asked for, and written in every form."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ellzero.c.storage import StorageChoice
from ellzero.compaction.compact import compacted_of
from ellzero.compaction.folding import folded
from ellzero.compaction.living import DeadWarning, warn_if_dead
from ellzero.data.data import Data
from ellzero.errors import InputError
from ellzero.export.c.blob import WeightsIn
from ellzero.export.c.plan import plan
from ellzero.export.c.source import (
    CSource,
    check_name,
    check_storage,
    check_weights,
    export_c,
)
from ellzero.export.onnx_file import OnnxFile, export_onnx, require_libraries
from ellzero.export.package import AROUND, Package, check_package, paths_of
from ellzero.graph import Network, trace
from ellzero.packed.pack import CodeWarning, Packed, pack
from ellzero.progress import waiting
from ellzero.pruning.budget import Budget
from ellzero.quantization.quantize import BITS, quantize
from ellzero.record import Evaluation
from ellzero.run_folder import WRITTEN
from ellzero.runs import Run
from ellzero.training.evaluation import evaluate


@dataclass(frozen=True)
class Destinations:
    """Where a network is shipped to: one or more files.

    Args:
        ellz: packed file.
        onnx: ONNX model.
        c: folder for C source.
        name: name of the C files and functions.
        storage: how weights lie in C, as `export_c` takes it; "dense" is the network as it is.
        c_weights: in "arrays" of the C, or in a "blob", a binary file beside it.
        package: what lies around the C, as `export_c` takes it.
        overwrite: whether files that are there already may be replaced.

    Raises:
        InputError: no file at all; a name that is no C identifier; an unknown storage; what cannot
            be written, or is there already.

    Example:
        >>> import tempfile, ellzero as ez
        >>> folder = tempfile.mkdtemp()
        >>> ez.Destinations(ellz=f"{folder}/net.ellz", c=f"{folder}/net-c").name
        'net'
    """

    _: KW_ONLY
    ellz: str | Path | None = None
    onnx: str | Path | None = None
    c: str | Path | None = None
    name: str = "net"
    storage: StorageChoice = "smallest"
    c_weights: WeightsIn = "arrays"
    package: Package = "project"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_storage(self.storage)
        check_weights(self.c_weights)
        check_package(self.package)
        folders = [] if self.c is None else [Path(self.c)]
        for c in folders:
            check_name(self.name)
            if c.exists() and not c.is_dir():
                raise InputError(f"{c} is a file; expected a folder for C source")
        of_c = (self.name, self.storage, self.c_weights, self.package)
        if not folders and of_c != ("net", "smallest", "arrays", "project"):
            raise InputError(
                "name (--name), storage (--storage), weights (--c-weights) and package (--package) "
                "are those of C source; name its folder (--c), or leave them out"
            )
        if not self.files:
            raise InputError("nothing to write: name a packed file, an ONNX file or a C folder")
        for path in (*self._single_files, *folders):
            if not path.parent.is_dir():
                raise InputError(f"cannot write {path}: there is no folder {path.parent}")
        for file in self.files:
            if file.is_dir():
                raise InputError(f"{file} is a folder; give the name of a file")
            if file.exists() and not self.overwrite:
                around = self.c is not None and file.name in AROUND
                without = "leave it out (--package source)" if around else "give another name"
                raise InputError(
                    f"{file} is there already; {without}, or overwrite it (--overwrite)"
                )
        paths = [*self.files, *folders]
        if len({path.resolve() for path in paths}) < len(paths):
            raise InputError("two of the outputs are one path; give each a name of its own")

    @property
    def files(self) -> list[Path]:
        """All that is written."""
        if self.c is None:
            return self._single_files
        of_c = paths_of(self.name, self.package, blob=self.c_weights == "blob")
        return [*self._single_files, *(Path(self.c) / path for path in of_c)]

    @property
    def _single_files(self) -> list[Path]:
        return [Path(path) for path in (self.ellz, self.onnx) if path is not None]


@dataclass(frozen=True)
class Quantization:
    """How a network is quantized before it is shipped: bits, int8, activations or a budget.

    Args:
        bits: bits a weight of k-means codebooks, 2 to 8.
        int8: whether the weights become uniform int8.
        activations: 8 for a network of integers, weights and values; `ez.quantize` says more.
        budget: what may be lost on validation data; the fewest bits within it are found.
        finetune_epochs: epochs for which the codebooks are trained, or the network of integers.
        biases: bits of a bias, 2 to 8; by default 16.
        uniform: whether the values that bits are given for are multiples of a step.

    Raises:
        InputError: none or several of the four; bits, activations or epochs that are no such
            number; bits of biases for a network of integers.

    Example:
        >>> import ellzero as ez
        >>> ez.Quantization(bits=4, finetune_epochs=5).needs_data
        True
    """

    _: KW_ONLY
    bits: int | None = None
    int8: bool = False
    activations: int | None = None
    budget: Budget | None = None
    finetune_epochs: int = 0
    biases: int | None = None
    uniform: bool = False

    def __post_init__(self) -> None:
        given = self.bits, self.activations, self.budget
        ways = self.int8 + sum(way is not None for way in given)
        if ways != 1:
            raise InputError(
                f"{ways or 'none'} of the four ways to quantize: bits (--bits), int8 (--int8), "
                "activations (--activations) and a budget (--max-accuracy-drop); give one"
            )
        if self.activations not in (None, 8):
            raise InputError(f"activations (--activations) is {self.activations!r}; expected 8")
        if self.bits is not None and (type(self.bits) is not int or self.bits not in BITS):
            raise InputError(
                f"bits (--bits) is {self.bits!r}; expected a whole number from {BITS[0]} to "
                f"{BITS[-1]}"
            )
        if self.uniform and self.bits is None:
            raise InputError("uniform values (--uniform) are as exact as --bits says; give bits")
        if self.biases is not None and (type(self.biases) is not int or self.biases not in BITS):
            raise InputError(
                f"biases (--biases) is {self.biases!r}; expected a whole number from {BITS[0]} to "
                f"{BITS[-1]}"
            )
        if type(self.finetune_epochs) is not int or self.finetune_epochs < 0:
            raise InputError(
                f"finetune_epochs (--finetune) is {self.finetune_epochs!r}; expected a whole "
                "number >= 0"
            )
        if self.activations is not None and self.biases is not None:
            raise InputError("a network of integers has biases of 32 bits; leave --biases out")

    @property
    def needs_data(self) -> bool:
        """Whether it cannot be done without data."""
        of_values = self.budget is not None or self.activations is not None
        return of_values or self.finetune_epochs > 0


@dataclass(frozen=True)
class Shipped:
    """What `ship` wrote.

    Args:
        float32_bytes: four for each parameter of the network as given.
        kept: what could not be compacted, and why.
        bits: of each quantized weight; None where nothing was quantized.
        before: what the network reached on validation data before it was quantized; None where
            that took no data.
        after: what it reached afterwards.
        scores_accuracy: whether their score is an accuracy.
        ellz: the packed file.
        onnx: the ONNX model.
        c: the C source.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> files = ez.Destinations(ellz=f"{tempfile.mkdtemp()}/net.ellz")
        >>> shipped = ez.ship(torch.nn.Linear(8, 4), files, example=torch.zeros(1, 8))
        >>> shipped.float32_bytes, shipped.to_table()["ellz"]["self_contained"]
        (144, True)
    """

    float32_bytes: int
    kept: tuple[str, ...]
    bits: Mapping[str, int] | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    scores_accuracy: bool = False
    ellz: Packed | None = None
    onnx: OnnxFile | None = None
    c: CSource | None = None

    def to_table(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        table: dict[str, Any] = {"float32_bytes": self.float32_bytes, "kept": list(self.kept)}
        if self.bits is not None:
            table["quantized"] = {"bits": dict(self.bits)}
        if self.before is not None and self.after is not None:
            scores = {"validation_score": self.after.score}
            table["quantized"] |= scores | {"validation_score_before": self.before.score}
        for form, file in (("ellz", self.ellz), ("onnx", self.onnx)):
            if file is not None:
                more = asdict(file)
                path, size = str(more.pop("path")), more.pop("size_bytes")
                table[form] = {"path": path, "bytes": size, **more}
        if self.c is not None:
            table["c"] = {
                "path": str(self.c.folder),
                "bytes": self.c.constant_bytes,
                "scratch_bytes": self.c.scratch_bytes,
                "layers": [asdict(layer) for layer in self.c.layers],
            }
        return table


def ship(
    source: Run | nn.Module,
    destinations: Destinations,
    quantization: Quantization | None = None,
    *,
    data: Data | str | None = None,
    example: Tensor | None = None,
    progress: bool = True,
) -> Shipped:
    """Compact a network, quantize it if that is asked for, and write it: packed, as ONNX, as C.

    Of a network with a part that is code (an opaque one) the packed file has that part's name
    alone: to load it takes the network's class.

    Args:
        source: what `ez.open_run` gave, or a network; it does not change.
        destinations: the files.
        quantization: how it is quantized; by default it is not.
        data: what judges a budget, fine-tunes and shows the ranges of values; of a run
            also the name of a data set, by default the one that it was made with. Nothing else
            takes data.
        example: a batch (N, ...) of a network's inputs; a run and a traced network need none.
        progress: show on standard error how far it is: a bar on a terminal, elsewhere a line
            every 30 seconds where that can be told.

    Raises:
        InputError: a network that cannot be traced or has no C; data that are missing, do not fit
            or are for nothing; a destination that is a file of the run.
        BudgetError: no number of bits stays within the budget.

    Example:
        >>> import tempfile, pathlib, torch, ellzero as ez
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
        >>> files = ez.Destinations(ellz=folder / "net.ellz", c=folder / "net-c")
        >>> shipped = ez.ship(model, files, ez.Quantization(bits=2), example=torch.zeros(1, 8))
        >>> shipped.bits, sorted(path.name for path in folder.iterdir())
        ({'0.weight': 2}, ['net-c', 'net.ellz'])
    """
    if data is not None and (quantization is None or not quantization.needs_data):
        raise InputError(
            "data (--data) are for a budget (--max-accuracy-drop), fine-tuning (--finetune) and "
            "integers (--activations); give one of them, or leave the data out"
        )
    integers = quantization is not None and quantization.activations is not None
    if integers and destinations.c_weights != "arrays":
        raise InputError(
            "C of integers (--activations) has its weights in arrays; leave --c-weights out"
        )
    if destinations.onnx is not None:
        require_libraries()  # before other files are written, and minutes of fine-tuning
    # a network or run of our own, so that quantization leaves the given one as it is
    if isinstance(source, Run):
        _require_apart(destinations, source)
        source = replace(source)
        model, traced = source.model, source.trace
    else:
        model = copy.deepcopy(source)
        traced = partial(trace, model, example)
    with waiting("tracing", shown=progress):
        whole = traced()
    if destinations.c is not None and not integers:
        plan(whole)  # says now what there is no C for, not after minutes of fine-tuning
    changed = folded(whole)
    warn_if_dead(changed)
    float32_bytes = 4 * sum(p.numel() for p in model.parameters())
    with waiting("compacting", shown=progress):
        compacted = compacted_of(changed)
    network, kept = compacted.model, compacted.kept
    if destinations.ellz is not None and network.graph.opaque:
        name = network.graph.opaque[0].named
        kept = (*kept, f"{name} is code: of it the packed file holds the name alone")
    shipped = Shipped(float32_bytes, kept)
    if quantization is not None:
        examples = _data(source, data) if quantization.needs_data else None
        shipped, network = _quantized(shipped, network, quantization, examples, progress)
    with warnings.catch_warnings():
        # what is dead has been said of the whole network; what was compacted has other counts
        warnings.simplefilter("ignore", DeadWarning)
        warnings.simplefilter("ignore", CodeWarning)  # which `kept` says
        ellz = onnx = c = None
        if destinations.ellz is not None:
            ellz = pack(network, destinations.ellz, progress=progress)
        if destinations.onnx is not None:
            with waiting("writing ONNX", shown=progress):
                onnx = export_onnx(network, destinations.onnx)
        if destinations.c is not None:
            storage = destinations.storage
            of_c = whole if storage == "dense" and not integers else network
            with waiting("writing C", shown=progress):
                c = export_c(
                    of_c,
                    destinations.c,
                    name=destinations.name,
                    storage=storage,
                    weights=destinations.c_weights,
                    package=destinations.package,
                    remark=_measured(shipped),
                )
    return replace(shipped, ellz=ellz, onnx=onnx, c=c)


def _require_apart(destinations: Destinations, run: Run) -> None:
    """Refuse to write what is shipped, or another file of its run's own, whatever may be replaced.

    Raises:
        InputError: which file it is.
    """
    of_run = [run.file] if run.folder is None else [run.file, *map(run.folder.joinpath, WRITTEN)]
    taken = {file.resolve() for file in of_run}
    for file in destinations.files:
        if file.resolve() in taken:
            raise InputError(f"{file} is a file of the run that is shipped; give another name")


def _data(source: Run | nn.Module, data: Data | str | None) -> Data:
    if isinstance(data, Data):
        return data
    if isinstance(source, Run):
        return source.data(data)
    raise InputError("a budget and fine-tuning need data; give an ez.Data")


def _quantized(
    shipped: Shipped,
    network: Network,
    how: Quantization,
    data: Data | None,
    progress: bool,
) -> tuple[Shipped, Network]:
    """The quantized network, and what came of it, measured where there are data."""
    before = None if data is None else evaluate(network, data)
    if data is not None:
        shipped = replace(shipped, scores_accuracy=data.scores_accuracy)
    if how.activations is not None:
        assert data is not None
        form = quantize(network, activations=8, data=data)
        if how.finetune_epochs:
            form.finetune(data, epochs=how.finetune_epochs, progress=progress)
        network, kept = form.model, (*shipped.kept, *form.left_out)
        layers = [node for node in network.graph.nodes if "weight" in node.weights]
        bits = {node.weights["weight"]: 8 for node in layers}
        after = evaluate(network, data)
        return replace(shipped, kept=kept, bits=bits, before=before, after=after), network
    quantized = quantize(
        network,
        bits=how.bits,
        method="int8" if how.int8 else "uniform" if how.uniform else "kmeans",
        biases=how.biases,
        data=None if how.budget is None else data,
        budget=how.budget,
        progress=progress,
    )
    if how.finetune_epochs and data is not None:
        quantized.finetune(data, epochs=how.finetune_epochs, progress=progress)
    after = None if data is None else evaluate(network, data)
    return replace(shipped, bits=quantized.bits, before=before, after=after), network


def _measured(shipped: Shipped) -> str:
    """What the quantized network reached, for the C's header; "" where nothing was measured."""
    if shipped.before is None or shipped.after is None:
        return ""
    before, after = shipped.before.score, shipped.after.score
    return f"Score on validation data: {after:.4f}; before it was quantized {before:.4f}."
