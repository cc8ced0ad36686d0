"""Cases and helpers that several test modules share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.penalties import L0, L1, L2, GroupLasso, HoyerSquare, Term
from ellzero.regularizers import PMMP, Gates, HardConcrete

LN2 = math.log(2)  # with beta = ln 2, exp(-beta |w|) = 2^-|w|, so hand values are plain fractions

HAND_W = (0.0, 1.0, -2.0, 3.0)
"""The weights of the hand values below."""

SHRINK_LR = 0.5
SHRINK_W = (0.0, 1.0, -2.0, 0.5, -0.25, 3.0)
"""The learning rate and the weights of the decoupled hand values below."""

HAND_ROWS = ((1.0, -2.0, 2.0, 4.0), (0.0, 0.0, 0.0, 0.0), (0.0, -3.0, 0.0, 0.0))
SHRINK_ROWS = (*HAND_ROWS, (0.25, -0.25, 0.0, 0.25))
"""The same for penalties of a layer's units: rows whose norms are 5, 0, 3 and 0.43."""


@dataclass(frozen=True)
class PenaltyCase:
    """One entry of `PENALTIES`: a penalty worked out by hand, and others for the properties.

    The gradient and the weights after the decoupled step are in a row, whatever the weights' shape.
    """

    hand: Term
    value: float
    gradient: tuple[float, ...]
    others: tuple[Term, ...]
    shrunk: tuple[float, ...] | None = None  # None: the penalty has no decoupled form
    w: tuple[Any, ...] = HAND_W
    shrink_w: tuple[Any, ...] = SHRINK_W
    bad: tuple[dict[str, Any], ...] = ()  # keyword arguments that are refused, beyond strengths


PENALTY_CASES = {
    "l0": PenaltyCase(
        # 1 - 2^-|w| = 0, 1/2, 3/4, 7/8; they add up to 17/8, times strength 2
        hand=L0(2.0, beta=LN2),
        value=17 / 4,
        # strength ln2 sign(w) 2^-|w| = 2 ln2 (0, 1/2, -1/4, 1/8)
        gradient=(0, LN2, -LN2 / 2, LN2 / 4),
        others=(L0(1e-3), L0(0.7, beta=50.0), L0(3.0, beta=0.0), L0(0.0), L0(1, beta=2)),
        # lr strength ln2 2^-|w| = ln2 2^-|w|: 1 - ln2/2; 2 - ln2/4; 1/2 - ln2/sqrt(2);
        # 1/4 < ln2 2^-1/4 = 0.58, so 0; 3 - ln2/8
        shrunk=(0, 1 - LN2 / 2, -(2 - LN2 / 4), 0.5 - LN2 / math.sqrt(2), 0, 3 - LN2 / 8),
        bad=tuple({"beta": b} for b in (-1.0, math.nan, math.inf, "5", True, False, None)),
    ),
    "l1": PenaltyCase(
        hand=L1(2.0),
        value=12,  # 2 (1 + 2 + 3)
        gradient=(0, 2, -2, 2),
        others=(L1(1e-3), L1(0.0), L1(3)),
        shrunk=(0, 0, -1, 0, 0, 2),  # lr strength = 1 is taken off every magnitude
    ),
    "l2": PenaltyCase(
        hand=L2(0.5),
        value=7,  # (1 + 4 + 9) / 2: no factor 1/2 but the strength's
        gradient=(0, 1, -2, 3),
        others=(L2(1e-3), L2(0.0), L2(3)),
        bad=({"form": "decoupled"},),
    ),
    "hoyer_square": PenaltyCase(
        # S = 6, Q = 14: 2 * 36 / 14
        hand=HoyerSquare(2.0),
        value=36 / 7,
        # S/Q = 3/7: 2 * 2 * 3/7 (sign(w) - 3/7 w) = 12/7 (0, 4/7, -1/7, -2/7)
        gradient=(0, 48 / 49, -12 / 49, -24 / 49),
        others=(HoyerSquare(1e-3), HoyerSquare(0.0), HoyerSquare(3)),
        bad=({"form": "decoupled"},),
    ),
    "group_lasso": PenaltyCase(
        # four weights in a row, so sqrt(n) = 2: 0.5 * 2 * (5 + 0 + 3)
        hand=GroupLasso(0.5),
        value=8,
        gradient=(0.2, -0.4, 0.4, 0.8, 0, 0, 0, 0, 0, -1, 0, 0),
        others=(GroupLasso(1e-3), GroupLasso(0.0), GroupLasso(3)),
        # lr strength 2 = 1/2 is taken off every norm: 5 -> 4.5, 3 -> 2.5, 0.43 -> 0
        shrunk=(0.9, -1.8, 1.8, 3.6, 0, 0, 0, 0, 0, -2.5, 0, 0, 0, 0, 0, 0),
        w=HAND_ROWS,
        shrink_w=SHRINK_ROWS,
    ),
}


@dataclass(frozen=True)
class GatesCase:
    """One entry of `GATES`: a method, the same as a recipe's table, and what it says at first."""

    gates: Gates
    table: dict[str, Any]
    beginning: float  # its value for each weight before any training


GATES_CASES = {
    # half of all gates are open, times the strength
    "hard_concrete": GatesCase(
        gates=HardConcrete(0.25, keep=0.5, rate=3.0),
        table={"strength": 0.25, "keep": 0.5, "rate": 3},
        beginning=1 / 8,
    ),
    # every weight is kept, and no constraint is violated
    "pmmp": GatesCase(
        gates=PMMP(0.25, multiplier=2.0),
        table={"strength": 0.25, "multiplier": 2},
        beginning=1 / 4,
    ),
}


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer under masks; `revives`: its momentum moves a weight that has no gradient."""

    make: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    revives: bool

    def __call__(self, parameters: Any) -> torch.optim.Optimizer:
        return self.make(parameters, **self.options)


def _optimizer_cases() -> dict[str, OptimizerCase]:
    plain = {
        "sgd": (torch.optim.SGD, {"lr": 0.1}, False),
        "sgd-decay": (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}, False),
        "sgd-momentum": (
            torch.optim.SGD,
            {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
            True,
        ),
        "sgd-nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}, True),
        "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}, True),
        "adam-amsgrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}, True),
        "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.5}, True),
        "adagrad": (torch.optim.Adagrad, {"lr": 0.05}, False),
        "rmsprop": (torch.optim.RMSprop, {"lr": 0.01}, False),
        "rmsprop-momentum": (
            torch.optim.RMSprop,
            {"lr": 0.01, "momentum": 0.9, "centered": True},
            True,
        ),
    }
    fused_on_cpu = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
    cases = {}
    for name, (make, options, revives) in plain.items():
        ways: dict[str, dict[str, Any]] = {"loop": {"foreach": False}, "foreach": {"foreach": True}}
        if make in fused_on_cpu:
            ways["fused"] = {"fused": True}
        for way, extra in ways.items():
            cases[f"{name}-{way}"] = OptimizerCase(make, options | extra, revives)
    return cases


OPTIMIZER_CASES = _optimizer_cases()


def fill(parameter: Tensor, values: Any) -> None:
    """Set a parameter to the values given, in place."""
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(values, dtype=parameter.dtype).view(parameter.shape))


def small_network(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A convolution, a normalization and two dense layers in sequence; takes (N, 2, 5, 5).

    Typed as Any, for a type checker knows nothing of the layers within.
    """
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    ).to(dtype)


def anatomy(model: nn.Module) -> dict[str, Any]:
    """What must not change of a user's network: keys, modules, attributes, hooks, classes."""
    modules = {
        name: (type(module), {key: _count(value) for key, value in vars(module).items()})
        for name, module in model.named_modules(remove_duplicate=False)
    }
    parameters = {
        name: (id(p), type(p), p.requires_grad, dict(vars(p)), _count(p._backward_hooks))
        for name, p in model.named_parameters(remove_duplicate=False)
    }
    return {"keys": list(model.state_dict()), "modules": modules, "parameters": parameters}


def _count(value: Any) -> Any:
    return len(value) if isinstance(value, dict) else None
