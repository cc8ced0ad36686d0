"""A penalty, or gates, bound to the weights of a network: what a training loop calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import InputError, warn
from ellzero.penalties import Form, Penalty
from ellzero.pruning import Masks
from ellzero.pruning.hold import Optimizers, each, require_owned
from ellzero.regularizers.acts import Act, acts_by_form, at, gathered, total
from ellzero.regularizers.compiled import CompiledGradient, NotTracedError
from ellzero.regularizers.decoupled import shrink
from ellzero.regularizers.gates import BoundGates, Gates
from ellzero.regularizers.gradient import add_gathered_gradient, add_gradients, gradient_of
from ellzero.regularizers.layer_scale import LayerScale, layer_scales
from ellzero.regularizers.remainders import Remainders
from ellzero.regularizers.together import Work
from ellzero.schedules import Schedule
from ellzero.selection import Selection, selected
from ellzero.sharding import local

MANY = 100
"""Calls of `add_gradient()` after which terms of which a loop never took notice are warned of."""


class Regularizer:
    r"""A penalty, gates, or both, bound to a network, for a training loop of your own.

    Each term of the penalty acts in its own form: `loss()` is added to the loss before backward,
    `add_gradient()` goes after backward (after unscaling and accumulation, before clipping),
    `step(optimizer)` after the optimizer's step. With the loss `L`, a term `Omega`, the optimizer's
    step `A` from a gradient, and its learning rate `eta`, one step of each form is

    .. math::

        \text{loss:} \quad & w \leftarrow w + A(\nabla [L + \Omega](w)) \\
        \text{gradient:} \quad & w \leftarrow w + A(\nabla L(w) + \nabla \Omega(w)) \\
        \text{decoupled:} \quad & v = w + A(\nabla L(w)), \quad
        w \leftarrow \operatorname{sign}(v)
        \max(\left|v\right| - \eta \, \Omega'(\left|v\right|), \; 0)

    The first two are the same by different means. A method whose form does not occur in the penalty
    does nothing. Gates need all of `before_forward()`, `add_gradient()` and `step(optimizer)`, a
    validation within `finalized()`, and `finalize()` at the end of the training. What it learns or
    counts is in its `state_dict()`.

    Where the network is sharded (FSDP2), also later than this is made, each process works on the
    rows that it has. All of them call the same methods, and values are those of whole weights.

    Args:
        model: the network; nothing of it changes.
        penalty: one penalty, or a sum of them.
        gates: a method with parameters of its own, `ez.HardConcrete` or `ez.PMMP`.
        weights: what it acts on, from `ez.select`; by default what it selects by default.
        layer_scale: factor on each layer's l0 strength; other terms are never scaled.
            `None`: 1. `"paper"`: `sqrt(n / n_max)`, with `n` the weights of the layer and `n_max`
            those of the largest layer of its kind (dense, conv, recurrent). `"paper-code"`: the
            same, with the kernel's height left out of a convolution's `n`, as in the authors' code.
            `"inverse"`: `N / (n * layers)`, of arXiv 2505.17469.
        ramp: a factor on all strengths that follows `progress`, such as `ez.Schedule(0, 1)`; by
            default none. (A penalty's beta may follow a schedule, too, see `ez.L0`.)
        compile: let PyTorch's compiler turn `add_gradient()` into one kernel a weight, on a GPU
            into one for all small weights. Its first call then takes some seconds; a CPU needs a
            C++ compiler. Where a version of torch
            cannot do it, a warning says so, and the plain form is taken.

    Raises:
        InputError: neither penalty nor gates, or something else in their place; an unknown layer
            scale; a ramp that is no schedule, or below 0; no weights selected, or those of another
            network; gates or a decoupled penalty on weights under weight normalization, whose rows
            must not become zero. Later, from any method: a weight that the network no longer has,
            for it was replaced by another one.

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
        ramp: Schedule | None = None,
        compile: bool = False,
    ) -> None:
        if not isinstance(penalty, Penalty) and (gates is None or penalty is not None):
            given = None if penalty is None else type(penalty).__name__
            raise InputError(
                f"penalty is {given}; expected a penalty such as ez.L0(1e-5), or a sum of them"
            )
        if ramp is not None and (not isinstance(ramp, Schedule) or min(ramp.start, ramp.end) < 0):
            raise InputError(
                f"ramp is {ramp!r}; expected a schedule of factors >= 0, such as ez.Schedule(0, 1)"
            )
        if gates is not None and not isinstance(gates, Gates):
            raise InputError(f"gates is {gates!r}; expected gates such as ez.HardConcrete(1e-6)")
        self.penalty = penalty
        self.weights = selected(model, weights)
        self.gates = None if gates is None else gates.bind(self.weights)
        self.ramp = ramp
        self.progress: float | None = None
        """Progress of the training in [0, 1]; the loop has to set it for a ramp or a schedule."""
        self._scales = layer_scales(self.weights, layer_scale)
        self._bind()
        self._scheduled = penalty is not None and any(term.schedules for term in penalty.terms)
        self._compiled = CompiledGradient() if compile else None
        self._remainders = Remainders()
        self._is_fresh = True
        self._calls = 0
        """Of `add_gradient()`."""
        self._used: set[Form] = set()
        """The forms of which the loop has taken the terms."""
        self._require_rows()

    def _bind(self) -> None:
        """Find out what acts on the weights as they are now."""
        self._bound = self.weights.weights
        terms = () if self.penalty is None else self.penalty.terms
        self._acts = acts_by_form(terms, self._bound, self._scales)

    def _require_current(self) -> None:
        """Make sure that the network has these weights, and go along where it has been sharded."""
        self.weights.require_current()
        if self._bound == self.weights.weights:
            return
        self._bind()
        if self.gates is not None:
            state = self.gates.state_dict()
            self.gates = self.gates.gates.bind(self.weights)
            self.gates.load_state_dict(state)

    def value(self) -> Tensor:
        """All that is added to the loss as the network stands, whatever its form: a 0-d tensor."""
        self._require_current()
        with torch.no_grad():
            value = self._sum("gradient", "loss", "decoupled")
            if self.gates is not None:
                value = value + self.gates.value(self._ramped()).to(value.device)
            return value

    def before_forward(self) -> AbstractContextManager[None]:
        """Let gates put into the weights what the forward pass is to see.

        Several forward and backward passes may follow (accumulation) before `add_gradient()`. Used
        as `with regularizer.before_forward():` around them, an error or an interrupt within puts
        the weights back; elsewhere `restore()` does.

        Raises:
            InputError: `add_gradient()`, which puts the weights back, was not called in between;
                `finalize()` has ended the gates.
        """
        if self.gates is None:
            return nullcontext()
        self._require_current()
        self._working_gates().before_forward()
        return self.gates.restoring()

    def restore(self) -> None:
        """Put the weights back after a forward pass whose `add_gradient()` will not come."""
        if self.gates is not None:
            self.gates.restore()

    def renew_noise(self) -> None:
        """Seed the noise that gates share over several processes anew, at their next draw.

        The seed comes from the global generator of rank 0. In one process gates draw from the
        global generator itself, and this does nothing.
        """
        if self.gates is not None:
            self.gates.noise.renew()

    def loss(self) -> Tensor:
        """The terms of form `loss`, as a 0-d tensor for autograd (0 where there are none)."""
        self._used.add("loss")
        return self._sum("loss")

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the gradient of the terms of form `gradient` to the weights' `.grad`.

        A weight that has no gradient yet gets one, as it would from a term of the loss; where none
        has one, a warning says so, for backward has to come first. Gates put the weights back
        first.

        Raises:
            InputError: it is to be compiled, and there is no compiler; a sparse gradient.
        """
        self._require_current()
        self._calls += 1
        if self._calls == MANY:
            self._warn_of_unused()
        acts = self._acts.get("gradient", ())
        if acts or self.gates is not None:
            self._require_gradients()
        if self.gates is not None:
            self._working_gates().add_gradient(self._ramped())
        ramped = self._ramped()
        acts = self._acting("gradient")
        for act in self._now([act for act in acts if act.gathered]):
            add_gathered_gradient(act.weight.parameter, act.terms, ramped)
        acts = [act for act in acts if not act.gathered]
        weights = [local(act.weight.parameter) for act in acts]
        gradients = [gradient_of(act.weight.parameter) for act in acts]
        if self._compiled is not None and acts:
            terms = [act.terms for act in acts]
            factor = None if self.ramp is None else ramped
            progress = self._progress() if self._scheduled else None
            try:
                self._compiled(weights, gradients, terms, factor, progress)
                return
            except NotTracedError as error:
                warn(str(error))
                self._compiled = None
        now = zip(gradients, weights, self._now(acts), strict=True)
        add_gradients((Work((gradient, w), act.terms) for gradient, w, act in now), ramped)

    @torch.no_grad()
    def step(self, optimizer: Optimizers, *, masks: Masks | None = None) -> None:
        """Take the step of the terms of form `decoupled`, with each group's learning rate.

        The magnitude `m` of a weight, or the norm of a group, becomes `max(m - lr penalty'(m), 0)`.
        Steps too small for a weight in half precision add up until they show. Gates move their own
        parameters. Call it after `optimizer.step()`, and not where a gradient scaler skipped that
        step.

        Args:
            optimizer: what moves the weights, or a list of several that do together; gates take the
                rate of the first one's first group.
            masks: set what they prune to zero first, for a loop without a hold; within
                `masks.hold(optimizer)` the optimizer's step has done so.

        Raises:
            InputError: a weight, or a masked one, that no group of the optimizer owns; something
                else in the place of masks.
        """
        self._used.add("decoupled")
        groups = [group for one in each(optimizer) for group in one.param_groups]
        if masks is not None and not isinstance(masks, Masks):
            raise InputError(
                f"masks is {type(masks).__name__}; expected the Masks of ez.prune, or None"
            )
        if self.gates is not None:
            self._working_gates().step(groups[0]["lr"])
        if "decoupled" not in self._acts and masks is None:
            return
        self._require_current()
        rates: dict[Tensor, float | Tensor] = {
            w: group["lr"] for group in groups for w in group["params"]
        }
        if masks is not None:
            masks.weights.require_current()
            require_owned(masks.weights, rates)
            masks.bits.apply(masks.weights.values())
        ramped = self._ramped()
        works = []
        for act in self._now(self._acting("decoupled")):
            w = act.weight.parameter
            if w not in rates:
                raise InputError(
                    f"{act.weight.name} is in no parameter group of the optimizer, so its learning "
                    "rate is unknown; give the optimizer that weight, or exclude it"
                )
            is_half = w.dtype.itemsize < 4
            tensors = (w, self._remainders.of(act.weight.name, w)) if is_half else (w,)
            if act.gathered:
                with gathered(tensors) as wholes:
                    shrink([Work(wholes, act.terms, rates[w])], ramped)
            else:
                works.append(Work(tuple(map(local, tensors)), act.terms, rates[w]))
        shrink(works, ramped)

    def _warn_of_unused(self) -> None:
        for form, remedy in (
            ("decoupled", "call regularizer.step(optimizer) after optimizer.step()"),
            ("loss", "add regularizer.loss() to the loss"),
        ):
            if form in self._acts and form not in self._used:
                warn(f"the terms of form {form} have had no effect for {MANY} steps; {remedy}")

    @contextmanager
    def finalized(self) -> Iterator[None]:
        """The network as it would be at the end, for a validation inside the block.

        Gates become plain weights there, and come back after it; without gates nothing changes.
        """
        if self.gates is None:
            yield
            return
        self._require_current()
        with self.gates.finalized():
            yield

    def finalize(self) -> None:
        """End the training: gates become plain weights for good; without gates nothing changes.

        Once is enough, and a second time changes nothing.

        Raises:
            InputError: it is called within `finalized()`.
        """
        if self.gates is not None:
            self._require_current()
            self.gates.finalize()

    def state_dict(self) -> dict[str, Any]:
        """What it has learned or counted, for `load_state_dict`; a draw of the gates stays.

        `remainders`: by weight name, what the decoupled step owes weights in half precision.
        `gates`: parameters and optimizer of the gates, None without them. The `progress` is the
        loop's to set. All tensors are whole: those of a sharded network (FSDP2) are gathered, so
        that all of its processes have to call this; any number of processes can load them.
        """
        gates = None if self.gates is None else self.gates.state_dict()
        return {"remainders": self._remainders.state_dict(), "gates": gates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave for the same penalty, gates and network.

        Raises:
            InputError: a state of another network, or of other gates.
        """
        if set(state) != {"remainders", "gates"}:
            raise InputError(
                f"the state has the keys {', '.join(map(str, state))[:60] or '(none)'}; expected "
                "what state_dict() of a regularizer gave: remainders, gates"
            )
        if (state["gates"] is None) != (self.gates is None):
            has = ("no gates", "gates")
            raise InputError(
                f"the state is of a regularizer with {has[state['gates'] is not None]}; this one "
                f"has {has[self.gates is not None]}"
            )
        self._remainders.load_state_dict(state["remainders"], self.weights)
        if self.gates is not None:
            self.gates.load_state_dict(state["gates"])

    def _require_rows(self) -> None:
        """Refuse what would make zeros of whole rows that are divided by their norm."""
        if "decoupled" not in self._acts and self.gates is None:
            return
        for weight in self.weights.weights:
            if weight.normalized:
                what = "gates" if self.gates is not None else "the form 'decoupled'"
                raise InputError(
                    f"{weight.name} is divided by its norm (of a row, or of all of it), and {what} "
                    "could make that 0; take the form 'gradient', exclude the weight, or remove "
                    "the normalization"
                )

    def _require_gradients(self) -> None:
        """Refuse sparse ones; warn in the first call if there are none.

        Only the first can tell: later on the optimizer may set gradients to zeros.
        """
        for name, w in self.weights.items():
            if w.grad is not None and w.grad.layout is not torch.strided:
                raise InputError(
                    f"{name} has a sparse gradient, and a penalty's would be dense; take the form "
                    "'decoupled', or make the embedding with sparse=False"
                )
        live = [w for w in self.weights.values() if w.requires_grad]
        if not self._is_fresh or not live:
            return
        self._is_fresh = False
        if all(w.grad is None for w in live):
            warn(
                "add_gradient() found no gradient of the loss on any weight; call it after "
                "loss.backward() and before the optimizer's step"
            )

    def _working_gates(self) -> BoundGates:
        assert self.gates is not None
        if self.gates.is_finalized:
            raise InputError(
                "finalize() has turned the gates into plain weights; train on without them, or "
                "with a new regularizer"
            )
        return self.gates

    def _progress(self) -> float:
        if self.progress is None:
            what = "ramp" if self.ramp is not None else "schedule"
            raise InputError(
                f"the {what} needs to know where the training is: set progress to 0..1"
            )
        return self.progress

    def _ramped(self) -> float:
        return 1.0 if self.ramp is None else self.ramp(self._progress())

    def _acting(self, form: Form) -> list[Act]:
        """What terms of that form act on now; a weight may have been frozen since."""
        return [act for act in self._acts.get(form, ()) if act.weight.parameter.requires_grad]

    def _now(self, acts: list[Act]) -> list[Act]:
        """The same with the numbers that the terms' schedules have now."""
        return at(acts, self._progress()) if self._scheduled and acts else acts

    def _sum(self, *forms: Form) -> Tensor:
        # on one device, however the weights are spread
        device = self.weights.weights[0].parameter.device
        if not self._acts.keys() & set(forms):
            return torch.zeros((), device=device)
        self._require_current()
        acts = (act for form in forms for act in self._now(self._acting(form)))
        return total(acts, device) * self._ramped()
