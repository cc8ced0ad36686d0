"""The squared l2 norm, against overfitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ellzero.penalties.penalty import Term, wide


@dataclass(frozen=True)
class L2(Term):
    r"""The squared l2 norm, `strength * sum(w^2)`, with no factor 1/2.

    .. math::

        \Omega(w) = \lambda \sum_i w_i^2, \qquad
        \frac{\partial \Omega}{\partial w_i} = 2 \lambda w_i

    A term of the loss, against overfitting. An optimizer's weight decay is something else: that
    acts after Adam's rescaling, and carries the factor 1/2.

    Args:
        strength: factor of the sum, >= 0.
        form: `gradient` or `loss`, see `ellzero.penalties.Form`.

    Raises:
        InputError: a strength that is negative or not finite; an unknown form.

    Source:
        Oliveira, Batista and Seara, Neural Networks 171 (2024) 343-352, arXiv 2109.05075.

    Example:
        >>> import torch, ellzero as ez
        >>> ez.L2(0.5).gradient(torch.tensor([1.0, -3.0]))
        tensor([ 1., -3.])
    """

    sparsifying: ClassVar[bool] = False

    def value(self, w: Tensor) -> Tensor:
        """`strength * sum(w^2)`, a 0-d tensor."""
        return self.strength * wide(w).square().sum()

    def gradient(self, w: Tensor) -> Tensor:
        """`2 * strength * w`, of the shape of `w`."""
        return w * (2 * self.strength)

    def add_gradient_(self, gradient: Tensor, w: Tensor, factor: float) -> None:
        gradient.add_(w, alpha=float(2 * factor * self.strength))
