"""What a penalty is: a scalar function of weights with a strength and a form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ellzero.errors import InputError, is_number
from ellzero.schedules import Schedule

Form = Literal["gradient", "loss", "decoupled"]
"""How a penalty acts on the weights; its strength means nothing without it.

- `gradient`: its gradient is added to `.grad` after backward (the paper's way; the default). An
  adaptive optimizer such as Adam then rescales it per weight, like any part of the gradient.
- `loss`: a term of the loss, differentiated by autograd. The same mathematics, slower; right where
  something else needs to see the whole objective (L-BFGS, a line search, a logged loss).
- `decoupled`: a step of its own after the optimizer's. The magnitude `m` of a weight, or the norm
  of a group of them, becomes `max(m - lr penalty'(m), 0)`; signs and directions stay. No optimizer
  rescales it and weights become exactly zero; its strengths are orders of magnitude larger than the
  other forms' and not comparable.
"""


class Penalty(ABC):
    """A scalar function of weights, strength included; penalties add up with `+`.

    Example:
        >>> import ellzero as ez
        >>> isinstance(ez.L1(1e-4) + ez.L2(1e-5), ez.Penalty)
        True
    """

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The penalties that add up to this one; a single penalty is its own only term."""

    @abstractmethod
    def value(self, w: Tensor) -> Tensor:
        """The penalty of a tensor of any shape, as a 0-d tensor that autograd can differentiate.

        In float32 where the weights are in half precision, whose range a sum soon leaves.
        """

    @abstractmethod
    def gradient(self, w: Tensor) -> Tensor:
        """The penalty's gradient in closed form, of the shape of `w`; the subgradient at 0 is 0."""

    @abstractmethod
    def at(self, progress: float) -> Penalty:
        """The penalty with the numbers that its schedules have at a progress in [0, 1]."""

    def __add__(self, other: Penalty) -> Sum:
        if not isinstance(other, Penalty):
            return NotImplemented
        return Sum(self.terms + other.terms)

    def __radd__(self, other: object) -> Penalty:
        # sum([...]) begins with the number 0
        return self if type(other) is int and other == 0 else NotImplemented


@dataclass(frozen=True)
class Sum(Penalty):
    """A sum of penalties, each with its own strength and form; made by `+`.

    Example:
        >>> import ellzero as ez
        >>> penalty = ez.L0(1e-5, beta=5) + ez.L2(1e-5)
        >>> [type(term).__name__ for term in penalty.terms]
        ['L0', 'L2']
    """

    addends: tuple[Term, ...]

    @property
    def terms(self) -> tuple[Term, ...]:
        """The addends."""
        return self.addends

    def value(self, w: Tensor) -> Tensor:
        """Sum of the terms' values, a 0-d tensor."""
        return torch.stack([term.value(w) for term in self.addends]).sum()

    def gradient(self, w: Tensor) -> Tensor:
        """Sum of the terms' gradients, of the shape of `w`."""
        total = self.addends[0].gradient(w)
        for term in self.addends[1:]:
            total += term.gradient(w)
        return total

    def at(self, progress: float) -> Sum:
        return Sum(tuple(term.at(progress) for term in self.addends))


@dataclass(frozen=True)
class Term(Penalty):
    """Base of the single penalties: a strength, and the form in which it acts.

    A penalty is one file with one frozen dataclass, and its line in `penalties/__init__.py`.
    The dataclass's fields are at once the keys of the penalty's table in a recipe.

    Raises:
        InputError: a strength that is negative or not finite; a form the penalty does not have.

    Example:
        >>> import torch, ellzero as ez
        >>> class Cubes(ez.Term):
        ...     def value(self, w):
        ...         return self.strength * w.abs().pow(3).sum()
        ...
        ...     def gradient(self, w):
        ...         return 3 * self.strength * w * w.abs()
        >>> Cubes(0.5).gradient(torch.tensor([0.0, 1.0, -2.0]))
        tensor([ 0.0000,  1.5000, -6.0000])
    """

    forms: ClassVar[tuple[Form, ...]] = ("gradient", "loss")
    """The forms in which this penalty may act."""

    sparsifying: ClassVar[bool] = True
    """Whether it pulls weights to zero for pruning; fine-tuning drops such terms."""

    layer_scaled: ClassVar[bool] = False
    """Whether a layer scale multiplies its strength; that of l0 alone, as in the paper."""

    elementwise: ClassVar[bool] = True
    """Whether the penalty is a sum over the weights, of a function of each alone.

    Its methods then get flat parts of a layer, in float32 where the layer is in half precision. A
    mean is not elementwise: it depends on how many weights there are.
    """

    rowwise: ClassVar[bool] = False
    """Whether one that is not elementwise is a sum over rows `w[g, ...]`, of a function of each.

    Of a sharded weight (FSDP2) its methods then get the rows that are here, as those of an
    elementwise one get parts of them. For any other penalty the weight is gathered at each use.
    """

    strength: float
    form: Form = field(default="gradient", kw_only=True)

    def __post_init__(self) -> None:
        self._require_number("strength", self.strength)
        if self.form not in self.forms:
            raise InputError(
                f"{type(self).__name__}: form is {self.form!r}; expected {' or '.join(self.forms)}"
            )

    def _require_number(self, name: str, value: object, *, scheduled: bool = False) -> None:
        """Refuse what is no finite number >= 0, nor a schedule from one to another if it may be."""
        ends = [value.start, value.end] if scheduled and isinstance(value, Schedule) else [value]
        if not all(is_number(end) and 0 <= end < math.inf for end in ends):
            raise InputError(
                f"{type(self).__name__}: {name} is {value!r}; expected a finite number >= 0"
            )

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The numbers that follow a schedule, by their names."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Schedule)}

    def at(self, progress: float) -> Term:
        numbers = {name: schedule(progress) for name, schedule in self.schedules.items()}
        return replace(self, **numbers) if numbers else self

    def _number(self, name: str) -> float:
        """One of the numbers, as long as it follows no schedule.

        Raises:
            InputError: it does, so that it depends on the progress.
        """
        value = getattr(self, name)
        if isinstance(value, Schedule):
            raise InputError(
                f"{type(self).__name__}: {name} follows {value}; say where the training is: "
                "penalty.at(progress), or a Regularizer's progress"
            )
        return value

    @property
    def terms(self) -> tuple[Term, ...]:
        """A single penalty is its own only term."""
        return (self,)

    @property
    def by_parts(self) -> bool:
        """Whether it is the sum of what it is of some rows and of the others."""
        return self.elementwise or self.rowwise

    def add_gradient_(self, gradient: Tensor, w: Tensor, factor: float) -> None:
        """Add `factor` times the penalty's gradient at `w` to `gradient`, in place.

        A penalty overrides it where that takes fewer passes over the tensors than `gradient` and a
        sum; one that is not elementwise, so that nothing of the size of `w` is allocated.
        """
        gradient.add_(self.gradient(w), alpha=float(factor))

    def shrink_(self, w: Tensor, step: float | Tensor) -> None:
        """Take the decoupled step on `w` in place: `m <- max(m - step penalty'(m), 0)`.

        `m` is the magnitude of a weight, or the norm of a group of them. No weight crosses zero and
        zeros stay; a step of length 0 changes nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} has no decoupled form")


def wide(w: Tensor) -> Tensor:
    """In float32 where the precision is half, too coarse for sums and exponentials."""
    return w.float() if w.dtype.itemsize < 4 else w


def shrink_by_(w: Tensor, amount: float | Tensor) -> None:
    """`w <- sign(w) max(|w| - amount, 0)` in place; where `amount > 0`, zeros come out as +0."""
    limits: Any = (-amount, amount)  # both numbers, or both tensors
    w.sub_(w.clamp(*limits))
