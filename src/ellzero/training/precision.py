"""Precision: what "auto" is on a device, by its features and never by a timing.

A timing depends on what else the machine is at, and then a seed's result would.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ellzero.recipe import Recipe
from ellzero.user_code import importing

CPUINFO = Path("/proc/cpuinfo")

SLOW = (
    "precision is 'bfloat16' and this CPU is not known to have AMX, which makes it pay: training "
    "LeNet-5 takes 1.2 times as long as in float32 with AVX-512 alone, and a third of the time "
    "with AMX; 'float32' and 'auto' avoid that, with other weights"
)


def settled(recipe: Recipe, device: torch.device, before: Path | None = None) -> Recipe:
    """The recipe with a precision in the place of "auto".

    Args:
        recipe: what the run is told.
        device: where it trains.
        before: the resolved recipe of the run that is resumed; it goes on in the same precision.

    Raises:
        InputError: that recipe cannot be read.

    Example:
        >>> recipe = Recipe.parse({"precision": "auto", "prune": {"sparsity": 0.9}})
        >>> settled(recipe, torch.device("meta")).precision
        'float32'
    """
    precision = recipe.precision
    if precision == "auto" and before is not None:
        with importing(False):
            precision = Recipe.read(before).precision
    if precision == "auto":
        precision = "bfloat16" if bfloat16_pays(device) else "float32"
    return recipe.model_copy(update={"precision": precision})


def costs(recipe: Recipe, device: torch.device) -> list[str]:
    """A sentence if the recipe's precision costs time on the device."""
    slow = recipe.precision == "bfloat16" and device.type == "cpu" and not bfloat16_pays(device)
    return [SLOW] if slow else []


def bfloat16_pays(device: torch.device) -> bool:
    """Whether a device has fast instructions for bfloat16; what is not known has none."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and {"amx_tile", "amx_bf16"} <= _cpu_features()


def _cpu_features() -> set[str]:
    """What Linux says that the CPU, of x86, can do; elsewhere nothing."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    features = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return set(next(features, "").split())
