"""Packed files of version 1, as they were written before there was another: they are still read."""

import pytest
import torch

import ellz_reader
import ellzero as ez
from ellzero.graph import Network
from ellzero.packed.reader import read_packed
from packed_cases import check_by_the_page, odd_weights, packed_network, same_bits

# The network of the example of docs/format.md, with other weights.
NETWORK_BYTES = bytes.fromhex(
    "454c4c5a01 78c16d5b 53 01 f202 32"
    "232372cd50a2b58284d0adc019b415f8c2151432448404dc2538c3c2104b581822a773eac5632c4a859408b211889381"
    "3200"
    "9c 01 04 06"
    "09 02 03 04 02 01 0e 1b 00f4 0070"
    "05 01 03 01 19 0068 00f6"
    "a5be61a1"
)

# Weights only, of types and forms that the example lacks.
WEIGHTS_BYTES = bytes.fromhex(
    "454c4c5a01 5bf4bc94 bf01 00 40 33"
    "8b06a6bb5460cad651504acd2d28a9043172138bb3417446624e1a882e061650c5a920564e2650750a889594092c320b"
    "946201"
    "90 00 0700000000000000"  # steps: int64, no dimension, dense, raw
    "00 02 00 03"  # empty: float32, 0 x 3, dense
    "40 01 03 01 00 01"  # mask: bool, 3, dense, raw
    "20 01 02 003e 00c0"  # half: float16, 2, dense, raw
    "14 01 28 26 9a9999999999b93f 0000000000001cc0"  # sparse: float64, 40 of which 38 are zero
    "0a 01 04 02 0001 803ffe42 fb 7f"  # listed: codebook of 2, one twice; t = 127.1240234375
    "0a 01 28 28 000000000000 0000fe41"  # bitmap: codebook of 40, each once, 127 / 4 the largest
    "00000000000000000000000000000000 ffffffff7f0000000000000000000040"  # bits 128 to 166, and 254
    "689befd5b519c8fe664fde82f368506ea2d4a54a6f4269fb231a4e93bce47848"  # codes
)


def test_a_network_is_read(tmp_path):
    (tmp_path / "x.ellz").write_bytes(NETWORK_BYTES)
    loaded = ez.load(tmp_path / "x.ellz")
    assert isinstance(loaded, Network)
    assert loaded.graph == packed_network().graph
    assert loaded.weight("x_select.indices").tolist() == [0, 1, 3, 5]
    weight = [[0.5, 0, -1, 0], [0, 0.5, 0.5, 0], [-1, 0, 0.5, 0.5]]
    assert loaded.weight("fc1.weight").tolist() == weight
    assert loaded.weight("fc1.bias").tolist() == [0.25, -3, 0]


def test_the_other_types_are_read(tmp_path):
    (tmp_path / "x.ellz").write_bytes(WEIGHTS_BYTES)
    _, tensors = read_packed(tmp_path / "x.ellz")
    sparse = torch.zeros(40, dtype=torch.float64)
    sparse[3], sparse[17] = 0.1, -7.0
    half = torch.tensor([1.5, -2.0], dtype=torch.float16)
    expected = odd_weights() | {"half": half, "sparse": sparse}
    assert list(tensors) == [name for name in expected if name not in ("again", "image")]
    assert all(same_bits(tensor, expected[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("content", [NETWORK_BYTES, WEIGHTS_BYTES], ids=["network", "weights"])
def test_a_reader_written_from_the_page_reads_them(content, tmp_path):
    (tmp_path / "x.ellz").write_bytes(content)
    check_by_the_page(tmp_path / "x.ellz")


def test_packed_again_it_is_of_the_newest_version(tmp_path):
    (tmp_path / "x.ellz").write_bytes(NETWORK_BYTES)
    ez.pack(ez.load(tmp_path / "x.ellz"), tmp_path / "y.ellz")
    content = (tmp_path / "y.ellz").read_bytes()
    assert content[4] == 2
    assert ellz_reader.read(content) == ellz_reader.read(NETWORK_BYTES)
