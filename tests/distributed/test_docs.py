"""The code of docs/distributed.md comes to what one process comes to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from small import blobs, mlp

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def _code() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


def _batches(part: slice) -> list[tuple[Tensor, Tensor]]:
    x, y = blobs(80, 1)
    return [(x[i : i + 8][part], y[i : i + 8][part]) for i in range(0, 80, 8)]


def _trained(wrapper: str, path: Path) -> None:
    code, rank = _code(), dist.get_rank()
    code["train"](code[wrapper](mlp()), _batches(slice(4 * rank, 4 * rank + 4)), path)


@pytest.mark.parametrize("wrapper", ["replicated", "sharded"])
def test_the_loop_of_the_page_writes_what_one_process_writes(run_in, tmp_path, wrapper):
    _code()["train"](mlp(), _batches(slice(8)), tmp_path / "one")
    run_in(2, _trained, wrapper, tmp_path / "two")
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    assert sum(int(x.count_nonzero()) for n, x in one.items() if "weight" in n) == 36
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)
        assert torch.equal(two[name] == 0, tensor == 0)
