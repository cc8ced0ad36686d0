"""Probabilistic minimax pruning (PMMP): a random stand-in for each weight, tied to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ellzero.regularizers.gates import BoundGates, Gates, own_like
from ellzero.regularizers.gradient import gradient_of
from ellzero.selection import Selection


@dataclass(frozen=True)
class PMMP(Gates):
    r"""Probabilistic minimax pruning, `strength * sum(p) + sum(u ((a - w p)^2 + w^2 p (1 - p)))`.

    Beside each weight `a` of the network stand a value `w`, the probability `p` that it is kept,
    and a multiplier `u` of the constraint that `a` equals the random `w z`, `z ~ Bernoulli(p)`:
    `a - w p` is its bias and `w^2 p (1 - p)` its variance. With the loss `L`:

    .. math::

        \min_{a, w, p} \, \max_u \; L(a) + \lambda \sum_i p_i
        + \sum_i u_i \left((a_i - w_i p_i)^2 + w_i^2 p_i (1 - p_i)\right), \qquad 0 \le p_i \le 1

    Adam moves the stand-ins; `p` is clamped to [0, 1] after each step. In the beginning `w = a` and
    `p = 1`. Finalizing puts `w p` in place of each weight.

    Args:
        strength: factor of the expected count of nonzero weights, >= 0.
        rate: how much faster than the weights the stand-ins learn.
        multiplier: the value that `u` begins with, >= 0.

    Raises:
        InputError: a strength, rate or multiplier that is negative or not finite; a rate of zero.

    Source:
        Barth and von Petersenn, arXiv 2505.17469.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(3, 2)
        >>> regularizer = ez.Regularizer(model, gates=ez.PMMP(0.5))
        >>> regularizer.value()  # all six are kept, and no constraint is violated
        tensor(3.)
    """

    elementwise: ClassVar[bool] = True

    _: KW_ONLY
    rate: float = 1.0
    multiplier: float = 1.0

    def bind(self, weights: Selection) -> BoundPMMP:
        return BoundPMMP(self, weights)


class BoundPMMP(BoundGates):
    """PMMP on the weights of one network; `own` holds `w/NAME`, `p/NAME` and `u/NAME` of each."""

    def __init__(self, gates: PMMP, weights: Selection) -> None:
        stand_ins = {}
        for name, a in weights.items():
            stand_ins[f"w/{name}"] = own_like(a, 0).copy_(a.detach())
            stand_ins[f"p/{name}"] = own_like(a, 1)
            stand_ins[f"u/{name}"] = own_like(a, gates.multiplier)
        super().__init__(gates, weights, stand_ins)

    def _stands(self) -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
        for name, a in self.live():
            w, p, u = (self.parts[f"{what}/{name}"] for what in "wpu")
            yield name, a, w, p, u

    @torch.no_grad()
    def value(self, ramped: float) -> Tensor:
        kept = self.summed({name: p.sum() for name, _, _, p, _ in self._stands()})
        bound = self.summed(
            {name: (u * violation(a, w, p)).sum() for name, a, w, p, u in self._stands()}
        )
        total = torch.zeros(())
        for name in kept:
            total = total + self._strength * ramped * kept[name] + bound[name]
        return total

    @torch.no_grad()
    def plain(self) -> dict[str, Tensor]:
        return {name: w * p for name, _, w, p, _ in self._stands()}

    @torch.no_grad()
    def add_gradient(self, ramped: float) -> None:
        for name, a, w, p, u in self._stands():
            d = a - w * p
            pull = 2 * u * d
            gradient_of(self.weights[name]).add_(pull)
            w.grad = -pull * p + 2 * u * w * p * (1 - p)
            p.grad = -pull * w + u * w.square() * (1 - 2 * p) + self._strength * ramped
            u.grad = -violation(a, w, p)  # u ascends

    def step(self, learning_rate: float | Tensor) -> None:
        super().step(learning_rate)
        for _, _, _, p, _ in self._stands():
            p.clamp_(0, 1)


def violation(a: Tensor, w: Tensor, p: Tensor) -> Tensor:
    """Squared bias and variance of the random stand-in, `(a - w p)^2 + w^2 p (1 - p)`."""
    return (a - w * p).square() + w.square() * p * (1 - p)
