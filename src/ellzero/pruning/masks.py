"""Masks: which weights of a network are kept, as an object beside the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ellzero.blocks import blocks
from ellzero.errors import InputError, nearest
from ellzero.selection import Selection

if TYPE_CHECKING:
    from ellzero.regularizers import Regularizer


class Masks(Mapping[str, Tensor]):
    """The masks of one network: by weight name a bool tensor of its shape, True = keep.

    They stand beside the network and change nothing of it: no module is wrapped, no attribute and
    no key of its state_dict is added. Zeros are the truth: a network saved with its zeros gives the
    masks back through `Masks.of`.

    Args:
        weights: the selected weights of the network, from `ez.select`.
        masks: by name, a bool tensor of the weight's shape.

    Raises:
        InputError: names, shapes or dtypes that do not fit the weights.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(10, 10)
        >>> masks = ez.prune(model, sparsity=0.9)
        >>> masks.nonzeros, masks.numel, masks.sparsity
        (10, 100, 0.9)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with masks.hold(optimizer):
        ...     model(torch.ones(1, 10)).sum().backward()
        ...     optimizer.step()
        >>> int(model.weight.count_nonzero())
        10
    """

    def __init__(self, weights: Selection, masks: Mapping[str, Tensor]) -> None:
        _check(weights, masks)
        self.weights = weights
        self._masks = {name: masks[name].to(w.device) for name, w in weights.items()}

    @classmethod
    def of(cls, weights: Selection, kept_zeros: Mapping[str, list[int]] | None = None) -> Masks:
        """The masks of a network as it stands: `w != 0`, plus the kept zeros.

        Args:
            weights: the selected weights of the network.
            kept_zeros: by name, flat indices of weights that are kept although they are zero.

        Raises:
            InputError: kept zeros of an unknown weight, or an index outside it.
        """
        masks = {name: (w.detach() != 0).contiguous() for name, w in weights.items()}
        for name, indices in (kept_zeros or {}).items():
            if name not in masks:
                raise InputError(f"kept zeros of {name}; {nearest(name, list(masks))}")
            if not all(0 <= index < masks[name].numel() for index in indices):
                raise InputError(f"kept zeros of {name} reach outside its {masks[name].numel()}")
            masks[name].view(-1)[indices] = True
        return cls(weights, masks)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name].to(self.weights[name].device)  # the network may have moved

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def numel(self) -> int:
        """Count of the weights under the masks."""
        return sum(mask.numel() for mask in self.values())

    @property
    def nonzeros(self) -> int:
        """Count of the kept weights."""
        return sum(int(mask.count_nonzero()) for mask in self.values())

    @property
    def sparsity(self) -> float:
        """Fraction of pruned weights, in [0, 1]."""
        return 1 - self.nonzeros / self.numel

    @property
    def kept_zeros(self) -> dict[str, list[int]]:
        """By name, the flat indices of kept weights that are zero all the same (rare)."""
        found = {
            name: (mask & (self.weights[name] == 0)).reshape(-1).nonzero().view(-1).tolist()
            for name, mask in self.items()
        }
        return {name: indices for name, indices in found.items() if indices}

    @torch.no_grad()
    def apply(self) -> None:
        """Set the pruned weights to zero, in place."""
        for name, mask in self.items():
            for part, kept in blocks(self.weights[name], mask):
                part.masked_fill_(~kept, 0)

    def hold(
        self, optimizer: torch.optim.Optimizer, regularizer: Regularizer | None = None
    ) -> Hold:
        """Keep the pruned weights at zero through the optimizer's steps, inside a `with`.

        Through momentum and weight decay, foreach and fused alike. At the end of the `with` the
        optimizer's state under the masks is cleared, so that no momentum revives a weight. (After
        the hold, optimizers whose updates mix weights, such as Muon, fill zeros as any others.)

        Args:
            optimizer: what moves the weights.
            regularizer: leave it to this one's `step(optimizer)`, which then has to follow each
                step of the optimizer: with a decoupled penalty, one pass over the weights instead
                of two. By default a hook on the optimizer does it.

        Raises:
            InputError: a masked weight that no group of the optimizer owns; a regularizer that
                holds masks already.
        """
        return Hold(self, optimizer, regularizer)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks by weight name, for `load_state_dict`."""
        return dict(self)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks that `state_dict` gave; the weights themselves do not change.

        Raises:
            InputError: names, shapes or dtypes that do not fit the weights.
        """
        _check(self.weights, state)
        self._masks = {name: state[name].to(w.device) for name, w in self.weights.items()}


class Hold:
    """Masks at work on an optimizer; made by `Masks.hold`, ended by `release` or its `with`."""

    def __init__(
        self, masks: Masks, optimizer: torch.optim.Optimizer, regularizer: Regularizer | None
    ) -> None:
        owned = {w for group in optimizer.param_groups for w in group["params"]}
        for name, w in masks.weights.items():
            if w not in owned:
                raise InputError(
                    f"{name} is in no parameter group of the optimizer, so its zeros cannot be "
                    "held; give the optimizer that weight, or prune without it"
                )
        if regularizer is not None and regularizer.held:
            raise InputError("the regularizer holds other masks already; release those first")
        masks.apply()
        self._masks, self._optimizer = masks, optimizer
        self._regularizer = regularizer
        # as numbers of the weight's own dtype: multiplying by bool masks takes several times longer
        self._held: dict[Tensor, Tensor] = {
            w: torch.empty_like(w, requires_grad=False).copy_(masks[name])
            for name, w in masks.weights.items()
        }
        if regularizer is not None:
            regularizer.held = self._held
        else:
            self._hook = optimizer.register_step_post_hook(self._after_step)

    def release(self) -> None:
        """End the hold: clear the optimizer's state under the masks, and let go of it."""
        if self._regularizer is not None:
            if self._regularizer.held is self._held:  # and not those of a later hold
                self._regularizer.held = {}
        else:
            self._hook.remove()
        self._masks.apply()
        for name, mask in self._masks.items():
            for value in self._optimizer.state.get(self._masks.weights[name], {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape and value.ndim > 0:
                    value.masked_fill_(~mask.to(value.device), 0)
        self._held = {}

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        weights, factors = list(self._held), list(self._held.values())
        torch._foreach_mul_(weights, factors)  # pyright: ignore[reportPrivateImportUsage]

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _check(weights: Selection, masks: Mapping[str, Tensor]) -> None:
    if set(masks) != set(weights):
        odd = sorted(set(masks) ^ set(weights))
        raise InputError(f"masks and weights differ in {', '.join(odd[:5])}; expected one each")
    for name, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != weights[name].shape:
            raise InputError(
                f"mask of {name} is {mask.dtype} {tuple(mask.shape)}; "
                f"expected torch.bool {tuple(weights[name].shape)}"
            )
