"""What the tests of a GPU share: its name, a network, penalties, and a guard against waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ellzero as ez
from cases import PENALTY_CASES

GPU = "cuda"
MARKS = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:add_gradient"),  # there is no loss here
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
    # the compiler's own
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
GRADIENT = {
    **{name: case.others[0] for name, case in PENALTY_CASES.items()},
    "l0 + l2": ez.L0(0.02) + ez.L2(0.01),
}
each_gradient = pytest.mark.parametrize("penalty", GRADIENT.values(), ids=list(GRADIENT))


def network(dtype: torch.dtype = torch.float32, *, wide: int = 1100) -> Any:
    """Layers that are joined on a GPU, one in another memory order, and one that is too large."""
    torch.manual_seed(0)
    layers = [nn.Linear(30, 20), nn.Linear(20, 30), nn.Conv2d(3, 4, 3), nn.Linear(30, wide)]
    model: Any = nn.Sequential(*layers, nn.Linear(wide, wide))
    model.to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model.to(dtype)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        n: w.grad.double().cpu().clone() for n, w in model.named_parameters() if w.grad is not None
    }


@contextmanager
def without_waiting() -> Iterator[None]:
    """Whatever has to wait for the GPU is an error in the block, as far as PyTorch sees it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
