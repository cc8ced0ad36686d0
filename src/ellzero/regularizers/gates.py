"""Gates: methods that learn parameters of their own beside the weights, one a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields

import torch
from torch import Tensor

from ellzero.errors import InputError, is_number
from ellzero.selection import Selection


@dataclass(frozen=True)
class Gates(ABC):
    """Base of the methods with parameters of their own: what they are told, before any network.

    The dataclass's fields are the keys of the method's table in a recipe (`train.gates`).
    `Regularizer(model, gates=...)` binds it to a network's weights.

    Args:
        strength: factor of what the method adds to the loss, >= 0.
        rate: how much faster than the weights its own parameters learn: factor on the learning
            rate of the optimizer's first parameter group, > 0.

    Raises:
        InputError: a number that is negative or not finite; a rate of zero.
    """

    strength: float
    _: KW_ONLY
    rate: float = 1.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < math.inf:
                raise InputError(
                    f"{type(self).__name__}: {name} is {value!r}; expected a finite number >= 0"
                )
        if self.rate == 0:
            raise InputError(f"{type(self).__name__}: rate is 0, so nothing would be learned")

    @abstractmethod
    def bind(self, weights: Selection) -> BoundGates:
        """The method at work on these weights, with fresh parameters of its own."""


class BoundGates(ABC):
    """Gates at work on the weights of one network; `Regularizer` calls them, users do not.

    What they learn stands in `own`, plain tensors keyed by name, moved by an Adam of its own
    (`optimizer`); both are all the state there is. A weight that is frozen later is left alone.
    """

    def __init__(self, weights: Selection, rate: float, own: dict[str, Tensor]) -> None:
        self.weights = weights
        self.own = own
        fused = True if all(p.device.type in ("cpu", "cuda") for p in own.values()) else None
        self.optimizer = torch.optim.Adam(list(own.values()), fused=fused)
        self._rate = rate

    @abstractmethod
    def value(self, ramped: float) -> Tensor:
        """What the method adds to the loss as it stands, a 0-d tensor; `ramped` times strength."""

    @abstractmethod
    def plain(self) -> dict[str, Tensor]:
        """The network that the method stands for: a tensor for each live weight, without noise."""

    def live(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that are not frozen, by name."""
        return ((name, w) for name, w in self.weights.items() if w.requires_grad)

    def before_forward(self) -> None:  # noqa: B027
        """Put into the weights what the forward pass is to see; by default, what is there."""

    @abstractmethod
    def add_gradient(self, ramped: float) -> None:
        """Put the weights back, complete their `.grad`, and fill the gradients of `own`."""

    def step(self, learning_rate: float | Tensor) -> None:
        """Move the parameters of its own."""
        self.optimizer.param_groups[0]["lr"] = learning_rate * self._rate
        self.optimizer.step()
        self.optimizer.zero_grad()  # so that those of a weight frozen later do not move again

    @contextmanager
    def finalized(self) -> Iterator[None]:
        """The weights are the plain ones inside the block, and what they were after it."""
        before = {name: w.detach().clone() for name, w in self.live()}
        self.finalize()
        try:
            yield
        finally:
            self._put(before)

    def finalize(self) -> None:
        """Turn the weights into the plain ones; the gates have done their work."""
        self._put(self.plain())

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.weights[name].copy_(tensor)


def own_like(w: Tensor, value: float) -> Tensor:
    """A parameter of a method's own for each weight; in half precision Adam would divide by 0."""
    return torch.full_like(
        w, value, dtype=torch.promote_types(w.dtype, torch.float32), requires_grad=False
    )
