"""How many bytes a network takes: as float32, and packed."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ellzero.graph import Network
from ellzero.packed.pack import pack


@dataclass(frozen=True)
class Size:
    """Bytes of a network.

    Args:
        parameters: floating values, all of them.
        nonzeros: those that are not zero.
        float32_bytes: four for each parameter.
        packed_bytes: bytes of its .ellz file, which is as exact as the network; None where
            constriction is not installed.
    """

    parameters: int
    nonzeros: int
    float32_bytes: int
    packed_bytes: int | None


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
    nonzeros = sum(int(tensor.count_nonzero()) for tensor in tensors)
    return Size(count, nonzeros, 4 * count, _packed_bytes(small))


def _packed_bytes(network: Network) -> int | None:
    if find_spec("constriction") is None:
        return None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a network that is no data only the weights are packed
        return pack(network, Path(folder) / "network.ellz").size_bytes
