"""What the codes of a packed file take at least: the bits that its own models give each symbol."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ellzero.packed.entropy import Integers
from ellzero.packed.reader import announcement
from ellzero.packed.tensor_fields import Announced


class Ideal:
    """A coder that counts the bits of its models: -log2 of each symbol's share of 2^24."""

    def __init__(self) -> None:
        self.bits = 0.0

    def code(self, frequencies: Integers, count: int, symbols: Integers | None) -> Integers:
        """Count the bits of symbols (count,) and return them."""
        assert symbols is not None
        shares = np.broadcast_to(frequencies, (count, frequencies.shape[-1]))
        chosen = shares[np.arange(count), np.asarray(symbols, np.int64)]
        self.bits += 24 * count - float(np.log2(chosen).sum())
        return symbols


def ideal_bytes(content: bytes, weights: Mapping[str, Tensor]) -> float:
    """Bytes that the codes of a file of these weights take at least.

    Args:
        content: of the file, of version 2.
        weights: what it holds, by name.
    """
    ideal, tensors = Ideal(), announcement(content).tensors
    earlier = [weights[name] for name in tensors]
    for tensor, values in zip(tensors.values(), earlier, strict=True):
        assert isinstance(tensor, Announced)
        tensor.code(ideal, earlier, values)
    return ideal.bits / 8
