"""Files: atomic writes, and tensors read without ever unpickling."""

from __future__ import annotations

import json
import os
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ellzero.errors import InputError
from ellzero.tensors import require_held

METADATA_KEY = "ellzero"

MODEL_FORMAT = 1
"""Version of a model file's metadata; a file of a newer one is refused."""

PACKED_MAGIC = b"ELLZ"
"""What a packed file begins with."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: a temporary one beside it takes its place when complete."""
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    # named here, so that an interrupt at any moment from its creation on removes it
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Any) -> None:
    """Write one JSON document atomically; NaN and infinities are refused, they are no JSON."""
    text = json.dumps(document, indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file; `what` it is, a recipe or a study, for the message.

    Raises:
        InputError: no such file; not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {path} is not TOML: {error}") from None


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


def copied(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state_dict on the CPU.

    Raises:
        InputError: an entry that is not a tensor, or whose values are not here.
    """
    tensors = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"state_dict entry {name} is {type(value).__name__}; only tensors can be saved"
            )
        require_held(name, value)
        value = value.detach()
        tensors[name] = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return tensors


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """A safetensors file of contiguous CPU tensors, with metadata as JSON under one key."""
    return to_bytes(dict(tensors), {METADATA_KEY: json.dumps(metadata, allow_nan=False)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a safetensors file; lengths are checked against the file's first.

    Raises:
        InputError: no such file; truncated or not safetensors; a pickle, which is never unpickled.
    """
    if not path.is_file():
        raise InputError(f"no model file at {path}")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(text)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
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
        raise InputError(f"{path} is truncated or not a safetensors file: {error}") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: its metadata is no JSON object")
    return tensors, metadata


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a model file: of `ez.save`, or any safetensors file.

    Raises:
        InputError: as `read_tensors` raises; a file of a newer version.
    """
    tensors, metadata = read_tensors(path)
    check_format(path, metadata.get("format", MODEL_FORMAT), MODEL_FORMAT)
    return tensors, metadata
