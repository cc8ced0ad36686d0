"""Reading packed files: every length is checked before memory is taken, and nothing is run."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.files import PACKED_MAGIC, check_format
from ellzero.graph import Graph, limits
from ellzero.operations import Constant, Input, Opaque, Select
from ellzero.packed import version_1
from ellzero.packed.entropy import Decoder
from ellzero.packed.fields import Reader
from ellzero.packed.tensor_fields import MAX_DIMENSIONS, Announced, announced
from ellzero.tensors import Shape

VERSION = 2
FREE_LINES = 1 << 13  # lines that a file of any size may be decoded in: each takes time
LINE_BYTES = 16  # bytes of a file that allow one line more

FREE_TEXT = 1 << 14  # bytes that a text may have, however short it is compressed
TEXT_EXPANSION = 32  # bytes of text that each compressed byte may become
MAX_NAME = 1000
MAX_DEPTH = 64  # of a weight's name: each part of it is a module in a module
FREE_BYTES = 1 << 26  # memory that a file of any size may take
EXPANSION = 4096  # bytes of memory that each byte of a file may take

DICTIONARY = (
    b'{"nodes":[{"name":"input","op":{"kind":"input","size":[3,224,224]}},'
    b'],"preprocess":{"scale":[0.0],"shift":[-0.5]},"classes":["0","1","2","3","4","5","6","7","8","9"]'
    b'"kind":"softmax","log":true'
    b'"kind":"prelu"},"weights":{"slope":".slope""function":"clamp","parameters":[0.0,6.0]'
    b'"function":"leaky_relu","parameters":[0.01]"function":"sigmoid"tanh"silu"gelu"elu'
    b'"hardswish"hardsigmoid"["add"downsample"layer"block"features."classifier."encoder.'
    b'"kind":"pool","function":"average","kernel":[7,7],"stride":[7,7]},"ceil":true'
    b'"kind":"add"},"inputs":["add_1","relu_2"]},{"name":"adaptive_avg_pool2d'
    b'"kind":"affine"},"weights":{"scale":"bn1.scale","shift":"bn1.shift"}},'
    b'"kind":"conv","stride":[2,2],"padding":[1,1],"dilation":[2,2],"groups":32},"inputs":["'
    b'{"name":"max_pool2d_1","op":{"kind":"pool","function":"max","kernel":[2,2],"stride":[2,2]},'
    b'"inputs":["conv1"]},{"name":"conv2","op":{"kind":"conv"},"inputs":["max_pool2d"],'
    b'"weights":{"weight":"conv2.weight","bias":"conv2.bias"}},'
    b'{"nodes":[{"name":"x","op":{"kind":"input","size":[1,28,28]}},'
    b'{"name":"flatten","op":{"kind":"flatten"},"inputs":["x"]},'
    b'{"name":"view","op":{"kind":"flatten"},"inputs":["relu_2"]},'
    b'{"name":"view_select","op":{"kind":"select"},"inputs":["view"],'
    b'"weights":{"indices":"view_select.indices"}},'
    b'{"name":"relu","op":{"kind":"activation","function":"relu"},"inputs":["fc1"]},'
    b'{"name":"fc2","op":{"kind":"linear"},"inputs":["relu_1"],'
    b'"weights":{"weight":"fc2.weight","bias":"fc2.bias"}}]}'
)
"""Text that graphs are likely to repeat, with which deflate begins; a part of the format."""


class Content(IntEnum):
    """What a file's text is: the names of its weights, or a graph."""

    WEIGHTS = 0
    NETWORK = 1


@dataclass(frozen=True, eq=False)
class Announcement:
    """All that a file says about itself, before any memory is taken for its weights."""

    graph: Graph | None
    tensors: Mapping[str, Announced | version_1.Announced]
    codes: bytes
    size: int

    @property
    def memory_bytes(self) -> int:
        """Memory that the weights take once they are loaded."""
        return sum(tensor.memory_bytes for tensor in self.tensors.values())

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of one example at every node.

        Raises:
            InputError: a graph that makes no sense with these weights.
        """
        sizes = {name: tensor.shape for name, tensor in self.tensors.items()}
        return {} if self.graph is None else self.graph.shapes(sizes)

    def require_bounded(self, max_bytes: int | None, max_macs: int | None) -> None:
        """Refuse what takes more than it may: weights once loaded, or the graph once it runs.

        Args:
            max_bytes: by default 64 MiB or 4096 times the file's bytes for the weights, whichever
                is more, and `limits.MAX_BYTES` for an example on its way.
            max_macs: by default `limits.MAX_MACS`.

        Raises:
            InputError: it takes more.
        """
        limit = max(FREE_BYTES, EXPANSION * self.size) if max_bytes is None else max_bytes
        if self.memory_bytes > limit:
            raise InputError(
                f"it takes {self.memory_bytes} bytes of memory, more than {limit}; if the file "
                f"can be trusted: ez.load(path, max_bytes={self.memory_bytes}), or a command with "
                "--trust"
            )
        if self.graph is not None:
            limits.require_bounded(
                self.graph,
                self.shapes,
                {name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()},
                max_bytes=limits.MAX_BYTES if max_bytes is None else max_bytes,
                max_macs=limits.MAX_MACS if max_macs is None else max_macs,
            )


def is_packed(path: Path) -> bool:
    """Whether a file begins as packed files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(PACKED_MAGIC)) == PACKED_MAGIC


def read_packed(
    path: Path, *, max_bytes: int | None = None, max_macs: int | None = None
) -> tuple[Graph | None, dict[str, Tensor]]:
    """The graph of a packed file, where it holds one, and the weights by their names.

    Args:
        path: the file.
        max_bytes: memory that the weights, and one example on its way, may take; see
            `Announcement.require_bounded`.
        max_macs: multiply-adds that one example may take.

    Raises:
        InputError: a file that is damaged, hostile, of another version, or takes more.
    """
    content = path.read_bytes()
    try:
        file = announcement(content)
        file.require_bounded(max_bytes, max_macs)
        decoder = Decoder(file.codes)
        weights: list[Tensor] = []
        for tensor in file.tensors.values():
            weights.append(tensor.code(decoder, weights))
        decoder.finish()
        tensors = dict(zip(file.tensors, weights, strict=True))
        if file.graph is not None:
            _check_indices(file.graph, file.shapes, tensors)
    except InputError as error:
        raise InputError(f"{path} cannot be loaded: {error}") from None
    return file.graph, tensors


def announcement(content: bytes) -> Announcement:
    """What the bytes of a file say about themselves.

    Raises:
        InputError: no packed file; of another version; damaged; or it makes no sense.
    """
    version, body = _body(content)
    reader = Reader(body)
    kind = reader.byte()
    if kind not in tuple(Content):
        raise InputError(f"its kind is {kind}; expected 0 or 1")
    text = _text(reader)
    graph = Graph.from_json(text) if kind == Content.NETWORK else None
    names = _names(text) if graph is None else list(graph.weight_names())
    for name in names:
        if len(name) > MAX_NAME or name.count(".") >= MAX_DEPTH:
            raise InputError(
                f"a weight's name has {len(name)} characters and {name.count('.')} dots; expected "
                f"at most {MAX_NAME} and fewer than {MAX_DEPTH}"
            )
    if version == 1:
        tensors = {name: version_1.announced(reader) for name in names}
    else:
        tensors = dict(zip(names, _announced(reader, len(names), len(content)), strict=True))
    if graph is not None:
        _check_graph(graph, tensors)
    return Announcement(graph, tensors, reader.take(reader.left), len(content))


def _announced(reader: Reader, count: int, size: int) -> list[Announced]:
    tensors: list[Announced] = []
    for _ in range(count):
        tensors.append(announced(reader, tensors))
    lines = sum(tensor.line_shape[0] for tensor in tensors)
    if lines > most_lines(size):
        raise InputError(f"its weights are coded in {lines} lines, too many for {size} bytes")
    return tensors


def _body(content: bytes) -> tuple[int, bytes]:
    """The version, and what follows the header, once that has been checked."""
    reader = Reader(content)
    if reader.take(len(PACKED_MAGIC)) != PACKED_MAGIC:
        raise InputError("it is no packed file")
    version = reader.byte()
    if not 1 <= version <= VERSION:
        check_format("the file", version, VERSION)
        raise InputError(f"its version is {version}; the first one was 1")
    checksum = int.from_bytes(reader.take(4), "little")
    content = reader.take(reader.left)
    reader = Reader(content)
    length = reader.varint()
    if length != reader.left:
        raise InputError(f"it is cut or extended: {reader.left} bytes instead of {length}")
    if zlib.crc32(content) != checksum:
        raise InputError("it is damaged: its checksum is another")
    return version, reader.take(length)


def most_lines(size: int) -> int:
    """Lines that a packed file of this size may be decoded in."""
    return FREE_LINES + size // LINE_BYTES


def _text(reader: Reader) -> bytes:
    length, compressed = reader.varint(), reader.varint()
    if length > FREE_TEXT + TEXT_EXPANSION * compressed:
        raise InputError(f"its text is said to have {length} bytes, compressed to {compressed}")
    inflate = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        text = inflate.decompress(reader.take(compressed), length + 1)
    except zlib.error as error:
        raise InputError(f"its text cannot be decompressed: {error}") from None
    if len(text) != length or not inflate.eof or inflate.unused_data:
        raise InputError(f"its text does not have the {length} bytes that are announced")
    return text


def _names(text: bytes) -> list[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("the names of its weights are no list of strings")
    if len(set(names)) < len(names):
        raise InputError("two of its weights have one name")
    return names


def _check_graph(graph: Graph, tensors: Mapping[str, Announced | version_1.Announced]) -> None:
    """What the shapes do not say: types, dimensions of the input, and finite preprocessing."""
    for node in graph.nodes:
        if isinstance(node.op, Input) and len(node.op.size) > MAX_DIMENSIONS:
            raise InputError(f"its input has {len(node.op.size)} dimensions")
    roles = [(node, role, name) for node in graph.nodes for role, name in node.weights.items()]
    common = {dtype for _, _, name in roles if (dtype := tensors[name].dtype).is_floating_point}
    if len(common) > 1:
        raise InputError(f"its weights are of several types: {', '.join(map(str, common))}")
    for node, role, name in roles:
        dtype = tensors[name].dtype
        if isinstance(node.op, Constant | Opaque):  # which may have tokens, or a mask
            continue
        expected = node.op.INTEGERS.get(role, torch.int64 if role == "indices" else None)
        if not dtype.is_floating_point if expected is None else dtype != expected:
            raise InputError(f"{node.name}: its {role} are {dtype}")
    # of halves torch rounds the numbers itself, most of them in float32
    largest = torch.finfo(torch.float64 if torch.float64 in common else torch.float32).max
    for node in graph.nodes:
        for number in _floats(dict(node.op)):
            if abs(number) > largest:
                raise InputError(f"{node.named}: no float of its weights' type holds {number:g}")
    if graph.preprocess is not None:
        for number in _floats((graph.preprocess.scale, graph.preprocess.shift)):
            if not abs(number) <= largest:
                raise InputError(f"its preprocessing is {graph.preprocess}")


def _floats(settings: object) -> Iterator[float]:
    """All numbers in settings that are no integers."""
    if isinstance(settings, float):
        yield settings
    elif isinstance(settings, tuple | dict):
        for part in settings.values() if isinstance(settings, dict) else settings:
            yield from _floats(part)


def _check_indices(
    graph: Graph, shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor]
) -> None:
    for node in graph.nodes:
        if "indices" in node.weights:
            indices = tensors[node.weights["indices"]]
            axis = node.op.axis if isinstance(node.op, Select) else 0
            channels = shapes[node.inputs[0]][axis]
            inside = bool(((indices >= 0) & (indices < channels)).all())
            if not inside or not bool((indices.diff() > 0).all()):
                raise InputError(f"{node.name}: its indices are not ascending below {channels}")
