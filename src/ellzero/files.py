"""Files: atomic writes, and tensors read without ever unpickling."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ellzero.documents import brief, parse_json
from ellzero.errors import InputError, WriteError
from ellzero.sharding import local, whole
from ellzero.tensors import require_held

METADATA_KEY = "ellzero"

PLAIN_FORMAT = 1
"""Version of a model file's metadata where they need have no digest."""

MODEL_FORMAT = 2
"""Version where they have one; a file of a newer one is refused."""

DIGEST = "content_sha256"
"""Where a model file's metadata have the digest of the tensors and of all other metadata."""

PACKED_MAGIC = b"ELLZ"
"""What a packed file begins with."""

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""What safetensors calls a dtype; it lays tensors out by dtype, the last of these first."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: a temporary one beside it takes its place when complete.

    Raises:
        InputError: no such folder; a folder has the file's name.
        WriteError: no space, no permission; what was there before is whole.
    """
    write_parts(path, (content,))


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file atomically that never stands in memory as a whole: one part after another.

    Raises:
        InputError: no such folder; a folder has the file's name.
        WriteError: no space, no permission; what was there before is whole.
    """
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    # named here, so that an interrupt at any moment from its creation on removes it
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def rename(path: Path, name: str) -> None:
    """Give a file another name in its folder; a file of that name is replaced.

    Raises:
        WriteError: no space for the name, no permission; nothing has changed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_atomically(folder / "a", b"text")
        >>> rename(folder / "a", "b")
        >>> (folder / "b").read_bytes()
        b'text'
    """
    try:
        os.replace(path, path.with_name(name))
    except OSError as error:
        raise WriteError(f"cannot rename {path} to {name}: {error.strerror or error}") from error


def _sync(folder: Path) -> None:
    """Make a rename in the folder outlive a loss of power, where the system can."""
    if os.name != "posix":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have no such thing
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, document: Any) -> None:
    """Write one JSON document atomically; NaN and infinities are refused, they are no JSON."""
    text = json.dumps(document, indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def check_format(path: str | Path, version: object, known: int) -> None:
    """Refuse a file whose format is newer than the known one, or no whole number.

    Raises:
        InputError: it is.
    """
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(f"{path} has format {version!r}; expected a whole number")
    if version > known:
        raise InputError(
            f"{path} has format {version}; this ellzero reads up to {known}: install a newer one"
        )


def copied(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """A copy of the network's state_dict on the CPU, of whole tensors.

    Sharded ones are gathered, one at a time; so all processes of a sharded network have to call
    this.

    Args:
        model: the network.
        keep: False where this process needs no copy, and only helps others to theirs.

    Raises:
        InputError: an entry that is not a tensor, or that has no values.
    """
    tensors = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"state_dict entry {name} is {type(value).__name__}; only tensors can be saved"
            )
        require_held(name, local(value))
        value = whole(value.detach())
        if keep:
            tensors[name] = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically, each tensor from its own memory, without a copy of it.

    Args:
        path: the file; an existing one is replaced.
        tensors: dense ones, which may share memory; on the CPU and contiguous, or they are copied
            one at a time.
        metadata: anything JSON can hold; it stands as JSON under the one key "ellzero".

    Raises:
        InputError: a tensor that safetensors has no form for.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "some.safetensors"
        >>> write_tensors(path, {"ones": torch.ones(2)}, {"epoch": 3})
        >>> read_tensors(path)
        ({'ones': tensor([1., 1.])}, {'epoch': 3})
    """
    write_parts(path, tensor_parts(tensors, metadata))


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The bytes that `write_tensors` writes."""
    return b"".join(tensor_parts(tensors, metadata))


def digest(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> str:
    """The SHA-256 of tensors and a document, in hexadecimal: of the file that holds both.

    It covers names, dtypes, shapes, bytes and the document as JSON with sorted keys, so that it is
    the same for what was written and what is read again.

    Raises:
        InputError: a tensor that safetensors has no form for.

    Example:
        >>> import torch
        >>> digest({"ones": torch.ones(2)}, {"epoch": 3})[:16]
        '4017a50fe7a306c6'
    """
    # through JSON first: keys become text there, which sorts otherwise than numbers
    as_read = json.loads(json.dumps(document, allow_nan=False))
    sha256 = hashlib.sha256()
    for part in tensor_parts(tensors, as_read, sort_keys=True):
        sha256.update(part)
    return sha256.hexdigest()


def tensor_parts(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, sort_keys: bool = False
) -> Iterator[bytes | memoryview]:
    """A safetensors file in parts: its header, then each tensor's bytes."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.layout is not torch.strided:
            form = str(tensor.dtype if tensor.layout is torch.strided else tensor.layout)
            raise InputError(
                f"{name} is {form.removeprefix('torch.')}, which safetensors cannot hold; convert "
                "it to a dense tensor of another dtype"
            )
    rank = {dtype: rank for rank, dtype in enumerate(DTYPES)}
    names = sorted(tensors, key=lambda name: (-rank[tensors[name].dtype], name))
    text = json.dumps(metadata, allow_nan=False, sort_keys=sort_keys)
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: text}}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.itemsize
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    yield len(head).to_bytes(8, "little") + head
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file; lengths are checked against the file's first.

    Raises:
        InputError: no such file; truncated or not safetensors; a pickle, which is never unpickled.
    """
    if not path.is_file():
        raise InputError(f"no model file at {path}")
    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = parse_json(texts.get(METADATA_KEY, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            head = file.read(9)
        # the length that safetensors begins with may look like a pickle; a "{" follows that one
        if head.startswith((b"PK", b"\x80")) and len(head) == 9 and head[8:] != b"{":
            raise InputError(
                f"{path} is a pickle (as torch.save writes); ellzero never unpickles a file. Load "
                "it where you trust it, and save it with ez.save or safetensors"
            ) from None
        if head.startswith(PACKED_MAGIC):
            raise InputError(
                f"{path} is a packed file, expected safetensors; ez.load reads it"
            ) from None
        raise InputError(f"{path} is truncated or not a safetensors file: {brief(error)}") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: its metadata is no JSON object")
    if METADATA_KEY not in texts and any(DIGEST in text for text in texts.values()):
        raise _damage(path)  # or it would pass for a file that another program has written
    return tensors, metadata


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a model file: of `ez.save`, or any safetensors file.

    Raises:
        InputError: as `read_tensors` raises; a file of a newer version; one that has changed since
            it was written, if it has a digest.
    """
    tensors, metadata = read_tensors(path)
    version = metadata.get("format", PLAIN_FORMAT)
    check_format(path, version, MODEL_FORMAT)
    if (DIGEST in metadata or version > PLAIN_FORMAT) and not _is_whole(tensors, metadata):
        raise _damage(path)
    return tensors, metadata


def _damage(path: Path) -> InputError:
    return InputError(
        f"{path} is damaged: it has changed since it was written, by its digest; take a copy of "
        "it, or make it anew"
    )


def _is_whole(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
    others = {key: value for key, value in metadata.items() if key != DIGEST}
    try:
        return metadata.get(DIGEST) == digest(tensors, others)
    except ValueError:  # what is written nowhere, such as NaN in the metadata
        return False
