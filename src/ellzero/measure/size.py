"""How many bytes a network takes: as float32, and packed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ellzero.export.packed import pack
from ellzero.graph import Network


@dataclass(frozen=True)
class Size:
    """Bytes of a network.

    Args:
        parameters: floating values, all of them.
        nonzeros: those that are not zero.
        float32_bytes: four for each parameter.
        packed_bytes: bytes of its .ellz file, which is as exact as the network.
    """

    parameters: int
    nonzeros: int
    float32_bytes: int
    packed_bytes: int


def size_of(network: Network, small: Network) -> Size:
    """Count a network's parameters, and pack it to see what it takes.

    Args:
        network: the network whose parameters are counted.
        small: what is packed: the same, compacted where that can be done.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(100, 100)
        >>> masks = ez.prune(model, sparsity=0.99)
        >>> network = ez.trace(model, torch.zeros(1, 100))
        >>> size_of(network, network).nonzeros
        200
    """
    tensors = list(network.parameters())
    count = sum(tensor.numel() for tensor in tensors)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.ellz"
        pack(small, path)
        packed = path.stat().st_size
    nonzeros = sum(int(tensor.count_nonzero()) for tensor in tensors)
    return Size(count, nonzeros, 4 * count, packed)
