"""ONNX: a network as a model file for other runtimes, compared with the network before it stays."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ellzero import __version__
from ellzero.compaction.folding import folded
from ellzero.compaction.living import warn_if_dead
from ellzero.errors import InputError
from ellzero.export.onnx_integers import integer_proto
from ellzero.export.onnx_weights import name_by_weights, store_as_int8
from ellzero.files import write_atomically
from ellzero.graph import Network, trace
from ellzero.graph.graph import Output, free_name
from ellzero.graph.network import outputs_of
from ellzero.graph.trace import Example, batches_of, quiet
from ellzero.operations.integer import Dequantize, is_integer

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCE = 1e-5
"""How far onnxruntime's outputs may be off: absolutely, or relative to the largest output."""

STEPS = 4
"""How many steps of their int8 the outputs of an integer network may be off: ONNX rounds halves to
even, the network up."""

BATCHES = (1, 3)
"""Batch sizes on which the file is compared with the network."""

LIMIT = 2**31 - 1  # protobuf's, of one message


@dataclass(frozen=True)
class OnnxFile:
    """A file that `export_onnx` wrote.

    Args:
        path: the file.
        size_bytes: its size.
        difference: largest difference between onnxruntime's outputs and the network's, relative to
            the largest output where that is above 1; None where onnxruntime is not installed, so
            that nothing was compared.

    Example:
        >>> import pathlib, ellzero as ez
        >>> written = ez.OnnxFile(pathlib.Path("small.onnx"), size_bytes=1_312, difference=6e-8)
        >>> f"{written.path}: {written.size_bytes:,} bytes"
        'small.onnx: 1,312 bytes'
    """

    path: Path
    size_bytes: int
    difference: float | None


def export_onnx(model: nn.Module, path: str | Path, example: Example | None = None) -> OnnxFile:
    """Write a network as an ONNX model that takes batches of any size.

    It computes what the network computes in evaluation mode; its input is named `input`, its output
    `output`; of several each has its name in the network (outputs without names are `output_0`,
    `output_1` ...). The metadata hold, as JSON, `ellzero.preprocess` (`x * scale + shift`, which is
    to be applied before: it is no part of the model), `ellzero.classes` and `ellzero.sparsity`, for
    each matrix or kernel its weights and nonzeros; also `ellzero.version`. Where onnxruntime is
    installed, the model is run and compared with the network before anything is written. Written
    atomically. A warning names layers without a weight and outputs that are constant.

    Weights that are int8 times one scale (after `ez.quantize(method="int8")`) are stored so. An
    integer network (`ez.quantize(activations=8)`) is written in QDQ form, which runtimes compute in
    integers: its outputs may be some steps of their int8 off, as ONNX rounds halves to even.

    Args:
        model: a network that `ez.trace` can trace, or one that it has traced; it does not change.
        path: the file; an existing one is replaced.
        example: a batch (N, ...) of inputs, of several a list or a dictionary; a traced network
            needs none.

    Raises:
        InputError: no example; a network that cannot be traced, or whose operations ONNX lacks;
            weights that are NaN or infinite; the extra `export` is not installed; onnxruntime's
            outputs differ by more than 1e-5, those of integers by more than 4 steps.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = ez.export_onnx(model, f"{folder}/small.onnx", torch.zeros(1, 4))
        >>> written.difference < 1e-5
        True
    """
    require_libraries()
    network = trace(model, example).cpu()
    if any(is_integer(node.op) for node in network.graph.nodes):
        return _of_integers(network, Path(path), example)
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{name} {tuple(tensor.shape)} holds NaN or inf; it is not exported")
    warn_if_dead(folded(network))
    _require_precise(network)
    batches = [_inputs(network, size, example) for size in BATCHES]
    proto = _converted(network, batches[-1])
    _strip(proto)
    name_by_weights(proto, network)
    store_as_int8(proto, network)
    return _written(proto, network, batches, Path(path))


def _of_integers(network: Network, path: Path, example: Example | None) -> OnnxFile:
    """The file of an integer network."""
    proto = integer_proto(network)
    batches = [_inputs(network, size, example) for size in BATCHES]
    (scale,) = [node.op.scale for node in network.graph.nodes if isinstance(node.op, Dequantize)]
    return _written(proto, network, batches, path, step=scale)


def _written(
    proto: ModelProto,
    network: Network,
    batches: Sequence[tuple[Tensor, ...]],
    path: Path,
    *,
    step: float | None = None,
) -> OnnxFile:
    """Compare a model with the network, write it, and tell of it; `step` is that of its outputs."""
    for key, value in _metadata(network).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = f"ellzero.{key}", value
    if proto.ByteSize() > LIMIT:
        raise InputError(f"the model takes {proto.ByteSize():,} bytes; one ONNX file holds 2 GB")
    content = proto.SerializeToString()
    difference = _difference(content, network, batches, step)
    write_atomically(path, content)
    return OnnxFile(path, len(content), difference)


def require_libraries() -> None:
    """Make sure that an ONNX file can be written here.

    Raises:
        InputError: a library is missing.
    """
    for module in ("onnx", "onnxscript"):
        if not _can_import(module):
            raise InputError(f"an ONNX file needs {module}: pip install 'ellzero[export]'")


def _can_import(module: str) -> bool:
    """Whether a package is there, and works: a broken one is as good as none."""
    try:
        import_module(module)
    except ImportError:
        return False
    return True


def _require_precise(network: Network) -> None:
    """Refuse a precision in which nothing can be compared."""
    dtype = next((weight.dtype for weight in network.parameters()), torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"the network computes in {dtype}, too roughly to be compared to {TOLERANCE:g}; export "
            "model.float()"
        )


def _inputs(network: Network, size: int, example: Example | None) -> tuple[Tensor, ...]:
    """A batch of each input: random numbers, or of integers the example repeated."""
    random = network.examples(size, torch.Generator().manual_seed(size))
    if example is None:
        return random
    repeated = [x.cpu()[torch.arange(size) % len(x)] for x in batches_of(example)]
    return tuple(
        x.to(value.dtype) if value.is_floating_point() else value
        for x, value in zip(random, repeated, strict=True)
    )


def _converted(network: Network, inputs: tuple[Tensor, ...]) -> ModelProto:
    batch = torch.export.Dim("batch")
    dynamic = {"inputs": tuple({0: batch} for _ in inputs)}
    names = (list(network.graph.inputs) if len(inputs) > 1 else ["input"], _output_names(network))
    # names that nothing else in the model has; torch does not look whether one is taken
    own = [
        [f"{part}{number}_of_network" for number in range(len(known))]
        for part, known in zip("xy", names, strict=True)
    ]
    plain = tuple(Output(node=output.node) for output in network.graph.outputs)  # a tuple of them
    weights = {name: network.weight(name) for name in network.graph.weight_names()}
    network = Network(network.graph.model_copy(update={"outputs": plain}), weights).eval()
    with quiet("torch.onnx", logging.ERROR):
        try:
            program = torch.onnx.export(
                network,
                inputs,
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=own[0],
                output_names=own[1],
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = _first_cause(error)
            raise InputError(f"the network cannot be said in ONNX: {reason}") from error
    assert program is not None
    proto = program.model_proto
    _rename(proto, dict(zip(chain(*own), chain(*names), strict=True)))
    return proto


def _rename(proto: ModelProto, names: Mapping[str, str]) -> None:
    """Give values other names; those within the model that have such a name get another one."""
    graph = proto.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    new = {name: free_name(name, {*taken, *names.values()}) for name in names.values()} | {**names}
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [new.get(name, name) for name in values]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new.get(value.name, value.name)


def _output_names(network: Network) -> list[str]:
    outputs = network.graph.outputs
    if not outputs:
        return ["output"]
    return [output.name or f"output_{number}" for number, output in enumerate(outputs)]


def _first_cause(error: BaseException) -> str:
    """The first line of what lies at the bottom of torch's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _strip(proto: ModelProto) -> None:
    """Leave out the exporter's notes, which tell the paths of this machine's source files."""
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    in_functions = (part for f in proto.functions for part in (f, *f.node))
    for part in (proto, graph, *graph.node, *values, *in_functions):
        del part.metadata_props[:]


def _metadata(network: Network) -> dict[str, str]:
    """What travels with the model, by key, as JSON but for the version."""
    graph = network.graph
    sparsity = {
        name: {"weights": w.numel(), "nonzeros": int(w.count_nonzero())}
        for name, w in network.named_parameters()
        if w.ndim > 1
    }
    total = {key: sum(row[key] for row in sparsity.values()) for key in ("weights", "nonzeros")}
    return {
        "version": __version__,
        "preprocess": json.dumps(graph.preprocess and asdict(graph.preprocess)),
        "classes": json.dumps(graph.classes),
        "sparsity": json.dumps({**total, "layers": sparsity}),
    }


def _largest_difference(outputs: Tensor, expected: Tensor) -> float:
    """Relative to the largest output or 1; NaN and inf are right where the network gives them."""
    outputs = outputs.double()
    same = (outputs == expected) | (outputs.isnan() & expected.isnan())
    off = (outputs - expected).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    off = off.masked_fill(same, 0.0)
    size = expected[expected.isfinite()].abs()
    return float(off.max() / max(1.0, float(size.max()) if size.numel() else 0.0))


def _difference(
    content: bytes, network: Network, batches: Sequence[tuple[Tensor, ...]], step: float | None
) -> float | None:
    """How far onnxruntime's outputs are from the network's, if it is installed.

    Raises:
        InputError: too far; of integers in steps of the outputs.
    """
    if not _can_import("onnxruntime"):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session: Any = onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"]
    )
    difference = steps = 0.0
    for inputs in batches:
        with torch.no_grad():
            expected = outputs_of(network(*inputs))
        names = [known.name for known in session.get_inputs()]
        given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        for output, right in zip(session.run(None, given), expected, strict=True):
            outputs, exact = torch.from_numpy(output), right.double()
            difference = max(difference, _largest_difference(outputs, exact))
            if step is not None:
                steps = max(steps, float((outputs - exact).abs().max()) / step)
    if not (difference <= TOLERANCE if step is None else steps <= STEPS + 0.5):
        by, most = (f"{difference:.2g}", f"{TOLERANCE:g}")
        if step is not None:
            by, most = f"{steps:.0f} steps of its integers", str(STEPS)
        raise InputError(
            f"onnxruntime's outputs differ from the network's by {by}, more than {most}; nothing "
            "was written"
        )
    return difference
