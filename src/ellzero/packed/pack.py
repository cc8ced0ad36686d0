"""Packed files, `.ellz`: a network in few bytes, exactly; docs/format.md explains every byte."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from ellzero.compaction.folding import folded
from ellzero.compaction.living import warn_if_dead, warn_if_empty
from ellzero.errors import EllzeroWarning, InputError, warn
from ellzero.files import PACKED_MAGIC, copied, write_atomically
from ellzero.graph import Graph, Network, trace
from ellzero.graph.trace import require_dense
from ellzero.packed.choosing import MAX_LINES, announce
from ellzero.packed.entropy import Encoder
from ellzero.packed.fields import varint
from ellzero.packed.layouts import Layout, layouts
from ellzero.packed.reader import (
    DICTIONARY,
    FREE_LINES,
    VERSION,
    Content,
    announcement,
)
from ellzero.packed.tensor_fields import DTYPES, Announced
from ellzero.progress import shown_progress


@dataclass(frozen=True)
class Packed:
    """A packed file, and where its bytes are.

    Args:
        path: the file.
        size_bytes: all of it.
        parts: bytes of its parts: "header", "architecture" (or the names of the weights), "fields"
            (types, shapes, counts), "values" (codebooks, biases, whatever is not coded), "codes".
        self_contained: whether the architecture is in it, so that `ez.load(path)` needs no model.

    Example:
        >>> import tempfile, pathlib, torch, ellzero as ez
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.ellz"
        >>> packed = ez.pack(torch.nn.Linear(4, 3), path, torch.zeros(1, 4))
        >>> packed.size_bytes == sum(packed.parts.values()) == path.stat().st_size
        True
    """

    path: Path
    size_bytes: int
    parts: dict[str, int]
    self_contained: bool


class CodeWarning(EllzeroWarning):
    """Category of the warning that a packed file lacks code, and holds its name alone."""


def pack(
    model: nn.Module, path: str | Path, example: Tensor | None = None, *, progress: bool = True
) -> Packed:
    """Write a network into as few bytes as will hold its weights exactly.

    Nothing is rounded here: quantize first for a file that is small because its weights take few
    values, prune for zeros, compact for fewer rows. Masks and values are entropy coded, an n-fold
    symbol of N at a cost of `log2(N / n)` bits. A zero loses its sign.

    The file holds the architecture too where the network can be traced into operations that are
    data (`ez.trace`): then `ez.load(path)` gives it back. Where it cannot (a warning says why), and
    without an example, the file holds the state_dict, for `ez.load(path, model)`. A warning names
    layers without a weight and, of a network that was traced, outputs that are constant.

    Args:
        model: the network, or what `ez.trace` made of it with its preprocessing and classes.
        path: the file, `.ellz` by custom; an existing one is replaced.
        example: a batch (N, ...) of inputs, of any N; a network that was traced needs none.
        progress: show on standard error how far it is: a bar on a terminal, elsewhere a line
            every 30 seconds.

    Raises:
        InputError: a weight that is NaN, infinite or of a type that cannot be written; constriction
            is not installed.

    Example:
        >>> import tempfile, pathlib, torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(100, 10), torch.nn.ReLU())
        >>> _ = ez.prune(model, sparsity=0.99)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.ellz"
        >>> packed = ez.pack(model, path, torch.zeros(1, 100))
        >>> packed.size_bytes < 300, packed.self_contained
        (True, True)
        >>> x = torch.randn(5, 100)
        >>> torch.equal(ez.load(path)(x), model(x))
        True
    """
    graph, tensors = _contents(model, example)
    with shown_progress(shown=progress) as bar:
        # each weight is looked at twice: how it is best written, and then it is written
        total = 2 * sum(tensor.numel() for tensor in tensors.values())
        task = bar.add_task("packing", total=total, note="")
        content, parts = to_bytes(graph, tensors, partial(bar.advance, task))
    file = announcement(content)  # what cannot be read is not written
    try:
        file.require_bounded(None, None)
    except InputError as error:
        warn(f"ez.load refuses {path} unless it is told to: {error}")
    write_atomically(Path(path), content)
    is_whole = graph is not None and not graph.opaque
    return Packed(Path(path), len(content), parts, is_whole)


def _contents(model: nn.Module, example: Tensor | None) -> tuple[Graph | None, dict[str, Tensor]]:
    """What is to be written: graph and weights, or else the state_dict alone."""
    require_dense(model)
    if example is None and not isinstance(model, Network):
        return None, _weights(model)
    try:
        network = trace(model, example)
        network.graph.to_json()
        opaque = network.graph.opaque
        if opaque and not isinstance(model, Network):
            raise InputError(f"{opaque[0].named} cannot be written as data")
    except InputError as error:
        warn(
            f"only the weights of {type(model).__name__} are packed, for ez.load(path, model), "
            f"without its architecture: {error}"
        )
        return None, _weights(model)
    if opaque:
        warn(
            f"{opaque[0].named} cannot be written as data: the file holds its name alone, and "
            "ez.load(path, model) needs a network of the class that it was made from",
            CodeWarning,
        )
    warn_if_dead(folded(network))
    names = network.graph.weight_names()
    return network.graph, {name: network.weight(name).detach().cpu() for name in names}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    warn_if_empty(model.named_parameters())
    return copied(model)


def to_bytes(
    graph: Graph | None,
    tensors: Mapping[str, Tensor],
    advance: Callable[[int], object] = lambda weights: None,
) -> tuple[bytes, dict[str, int]]:
    """A packed file's bytes, and how many of them are of which part.

    Args:
        graph: the architecture, or None for a file of weights only.
        tensors: weights by their names, in the order of the graph's.
        advance: told how many weights were looked at since it was told before; twice the whole.

    Raises:
        InputError: as `pack` raises.
    """
    writable = {name: _writable(name, tensor) for name, tensor in tensors.items()}
    announced = _announced(graph, writable, advance)
    text = json.dumps(list(tensors)).encode() if graph is None else graph.to_json()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    compressed = deflate.compress(text) + deflate.flush()
    kind = Content.WEIGHTS if graph is None else Content.NETWORK
    start = bytes([kind]) + varint(len(text)) + varint(len(compressed))
    encoder, weights = Encoder(), list(writable.values())
    for tensor, values in zip(announced, weights, strict=True):
        tensor.code(encoder, weights, values)
        advance(values.numel())
    fields = [(tensor.fields(), tensor.value_bytes()) for tensor in announced]
    codes = encoder.finish()
    body = b"".join([start, compressed, *(part for both in fields for part in both), codes])
    checked = varint(len(body)) + body
    content = PACKED_MAGIC + bytes([VERSION]) + zlib.crc32(checked).to_bytes(4, "little") + checked
    parts = {
        "architecture": len(compressed),
        "fields": sum(len(first) for first, _ in fields),
        "values": sum(len(second) for _, second in fields),
        "codes": len(codes),
    }
    return content, {"header": len(content) - sum(parts.values()), **parts}


def _announced(
    graph: Graph | None, tensors: Mapping[str, Tensor], advance: Callable[[int], object]
) -> list[Announced]:
    """How each tensor is written; one that equals an earlier one is not written again."""
    known = {} if graph is None else layouts(graph, tensors)
    announced: list[Announced] = []
    numbers: dict[tuple[object, ...], int] = {}
    lines_left = FREE_LINES
    for number, (name, tensor) in enumerate(tensors.items()):
        advance(tensor.numel())
        key = tensor.dtype, tuple(tensor.shape), _digest(tensor)
        if key in numbers:
            announced.append(replace(announced[numbers[key]], same=numbers[key]))
            continue
        numbers[key] = number
        announced.append(announce(tensor, known.get(name, Layout()), min(lines_left, MAX_LINES)))
        lines_left -= announced[-1].line_shape[0]
    return announced


def _digest(tensor: Tensor) -> bytes:
    return sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()


def _writable(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise InputError(f"{name} is {tensor.dtype}; a packed file holds {known}")
    if not tensor.isfinite().all():
        raise InputError(f"{name} {tuple(tensor.shape)} holds NaN or inf; it cannot be packed")
    return tensor + 0 if tensor.is_floating_point() else tensor  # no negative zeros
