"""Networks and weights that packed files are tested with, and the second reader's word."""

from pathlib import Path

import torch
from torch import Tensor

import ellz_reader
from ellzero.graph import Graph, Network
from ellzero.packed.reader import read_packed


def packed_network() -> Network:
    """The network of the example."""
    text = (
        b'{"nodes":[{"name":"x","op":{"kind":"input","size":[6]}},{"name":"x_select","op":{"kind":'
        b'"select"},"inputs":["x"],"weights":{"indices":"x_select.indices"}},{"name":"fc1","op":'
        b'{"kind":"linear"},"inputs":["x_select"],"weights":{"weight":"fc1.weight","bias":'
        b'"fc1.bias"}},{"name":"relu","op":{"kind":"activation","function":"relu"},"inputs":["fc1"]'
        b'}],"classes":["a","b","c"]}'
    )
    weight = [[129.0, 0, -256, 0], [0, 129, 129, 0], [-256, 0, 129, 129]]
    weights = {
        "x_select.indices": torch.tensor([0, 1, 3, 5]),
        "fc1.weight": torch.tensor(weight),
        "fc1.bias": torch.tensor([257.0, -768.0, 0.0]),
    }
    return Network(Graph.from_json(text), weights).eval()


def odd_weights() -> dict[str, Tensor]:
    """Types and layouts that networks rarely have."""
    sparse = torch.zeros(40, dtype=torch.float64)
    sparse[3], sparse[17] = 0.1, -77.0
    return {
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False, True]),
        "half": torch.tensor([257.0, -512.0], dtype=torch.float16),
        "sparse": sparse,
        "listed": torch.tensor([127.0, 0.0, -5.0, -5.0]) * 1025 / 1024,
        "bitmap": torch.cat([torch.arange(1, 40), torch.tensor([127])]) / 4,
        "again": torch.tensor([257.0, -512.0], dtype=torch.float16),
        "image": image_weights(),
    }


def image_weights() -> Tensor:
    """Kernels (6, 1, 8, 8) of 256 and -129 here and there, but neighbours alike."""
    row, column, unit = torch.meshgrid(*(torch.arange(n) for n in (8, 8, 6)), indexing="ij")
    there = (row + unit) % 8 < 4
    values = torch.where((column + unit) % 8 < 4, 256.0, -129.0) * there
    return values.permute(2, 0, 1)[:, None].contiguous() + 0


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one type, one shape and equal numbers, zeros of equal sign."""
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(a.signbit(), b.signbit())


def check_by_the_page(path: Path) -> None:
    """The second reader finds the same weights as the library's."""
    _, tensors = read_packed(path)
    _, found = ellz_reader.read(path.read_bytes())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name] == (list(tensor.shape), tensor.flatten().tolist()), name
