"""Tiny Shakespeare: a million characters of his plays, to be predicted one after the other."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ellzero.data.data import Data
from ellzero.data.folders import Published, find_files
from ellzero.data.tasks import TASKS
from ellzero.errors import InputError

_FILE = "input.txt"

SHAKESPEARE = Published(
    name="shakespeare",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/",
    sha256={_FILE: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
)
"""The text as its collector published it."""

_SIZE = 1_115_394
_VALIDATION, _TEST = 0.05, 0.05


def shakespeare(
    *,
    data_root: Path | str | None = None,
    tokens: Literal["characters", "bytes"] = "characters",
    context: int = 128,
    base_url: str | None = None,
) -> Data:
    """Tiny Shakespeare: the first 90 % of the text for training, then 5 % for validation, 5 % test.

    Examples are windows that follow each other without overlap: tokens int64 (N, context), and as
    targets the tokens one position on. What does not fill a window at the end of a part is left
    out. The network gives logits (N, context, vocabulary); the loss is the mean cross-entropy, the
    score the bits per token times -1.

    Args:
        data_root: the folder that holds `shakespeare/`; see `ellzero.data.folders.find_files`.
        tokens: `characters`: 65 of them, in the order of their code points; the data's classes are
            their names. `bytes`: 256.
        context: tokens of an example.
        base_url: the address to download from, in place of the collector's.

    Raises:
        InputError: the file is not found or is not the published one; an unknown kind of tokens; a
            context that is not positive or longer than a part.

    Source:
        A. Karpathy: char-rnn, data/tinyshakespeare, https://github.com/karpathy/char-rnn; the plays
        are in the public domain.
    """
    published = SHAKESPEARE if base_url is None else dataclasses.replace(SHAKESPEARE, url=base_url)
    path = find_files(published, data_root)[_FILE]
    try:
        with path.open("rb") as file:
            text = file.read(_SIZE + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(text).hexdigest() != published.sha256[_FILE]:
        raise InputError(f"{path} is not the text that was published; fetch it again")
    return text_data(text, tokens, context)


def text_data(text: bytes, tokens: Literal["characters", "bytes"], context: int) -> Data:
    """The data of `shakespeare`, of any text in UTF-8.

    Raises:
        InputError: as there.

    Example:
        >>> data = text_data(b"to be, or not to be, " * 20, "characters", context=5)
        >>> data.train.example
        (tensor([[7, 5, 0, 2, 3]]), tensor([[5, 0, 2, 3, 1]]))
        >>> "".join(data.classes)
        ' ,benort'
    """
    if tokens not in ("characters", "bytes"):
        raise InputError(f"tokens is {tokens!r}; expected 'characters' or 'bytes'")
    vocabulary = None
    codes = np.frombuffer(text, np.uint8)
    if tokens == "characters":
        try:
            points = np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)
        except UnicodeDecodeError as error:
            raise InputError(f"the text is not UTF-8: {error}; take tokens = 'bytes'") from None
        vocabulary, codes = np.unique(points, return_inverse=True)
    held_out = round(len(codes) * _VALIDATION), round(len(codes) * _TEST)
    train = len(codes) - sum(held_out)
    parts = np.split(codes.astype(np.int64), [train, train + held_out[0]])
    if type(context) is not int or not 0 < context < min(map(len, parts)):
        raise InputError(f"context is {context!r}; expected 1 to {min(map(len, parts)) - 1} tokens")
    return Data(
        *(_windows(part, context) for part in parts),
        task="tokens",
        score=negative_bits,
        classes=None if vocabulary is None else [chr(point) for point in vocabulary],
    )


def negative_bits(outputs: Tensor, targets: Tensor) -> Tensor:
    """The bits per token that a code by these logits takes, times -1, so that higher is better."""
    return -TASKS["tokens"].loss(outputs, targets) / math.log(2)


def _windows(codes: np.ndarray, context: int) -> tuple[Tensor, Tensor]:
    count = (len(codes) - 1) // context
    used = torch.from_numpy(codes[: count * context + 1])
    return used[:-1].view(count, context), used[1:].view(count, context)
