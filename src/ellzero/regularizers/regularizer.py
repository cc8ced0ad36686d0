"""A penalty, or gates, bound to the weights of a network: what a training loop calls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ellzero.blocks import blocks
from ellzero.curves import Curve
from ellzero.errors import InputError, nearest
from ellzero.penalties import Form, Penalty, Term
from ellzero.penalties.penalty import wide
from ellzero.regularizers.compiled import CompiledGradient, Terms
from ellzero.regularizers.gates import Gates
from ellzero.selection import Selection, Weight, select

LayerScale = Literal["paper", "paper-code", "inverse"]


class Regularizer:
    """A penalty, gates, or both, bound to a network, for a training loop of your own.

    Each term of the penalty acts in its own form: `loss()` is added to the loss before backward,
    `add_gradient()` goes after backward (after unscaling and accumulation, before clipping),
    `step(optimizer)` after the optimizer's step. A method whose form does not occur in the penalty
    does nothing. Gates need all of `before_forward()`, `add_gradient()` and `step(optimizer)`, a
    validation within `finalized()`, and `finalize()` at the end of the training.

    Args:
        model: the network; nothing of it changes.
        penalty: one penalty, or a sum of them.
        gates: a method with parameters of its own, `ez.HardConcrete` or `ez.PMMP`.
        weights: what it acts on, from `ez.select`; by default the weights of linear and
            convolution layers.
        layer_scale: factor on each layer's l0 strength (METHOD; other terms are never scaled).
            `None`: 1. `"paper"`: `sqrt(n / n_max)`, with `n` the weights of the layer and `n_max`
            those of the largest layer of its kind (dense, conv). `"paper-code"`: the same, with
            the kernel's height left out of `n` for convolutions, as in the authors' code.
            `"inverse"`: `N / (n * layers)`, of arXiv 2505.17469.
        ramp: a curve by which all strengths rise with `progress`; by default none.
        compile: let PyTorch's compiler turn `add_gradient()` into one kernel a weight. Its first
            call then takes some seconds; a CPU needs a C++ compiler.

    Raises:
        InputError: neither penalty nor gates, or something else in their place; an unknown layer
            scale; no weights selected.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> regularizer = ez.Regularizer(model, ez.L0(1e-3, beta=5) + ez.L2(1e-4))
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> regularizer.add_gradient()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty | None = None,
        *,
        gates: Gates | None = None,
        weights: Selection | None = None,
        layer_scale: LayerScale | None = None,
        ramp: Curve | None = None,
        compile: bool = False,
    ) -> None:
        if not isinstance(penalty, Penalty) and (gates is None or penalty is not None):
            raise InputError(
                f"penalty is {penalty!r}; expected a penalty such as ez.L0(1e-5), or a sum of them"
            )
        if gates is not None and not isinstance(gates, Gates):
            raise InputError(f"gates is {gates!r}; expected gates such as ez.HardConcrete(1e-6)")
        self.penalty = penalty
        self.weights = select(model) if weights is None else weights
        self.gates = None if gates is None else gates.bind(self.weights)
        self.ramp = ramp
        self.progress: float | None = None
        """Progress of the training in [0, 1]; the loop has to set it where a ramp is used."""
        self.held: Mapping[Tensor, Tensor] = {}
        """Masks that `step` applies, by weight, as 0 and 1 of its dtype; `Masks.hold` sets them."""
        terms = () if penalty is None else penalty.terms
        scales = layer_scales(self.weights, layer_scale)
        self._acts: dict[Form, list[_Act]] = {
            form: [
                _Act(weight, [(t, scale if t.layer_scaled else 1.0) for t in acting])
                for weight, scale in zip(self.weights.weights, scales, strict=True)
            ]
            for form in get_args(Form)
            if (acting := [term for term in terms if term.form == form])
        }
        self._compiled = CompiledGradient() if compile else None

    def value(self) -> Tensor:
        """All that is added to the loss as the network stands, whatever its form: a 0-d tensor."""
        with torch.no_grad():
            total = self._sum("gradient", "loss", "decoupled")
            if self.gates is not None:
                total = total + self.gates.value(self._ramped()).to(total.device)
            return total

    def before_forward(self) -> None:
        """Let gates put into the weights what the forward pass is to see.

        Several forward and backward passes may follow (accumulation) before `add_gradient()`.

        Raises:
            InputError: `add_gradient()`, which puts the weights back, was not called in between.
        """
        if self.gates is not None:
            self.gates.before_forward()

    def loss(self) -> Tensor:
        """The terms of form `loss`, as a 0-d tensor for autograd (0 where there are none)."""
        return self._sum("loss")

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the gradient of the terms of form `gradient` to the weights' `.grad`.

        A weight that has no gradient yet gets one, as it would from a term of the loss. Gates put
        the weights back first.

        Raises:
            InputError: it is to be compiled, and there is no compiler.
        """
        if self.gates is not None:
            self.gates.add_gradient(self._ramped())
        ramped = self._ramped()
        acts = self._acting("gradient")
        weights: list[Tensor] = [act.weight.parameter for act in acts]
        gradients: list[Tensor] = []
        for w in weights:
            if w.grad is None:
                w.grad = torch.zeros_like(w)
            gradients.append(w.grad)
        if self._compiled is None:
            for w, gradient, act in zip(weights, gradients, acts, strict=True):
                _add_gradient(w, gradient, act.terms, ramped)
        elif acts:
            terms = [act.terms for act in acts]
            self._compiled(weights, gradients, terms, None if self.ramp is None else ramped)

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step of the terms of form `decoupled`, with each group's learning rate.

        The magnitude `m` of a weight, or the norm of a group, becomes `max(m - lr penalty'(m), 0)`.
        Masks held by this regularizer are applied first, in the same pass over the weights. Gates
        move their own parameters. Call it after `optimizer.step()`, and not where a gradient scaler
        skipped that step.

        Raises:
            InputError: a weight that no group of the optimizer owns.
        """
        if self.gates is not None:
            self.gates.step(optimizer.param_groups[0]["lr"])
        acts = self._acting("decoupled")
        if not acts and not self.held:
            return
        rates: dict[Tensor, float | Tensor] = {}
        shrunk: set[Tensor] = set()
        ramped = self._ramped()
        for weight, terms in acts:
            w = weight.parameter
            if not rates:
                rates = {
                    w: group["lr"] for group in optimizer.param_groups for w in group["params"]
                }
            if w not in rates:
                raise InputError(
                    f"{weight.name} is in no parameter group of the optimizer, so its learning "
                    "rate is unknown; give the optimizer that weight, or exclude it"
                )
            _shrink_(w, self.held.get(w), terms, rates[w] * ramped)
            shrunk.add(w)
        rest = [(w, mask) for w, mask in self.held.items() if w not in shrunk]
        if rest:
            torch._foreach_mul_(*map(list, zip(*rest, strict=True)))  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def finalized(self) -> Iterator[None]:
        """The network as it would be at the end, for a validation inside the block.

        Gates become plain weights there, and come back after it; without gates nothing changes.
        """
        if self.gates is None:
            yield
            return
        with self.gates.finalized():
            yield

    def finalize(self) -> None:
        """End the training: gates become plain weights for good; without gates nothing changes."""
        if self.gates is not None:
            self.gates.finalize()

    def _ramped(self) -> float:
        if self.ramp is not None and self.progress is None:
            raise InputError("the ramp needs to know where the training is: set progress to 0..1")
        return 1.0 if self.ramp is None else self.ramp(self.progress or 0.0)

    def _acting(self, form: Form) -> list[_Act]:
        """What terms of that form act on now; a weight may have been frozen since."""
        return [act for act in self._acts.get(form, ()) if act.weight.parameter.requires_grad]

    def _sum(self, *forms: Form) -> Tensor:
        # on one device, however the weights are spread
        device = self.weights.weights[0].parameter.device
        total = torch.zeros((), device=device)
        for weight, terms in (act for form in forms for act in self._acting(form)):
            for term, scale in terms:
                total = total + (_value(term, weight.parameter) * scale).to(device)
        return total * self._ramped()


class _Act(NamedTuple):
    weight: Weight
    terms: Terms


def _value(term: Term, w: Tensor) -> Tensor:
    if torch.is_grad_enabled() or not term.elementwise:
        return term.value(wide(w))
    return torch.stack([term.value(wide(part)) for (part,) in blocks(w)]).sum()


def _add_gradient(w: Tensor, gradient: Tensor, terms: Terms, ramped: float) -> None:
    elementwise = [(term, scale * ramped) for term, scale in terms if term.elementwise]
    # one pass over the memory, however many terms there are
    for part, into in blocks(w, gradient) if elementwise else ():
        total, wide_part = wide(into), wide(part)
        for term, factor in elementwise:
            term.add_gradient_(total, wide_part, factor)
        if total is not into:
            into.copy_(total)
    for term, scale in terms:
        if not term.elementwise:
            term.add_gradient_(gradient, w, scale * ramped)


def _shrink_(w: Tensor, mask: Tensor | None, terms: Terms, rate: float | Tensor) -> None:
    """The decoupled step on one weight, with its mask before it where it has one."""
    elementwise = [(term, scale) for term, scale in terms if term.elementwise]
    if elementwise or mask is not None:
        for part, *kept in blocks(w) if mask is None else blocks(w, mask):
            if kept:
                part.mul_(kept[0])
            wide_part = wide(part)
            for term, scale in elementwise:
                term.shrink_(wide_part, rate * scale)
            if wide_part is not part:
                part.copy_(wide_part)
    for term, scale in terms:
        if not term.elementwise:
            term.shrink_(w, rate * scale)


def layer_scales(weights: Selection, rule: LayerScale | None) -> list[float]:
    """The factor on each layer's l0 strength under a layer scale, in the selection's order.

    Raises:
        InputError: an unknown rule.
    """
    if rule is None:
        return [1.0] * len(weights)
    if rule not in get_args(LayerScale):
        raise InputError(f"layer_scale is {rule!r}; {nearest(str(rule), get_args(LayerScale))}")
    sizes = [_size(weight, rule) for weight in weights.weights]
    if rule == "inverse":
        return [sum(sizes) / (size * len(sizes)) for size in sizes]
    largest: dict[str, int] = {}
    for weight, size in zip(weights.weights, sizes, strict=True):
        largest[weight.kind] = max(size, largest.get(weight.kind, 0))
    return [
        math.sqrt(size / largest[weight.kind])
        for weight, size in zip(weights.weights, sizes, strict=True)
    ]


def _size(weight: Weight, rule: LayerScale) -> int:
    size = weight.parameter.numel()
    if rule == "paper-code" and weight.kind == "conv":
        return size // weight.parameter.shape[2]  # (out, in, height, ...)
    return size
