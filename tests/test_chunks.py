import math

import pytest
import torch
from torch import Tensor

from ellzero import chunks as module
from ellzero.chunks import chunk_size, chunks, ordered_chunks, whole


def numbered(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


LAYOUTS = {
    "plain": numbered(6, 5),
    "0-d": numbered(),
    "empty": numbered(0, 3),
    "a row": numbered(1, 97),
    "4-d": numbered(4, 3, 5, 2),
    "transposed": numbered(7, 9).T,
    "channels last": numbered(4, 3, 5, 2).to(memory_format=torch.channels_last),
    "strided": numbered(12, 14)[::2, 1::3],
    "a column": numbered(40, 3)[:, 1:2],
    "expanded": numbered(8, 1).expand(8, 6),
}
each_layout = pytest.mark.parametrize("tensor", LAYOUTS.values(), ids=list(LAYOUTS))
each_size = pytest.mark.parametrize("size", [1, 4, 7, 1000])


@pytest.fixture
def size(request, monkeypatch):
    """Blocks of that many elements, whatever the number of threads."""
    monkeypatch.setattr(module, "LARGEST", request.param)
    return request.param


@each_layout
@pytest.mark.parametrize("size", [1, 4, 7, 1000], indirect=True)
def test_chunks_are_the_whole_once(tensor: Tensor, size):
    parts = [part for (part,) in chunks(tensor)]
    assert all(part.numel() <= size for part in parts)
    found = torch.cat([part.flatten() for part in parts])
    assert found.sort().values.tolist() == tensor.flatten().sort().values.tolist()


@pytest.mark.parametrize("tensor", [LAYOUTS[n] for n in LAYOUTS if n != "expanded"])
@pytest.mark.parametrize("size", [1, 4, 1000], indirect=True)
def test_chunks_are_views(tensor: Tensor, size):
    changed = tensor.clone(memory_format=torch.preserve_format)
    for (part,) in chunks(changed):
        part.add_(1)
    assert changed.equal(tensor + 1)


@each_layout
@pytest.mark.parametrize("size", [1, 4, 7, 1000], indirect=True)
@pytest.mark.parametrize("other", ["alike", "contiguous", "reversed", "bool"])
def test_chunks_of_several_tensors_are_of_the_same_elements(tensor: Tensor, size, other):
    beside = {
        "alike": tensor.clone(memory_format=torch.preserve_format),
        "contiguous": tensor.contiguous(),
        "reversed": tensor.permute(*reversed(range(tensor.dim()))).contiguous().mT
        if tensor.dim() == 2
        else tensor.contiguous().clone(),
        "bool": (tensor % 3 == 0).contiguous(),
    }[other]
    assert beside.shape == tensor.shape
    for part, like in chunks(tensor, beside):
        assert like.equal(part % 3 == 0 if other == "bool" else part)


@each_layout
@each_size
def test_ordered_blocks_go_by_the_flat_index(tensor: Tensor, size):
    parts = list(ordered_chunks(tensor, size))
    assert all(part.dim() == 1 and part.numel() <= size for part in parts)
    assert torch.cat(parts).tolist() == tensor.flatten().tolist()


def test_dense_tensors_are_cut_into_runs_of_memory():
    for tensor in (torch.zeros(900, 500), torch.zeros(50, 30, 20, 15).transpose(1, 3)):
        parts = [part for (part,) in chunks(tensor)]
        assert all(part.is_contiguous() for part in parts)
        assert len(parts) == math.ceil(tensor.numel() / chunk_size(tensor.device))


def test_a_block_is_larger_with_more_threads_up_to_a_bound():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = chunk_size(torch.device("cpu"))
        torch.set_num_threads(2)
        assert chunk_size(torch.device("cpu")) == 2 * one
    finally:
        torch.set_num_threads(before)
    # a few intermediates of a block in float32 stay below 64 MiB
    assert 3 * 4 * chunk_size(torch.device("meta")) <= 64 * 2**20


def test_a_compiler_gets_tensors_whole():
    tensor = torch.zeros(900, 500)
    with whole():
        assert [part.shape for (part,) in chunks(tensor)] == [(900, 500)]
    assert len(list(chunks(tensor))) > 1
