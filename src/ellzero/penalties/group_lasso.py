"""The group lasso: whole units go, not single weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ellzero.chunks import chunk_size
from ellzero.penalties.penalty import Form, Term, wide


@dataclass(frozen=True)
class GroupLasso(Term):
    r"""The group lasso, `strength * sum_g sqrt(n_g) ||w_g||`, over the units of a layer.

    .. math::

        \Omega(w) = \lambda \sum_g \sqrt{n_g} \, \left\|w_g\right\|_2, \qquad
        \frac{\partial \Omega}{\partial w_g}
        = \lambda \sqrt{n_g} \, \frac{w_g}{\left\|w_g\right\|_2}

    A group `w_g = w[g, ...]` is what comes into one unit or channel, `n_g` weights. Entries of a
    vector are groups of their own, which makes it the l1 norm there. The gradient is 0 at a group
    of zeros. The decoupled form is the proximal step, with the learning rate `eta`: a group shrinks
    as a whole and becomes zero as a whole, while zeros within it stay.

    .. math::

        w_g \leftarrow
        w_g \max\left(1 - \frac{\eta \lambda \sqrt{n_g}}{\left\|w_g\right\|_2},\; 0\right)

    Args:
        strength: factor of the sum, >= 0.
        form: `gradient`, `loss` or `decoupled`, see `ellzero.penalties.Form`.

    Raises:
        InputError: a strength that is negative or not finite; an unknown form.

    Source:
        Yuan and Lin, J. R. Statist. Soc. B 68 (2006) 49-67; on the filters of networks: Wen, Wu,
        Wang, Chen and Li, NeurIPS 2016, arXiv 1608.03665.

    Example:
        >>> import torch, ellzero as ez
        >>> w = torch.tensor([[3.0, 0.0, 0.0, -4.0], [0.5, 0.5, -0.5, 0.5]])
        >>> penalty = ez.GroupLasso(0.5, form="decoupled")
        >>> penalty.value(w)  # 0.5 * 2 * (5 + 1)
        tensor(6.)
        >>> penalty.shrink_(w, 1.0)
        >>> w
        tensor([[ 2.4000,  0.0000,  0.0000, -3.2000],
                [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """

    forms: ClassVar[tuple[Form, ...]] = ("gradient", "loss", "decoupled")
    elementwise: ClassVar[bool] = False
    rowwise: ClassVar[bool] = True

    def value(self, w: Tensor) -> Tensor:
        """`strength * sum_g sqrt(n_g) ||w_g||`, a 0-d tensor."""
        return self._slope(w) * _norms(wide(w)).sum()

    def gradient(self, w: Tensor) -> Tensor:
        """`strength * sqrt(n_g) w_g / ||w_g||`, of the shape of `w`; 0 where `w_g` is 0."""
        norms = _norms(w)
        return (w / torch.where(norms > 0, norms, 1.0)).mul_(self._slope(w))

    def add_gradient_(self, gradient: Tensor, w: Tensor, factor: float) -> None:
        for into, rows in zip(_some_rows(gradient), _some_rows(w), strict=True):
            into.add_(self.gradient(wide(rows)), alpha=float(factor))

    def shrink_(self, w: Tensor, step: float | Tensor) -> None:
        """`w_g <- w_g max(1 - step * strength * sqrt(n_g) / ||w_g||, 0)` in place."""
        for part in _some_rows(w):
            rows = wide(part)
            norms, amount = _norms(rows), step * self._slope(w)
            # w - w is +0, as after every decoupled step, where w * 0 would keep the sign
            rows.sub_(rows * torch.where(norms > amount, amount / norms, 1.0))
            if rows is not part:
                part.copy_(rows)

    def _slope(self, w: Tensor) -> float:
        """By how much the penalty grows with a group's norm; all groups of a tensor are equal."""
        return self.strength * math.sqrt(math.prod(w.shape[1:]))


def _some_rows(w: Tensor) -> tuple[Tensor, ...]:
    """Whole groups in parts about as large as a chunk."""
    group = math.prod(w.shape[1:])
    return w.split(max(1, chunk_size(w.device) // max(1, group))) if w.dim() else (w,)


def _norms(w: Tensor) -> Tensor:
    """The l2 norm of each group, in a shape that broadcasts over `w`."""
    within = tuple(range(1, w.dim()))
    # an empty tuple of dimensions would mean all of them
    return torch.linalg.vector_norm(w, dim=within, keepdim=True) if within else w.abs()
