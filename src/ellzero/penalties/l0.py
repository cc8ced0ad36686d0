"""The exponential approximation of the l0 norm, the penalty this package is built around."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ellzero.penalties.penalty import Form, Term, shrink_by_, wide
from ellzero.schedules import Schedule


@dataclass(frozen=True)
class L0(Term):
    r"""Approximate l0 norm, `strength * sum(1 - exp(-beta |w|))`.

    .. math::

        \Omega(w) = \lambda \sum_i \left(1 - e^{-\beta \left|w_i\right|}\right), \qquad
        \frac{\partial \Omega}{\partial w_i}
        = \lambda \beta \, \operatorname{sign}(w_i) \, e^{-\beta \left|w_i\right|}

    As `beta` grows the sum tends to the count of nonzero weights. Its gradient, the zero
    attraction, is strong on small weights and vanishes on large ones. At 0 the subgradient is 0;
    `beta = 0` switches the penalty off. The decoupled form is the step

    .. math::

        \left|w_i\right| \leftarrow
        \max\left(\left|w_i\right| - \eta \lambda \beta e^{-\beta \left|w_i\right|},\; 0\right)

    with the learning rate `eta`. In formulas `lambda` is the strength.

    Args:
        strength: factor of the sum, >= 0. With `form="gradient"` and Adam, about 1e-7 to 1e-4;
            with `form="decoupled"` about 1e-3 to 1e-1.
        beta: sharpness, >= 0, in units of 1 / weight; or an `ez.Schedule` of it, for which a
            regularizer has to be told the progress.
        form: `gradient`, `loss` or `decoupled`, see `ellzero.penalties.Form`.

    Raises:
        InputError: a strength or beta that is negative or not finite; an unknown form.

    Source:
        Oliveira, Batista and Seara, Neural Networks 171 (2024) 343-352, arXiv 2109.05075.

    Example:
        >>> import torch, ellzero as ez
        >>> w = torch.tensor([0.0, 0.1, -2.0])
        >>> penalty = ez.L0(2.0, beta=5)
        >>> penalty.value(w)
        tensor(2.7868)
        >>> penalty.gradient(w)
        tensor([ 0.0000e+00,  6.0653e+00, -4.5400e-04])
    """

    forms: ClassVar[tuple[Form, ...]] = ("gradient", "loss", "decoupled")
    layer_scaled: ClassVar[bool] = True

    _: KW_ONLY
    beta: float | Schedule = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_number("beta", self.beta, scheduled=True)

    def value(self, w: Tensor) -> Tensor:
        """`strength * sum(1 - exp(-beta |w|))`, a 0-d tensor."""
        return -self.strength * torch.expm1(-self._number("beta") * wide(w).abs()).sum()

    def gradient(self, w: Tensor) -> Tensor:
        """`strength * beta * sign(w) * exp(-beta |w|)`, of the shape of `w`."""
        return self._attraction(w).mul_(w.sign())

    def add_gradient_(self, gradient: Tensor, w: Tensor, factor: float) -> None:
        # in as few passes as there are functions for; the exponential is the least part of it
        sign, beta = w.sign(), self._number("beta")
        attraction = torch.addcmul(_zero(w), w, sign, value=-float(beta)).exp_()
        gradient.addcmul_(attraction, sign, value=float(factor * self.strength * beta))

    def shrink_(self, w: Tensor, step: float | Tensor) -> None:
        """`w <- sign(w) max(|w| - step * strength * beta * exp(-beta |w|), 0)` in place."""
        shrink_by_(w, self._attraction(w).mul_(step))

    def _attraction(self, w: Tensor) -> Tensor:
        beta = self._number("beta")
        return w.abs().mul_(-beta).exp_().mul_(self.strength * beta)


_ZEROS = {dtype: torch.zeros((), dtype=dtype) for dtype in (torch.float32, torch.float64)}


def _zero(w: Tensor) -> Tensor:
    """A zero to add to; on a CPU one that is there already, an operation less for every chunk."""
    return _ZEROS[w.dtype] if w.is_cpu and w.dtype in _ZEROS else w.new_zeros(())
