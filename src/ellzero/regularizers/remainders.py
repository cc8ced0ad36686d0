"""What the decoupled step owes weights in half precision: less than rounding lets them show."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.selection import Selection
from ellzero.sharding import local, part_of, redistributed, whole


class Remainders:
    """By weight name, what a weight is owed: float32 of its shape, laid out as the weight is."""

    def __init__(self) -> None:
        self._owed: dict[str, Tensor] = {}

    def of(self, name: str, w: Tensor) -> Tensor:
        """What a weight is owed, to be changed in place; nothing in the beginning."""
        owed = self._owed.get(name)
        if owed is None:
            owed = torch.zeros_like(w, dtype=torch.float32, requires_grad=False)
        # the network may have moved, or been sharded
        self._owed[name] = owed = redistributed(owed, w)
        return owed

    def state_dict(self) -> dict[str, Tensor]:
        """Whole tensors by name; all processes of a sharded network have to call this."""
        return {name: whole(owed) for name, owed in self._owed.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], weights: Selection) -> None:
        """Take over what `state_dict` gave.

        Raises:
            InputError: a name or shape that is none of the weights.
        """
        for name, remainder in state.items():
            if name not in weights or remainder.shape != weights[name].shape:
                raise InputError(
                    f"the state has a remainder of {name} {tuple(remainder.shape)}; expected one "
                    f"of {', '.join(weights)}, of its shape"
                )
        self._owed = {}
        for name, remainder in state.items():
            # in the memory format of the weight
            owed = torch.empty_like(weights[name], dtype=torch.float32, requires_grad=False)
            local(owed).copy_(local(part_of(remainder, owed)))
            self._owed[name] = owed
