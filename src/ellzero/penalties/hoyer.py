"""The Hoyer-square measure: how evenly a layer's weights are spread, whatever their size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ellzero.chunks import chunks
from ellzero.penalties.penalty import Term, wide


@dataclass(frozen=True)
class HoyerSquare(Term):
    r"""Hoyer-square, `strength * (sum|w|)^2 / sum(w^2)` of each layer's weights.

    .. math::

        \Omega(w) = \lambda \frac{S^2}{Q}, \qquad
        \frac{\partial \Omega}{\partial w_i}
        = 2 \lambda \frac{S}{Q} \left(\operatorname{sign}(w_i) - \frac{S}{Q} w_i\right), \qquad
        S = \sum_i \left|w_i\right|, \quad Q = \sum_i w_i^2

    Between 1 (one nonzero weight) and the count of nonzeros (all of equal magnitude), and the same
    for `w` and `c w`: it drives weights apart, not down. Weights below `Q / S` are pulled to zero,
    those above are pushed away from it, so there is no decoupled form. A layer of zeros has value
    and gradient 0.

    Args:
        strength: factor of the measure, >= 0.
        form: `gradient` or `loss`, see `ellzero.penalties.Form`.

    Raises:
        InputError: a strength that is negative or not finite; an unknown form.

    Source:
        Yang, Wen and Li, DeepHoyer, ICLR 2020, arXiv 1908.09979.

    Example:
        >>> import torch, ellzero as ez
        >>> w = torch.tensor([0.0, 1.0, -3.0])
        >>> penalty = ez.HoyerSquare(0.5)
        >>> penalty.value(w), penalty.value(10 * w)
        (tensor(0.8000), tensor(0.8000))
        >>> penalty.gradient(w)
        tensor([0.0000, 0.2400, 0.0800])
    """

    elementwise: ClassVar[bool] = False

    def value(self, w: Tensor) -> Tensor:
        """`strength * (sum|w|)^2 / sum(w^2)`, a 0-d tensor; 0 where all weights are 0."""
        u = wide(w) / _size(w)
        return self.strength * u.abs().sum().square() / _or_one(u.square().sum())

    def gradient(self, w: Tensor) -> Tensor:
        """`strength * 2 S/Q (sign(w) - w S/Q)`, of the shape of `w`."""
        gradient = torch.zeros_like(wide(w))
        self.add_gradient_(gradient, w.detach(), 1.0)
        return gradient.to(w.dtype)

    def add_gradient_(self, gradient: Tensor, w: Tensor, factor: float) -> None:
        size = _or_one(_sum(wide(part).abs().sum() for (part,) in chunks(w)))
        ratio = 1 / _or_one(_sum((wide(part) / size).square().sum() for (part,) in chunks(w)))
        slope = 2 * factor * self.strength * ratio / size
        for into, part in chunks(gradient, w):
            u = wide(part) / size
            into.add_(u.sign().sub_(u * ratio).mul_(slope))


def _size(w: Tensor) -> Tensor:
    """`sum|w|`, by which weights are divided so that squares of tiny ones do not underflow.

    Detached: the measure does not change with it, so there is nothing to differentiate.
    """
    return _or_one(wide(w.detach()).abs().sum())


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


def _or_one(divisor: Tensor) -> Tensor:
    """What to divide by where the divisor may be 0, and the dividend is 0 then too."""
    return divisor + (divisor == 0)
