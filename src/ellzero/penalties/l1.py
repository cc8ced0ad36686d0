"""The l1 norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ellzero.penalties.penalty import Form, Term, shrink_by_, wide


@dataclass(frozen=True)
class L1(Term):
    r"""The l1 norm, `strength * sum(|w|)`; it pulls on all weights alike.

    .. math::

        \Omega(w) = \lambda \sum_i \left|w_i\right|, \qquad
        \frac{\partial \Omega}{\partial w_i} = \lambda \operatorname{sign}(w_i)

    The subgradient at 0 is 0. The decoupled form is the proximal (soft-threshold) step of proximal
    gradient descent, with the learning rate `eta`:

    .. math::

        \left|w_i\right| \leftarrow \max\left(\left|w_i\right| - \eta \lambda,\; 0\right)

    Args:
        strength: factor of the sum, >= 0.
        form: `gradient`, `loss` or `decoupled`, see `ellzero.penalties.Form`.

    Raises:
        InputError: a strength that is negative or not finite; an unknown form.

    Source:
        Tibshirani, J. R. Statist. Soc. B 58 (1996) 267-288.

    Example:
        >>> import torch, ellzero as ez
        >>> ez.L1(0.5).value(torch.tensor([1.0, -3.0]))
        tensor(2.)
    """

    forms: ClassVar[tuple[Form, ...]] = ("gradient", "loss", "decoupled")

    def value(self, w: Tensor) -> Tensor:
        """`strength * sum(|w|)`, a 0-d tensor."""
        return self.strength * wide(w).abs().sum()

    def gradient(self, w: Tensor) -> Tensor:
        """`strength * sign(w)`, of the shape of `w`."""
        return w.sign().mul_(self.strength)

    def add_gradient_(self, gradient: Tensor, w: Tensor, factor: float) -> None:
        gradient.add_(w.sign(), alpha=float(factor * self.strength))

    def shrink_(self, w: Tensor, step: float | Tensor) -> None:
        """`w <- sign(w) max(|w| - step * strength, 0)` in place."""
        amount = step * self.strength
        shrink_by_(w, amount if isinstance(amount, Tensor) else float(amount))
