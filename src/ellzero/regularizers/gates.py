"""Gates: methods that learn parameters of their own beside the weights, one a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ellzero.errors import InputError, is_number
from ellzero.regularizers.shared_noise import SharedNoise
from ellzero.selection import Selection
from ellzero.sharding import like, local, part_of, reshard, summed, whole
from ellzero.tensors import is_distributed


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

    elementwise: ClassVar[bool] = False
    """Whether each weight has parameters of its own, which depend on no other weight's; only then
    can the weights be sharded (FSDP2), as each process then works on some rows of them."""

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

    What they learn stands in `own`, tensors keyed by name, moved by an Adam of its own
    (`optimizer`); both are all the state there is. A weight that is frozen later is left alone.
    `parts` is what of `own` is in this process: some rows where the weights are sharded, otherwise
    the same tensors. Work is done on parts, of these, of the weights and of their gradients.

    Raises:
        InputError: sharded weights, and gates that are not elementwise.
    """

    def __init__(self, gates: Gates, weights: Selection, own: dict[str, Tensor]) -> None:
        for name, w in weights.items():
            if is_distributed(w) and not gates.elementwise:
                raise InputError(
                    f"{type(gates).__name__} is not elementwise, and {name} is sharded (FSDP2): "
                    "some of its rows are in other processes. Train without sharding; or, where "
                    f"each weight has gates of its own, say so: elementwise = True in the class"
                )
        self.gates = gates
        self.weights = weights
        self.own = own
        self.parts = {name: local(tensor) for name, tensor in own.items()}
        self.noise = SharedNoise()
        self.is_finalized = False
        self._is_plain = False
        fused = True if all(p.device.type in ("cpu", "cuda") for p in own.values()) else None
        self.optimizer = torch.optim.Adam(list(self.parts.values()), fused=fused)
        self._strength, self._rate = gates.strength, gates.rate

    @abstractmethod
    def value(self, ramped: float) -> Tensor:
        """What the method adds to the loss as it stands, a 0-d tensor; `ramped` times strength."""

    @abstractmethod
    def plain(self) -> dict[str, Tensor]:
        """The network that the method stands for: a part for each live weight, without noise."""

    def live(self) -> Iterator[tuple[str, Tensor]]:
        """The parts of the weights that are not frozen, by name."""
        return ((name, local(w)) for name, w in self.weights.items() if w.requires_grad)

    def summed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values of parts, such as counts, by the weight's name -> those of all parts together."""
        sums = summed(list(values.values()), [self.weights[name] for name in values])
        return dict(zip(values, sums, strict=True))

    def before_forward(self) -> None:  # noqa: B027
        """Put into the weights what the forward pass is to see; by default, what is there."""

    def restore(self) -> None:  # noqa: B027
        """Put the weights back without a gradient; by default they are as they were."""

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Around forward and backward passes: an error or an interrupt puts the weights back."""
        try:
            yield
        except BaseException:
            self.restore()
            raise

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
        if self.is_finalized or self._is_plain:
            yield
            return
        self.restore()
        before = {name: w.detach().clone() for name, w in self.live()}
        self._put(self.plain())
        self._is_plain = True
        try:
            yield
        finally:
            self._is_plain = False
            self._put(before)

    def finalize(self) -> None:
        """Turn the weights into the plain ones; the gates have done their work.

        Raises:
            InputError: within `finalized()`, which would take it back.
        """
        if self._is_plain:
            raise InputError("finalize() within finalized(), which puts the gates back at its end")
        self.restore()
        if not self.is_finalized:
            self._put(self.plain())
            self.is_finalized = True

    def state_dict(self) -> dict[str, Any]:
        """Parameters of its own, their optimizer's state, and whether it is finalized.

        Those of sharded weights are gathered, so that all processes have to call this.
        """
        return {
            "own": {name: whole(tensor) for name, tensor in self.own.items()},
            "optimizer": self._of_optimizer(
                self.optimizer.state_dict(),
                lambda value, own: whole(like(value, own)) if value.shape else value,
            ),
            "is_finalized": self.is_finalized,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            InputError: other names or shapes.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in state["own"].items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self.own.items()}
        if shapes != expected:
            odd = sorted(set(shapes.items()) ^ set(expected.items()))
            raise InputError(f"the state is of other gates: {odd[0][0]} {odd[0][1]} differs")
        for name, part in self.parts.items():
            part.copy_(local(part_of(state["own"][name], self.own[name])))
        self.optimizer.load_state_dict(
            self._of_optimizer(
                state["optimizer"],
                lambda value, own: local(part_of(value, own)) if value.shape else value,
            )
        )
        self.is_finalized = state["is_finalized"]

    def _of_optimizer(
        self, state: Mapping[str, Any], convert: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Any]:
        """The state of the optimizer, with each of its tensors made another; its counts are 0-d."""
        own = list(self.own.values())
        converted = {
            index: {
                key: convert(value, own[index]) if isinstance(value, Tensor) else value
                for key, value in values.items()
            }
            for index, values in state["state"].items()
        }
        return {**state, "state": converted}

    @torch.no_grad()
    def _put(self, parts: Mapping[str, Tensor]) -> None:
        # or the next forward pass may be that of gathered weights which an earlier one has left
        reshard(self.weights.model)
        for name, part in parts.items():
            local(self.weights[name]).copy_(part)


def own_like(w: Tensor, value: float) -> Tensor:
    """A parameter of a method's own for each weight; in half precision Adam would divide by 0."""
    return torch.full_like(
        w, value, dtype=torch.promote_types(w.dtype, torch.float32), requires_grad=False
    )
