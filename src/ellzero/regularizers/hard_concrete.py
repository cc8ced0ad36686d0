"""Hard-concrete gates: the expected l0 norm under random gates that are learned."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.regularizers.gates import BoundGates, Gates, own_like
from ellzero.selection import Selection
from ellzero.sharding import local

LOW, HIGH = -0.1, 1.1
"""The interval (gamma, zeta) that the concrete variable is stretched to before it is clipped."""

TEMPERATURE = 2 / 3
"""Temperature (beta) of the concrete distribution; all three as in the paper's experiments."""

SHIFT = TEMPERATURE * math.log(-LOW / HIGH)
"""A gate is nonzero with probability `sigmoid(log_alpha - SHIFT)`."""


@dataclass(frozen=True)
class HardConcrete(Gates):
    r"""Hard-concrete gates, `strength * sum(P(gate > 0))` over all weights.

    Each weight is multiplied by a gate `z`, drawn anew for every batch with `u` uniform on (0, 1);
    `log alpha` is learned, and `sigma` is the logistic function.

    .. math::

        s = \sigma\left(\frac{\log u - \log(1 - u) + \log \alpha}{2/3}\right), \qquad
        z = \min(1, \max(0, \; 1.2 s - 0.1))

    Added to the loss is the expected count of nonzero gates,

    .. math::

        \lambda \sum_i P(z_i > 0)
        = \lambda \sum_i \sigma\left(\log \alpha_i - \tfrac{2}{3} \log \tfrac{0.1}{1.1}\right).

    Finalizing multiplies each weight by its gate without noise, where `s = sigma(log alpha)`.

    Args:
        strength: factor of the expected count of nonzero weights, >= 0.
        rate: how much faster than the weights `log_alpha` learns.
        keep: the probability in (0, 1) by which all gates are nonzero in the beginning.

    Raises:
        InputError: a strength, rate or keep out of range.

    Source:
        Louizos, Welling and Kingma, ICLR 2018, arXiv 1712.01312, equations 10 to 13.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(3, 2)
        >>> regularizer = ez.Regularizer(model, gates=ez.HardConcrete(1.0, keep=0.5))
        >>> regularizer.value()  # half of six weights
        tensor(3.)
    """

    elementwise: ClassVar[bool] = True

    _: KW_ONLY
    rate: float = 10.0
    keep: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep < 1:
            raise InputError(f"HardConcrete: keep is {self.keep!r}; expected 0 < keep < 1")

    def bind(self, weights: Selection) -> BoundHardConcrete:
        return BoundHardConcrete(self, weights)


class BoundHardConcrete(BoundGates):
    """Hard-concrete gates on the weights of one network; `own` holds `log_alpha` of each."""

    def __init__(self, gates: HardConcrete, weights: Selection) -> None:
        start = math.log(gates.keep / (1 - gates.keep)) + SHIFT
        log_alphas = {name: own_like(w, start) for name, w in weights.items()}
        super().__init__(gates, weights, log_alphas)
        self._drawn: dict[str, tuple[Tensor, Tensor, Tensor]] | None = None

    def value(self, ramped: float) -> Tensor:
        counts = self.summed({name: nonzero(self.parts[name]).sum() for name, _ in self.live()})
        return self._strength * ramped * sum(counts.values(), torch.zeros(()))

    @torch.no_grad()
    def plain(self) -> dict[str, Tensor]:
        return {name: w * gate(torch.sigmoid(self.parts[name])) for name, w in self.live()}

    @torch.no_grad()
    def before_forward(self) -> None:
        if self._drawn is not None:
            raise InputError(
                "before_forward was called twice; add_gradient has to come between, as it puts "
                "the weights back, or after an error restore()"
            )
        self._drawn = {}
        for name, w in self.live():
            s = concrete(self.parts[name], self.noise.like(self.own[name]))
            self._drawn[name] = (w.detach().clone(), s, gate(s))
            w.mul_(gate(s))

    @torch.no_grad()
    def restore(self) -> None:
        self._put({name: before for name, (before, _, _) in (self._drawn or {}).items()})
        self._drawn = None

    @torch.no_grad()
    def add_gradient(self, ramped: float) -> None:
        if self._drawn is None:
            raise InputError(
                "add_gradient has no gates to go by; before_forward, which draws them, has to come "
                "before the forward pass"
            )
        for name, (before, s, z) in self._drawn.items():
            w, log_alpha = self.weights[name], self.parts[name]
            local(w).copy_(before)
            p = nonzero(log_alpha)
            log_alpha.grad = p * (1 - p) * (self._strength * ramped)
            if w.grad is not None:
                # the forward pass saw w z, so the chain rule splits its gradient between the two
                gradient = local(w.grad)
                inside = (z > 0) & (z < 1)
                slope = s * (1 - s) * ((HIGH - LOW) / TEMPERATURE)
                log_alpha.grad += gradient.to(p.dtype) * before * slope * inside
                gradient.mul_(z)
        self._drawn = None


def concrete(log_alpha: Tensor, u: Tensor) -> Tensor:
    """The concrete variable in (0, 1) for uniform noise `u` (equation 10, before stretching)."""
    # float32 noise holds exact zeros and ones, whose logits are infinite
    logit = torch.logit(u, eps=torch.finfo(u.dtype).eps)
    return torch.sigmoid((logit + log_alpha) / TEMPERATURE)


def gate(s: Tensor) -> Tensor:
    """A gate in [0, 1]: the concrete variable stretched and clipped (equation 11)."""
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def nonzero(log_alpha: Tensor) -> Tensor:
    """Probability that a gate is not zero (equation 12)."""
    return torch.sigmoid(log_alpha - SHIFT)
