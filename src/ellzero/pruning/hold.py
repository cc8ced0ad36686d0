"""Holding masks: pruned weights stay at zero through whatever moves the weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.pruning.bits import Bits, fill_zeros
from ellzero.pruning.replicas import require_replicas
from ellzero.selection import Selection
from ellzero.sharding import local
from ellzero.tensors import is_distributed

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


class Hold:
    """Masks at work on optimizers; made by `Masks.hold`, ended by `release` or its `with`.

    A hook applies the masks as a part of each step of an optimizer, so whatever reads the weights
    after it, an average of them or a decoupled penalty, sees the pruned network.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(10, 10)
        >>> masks = ez.prune(model, sparsity=0.9)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> hold = masks.hold(optimizer)
        >>> model(torch.ones(1, 10)).sum().backward()
        >>> optimizer.step()
        >>> hold.release()
        >>> int(model.weight.count_nonzero())
        10
    """

    def __init__(
        self, weights: Selection, masks: Mapping[str, Tensor], bits: Bits, optimizer: Optimizers
    ) -> None:
        weights.require_current()
        self._weights, self._masks, self._bits = weights, masks, bits
        self._optimizers = each(optimizer)
        owned = {o: _parameters(o) for o in self._optimizers}
        require_owned(weights, set().union(*owned.values()))
        self._held = weights.weights
        self._moved = {o: [w for w in weights.values() if w in owned[o]] for o in owned}
        for inner in _with_inner(self._optimizers):
            sharded = any(map(is_distributed, _parameters(inner)))
            if sharded and isinstance(inner, torch.optim.LBFGS):
                raise _over_shards(inner)
        require_replicas(weights, masks)
        self._fill_zeros()
        self._clear_directions()
        self._hooks = [
            hook
            for o in self._optimizers
            for hook in (
                o.register_step_pre_hook(self._before_step),
                o.register_step_post_hook(self._after_step),
            )
        ]

    def release(self) -> None:
        """End the hold: clear the optimizer's state under the masks, and let go of it.

        A second time does nothing.

        Raises:
            InputError: as within the hold.
        """
        if self._hooks:
            self._end()
            self._require_current()

    def _end(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._fill_zeros()
        for optimizer in _with_inner(self._optimizers):
            for name, mask in self._masks.items():
                _clear(optimizer, self._weights[name], mask)
        self._clear_directions()
        self._bits.clear()
        self._moved = {}

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._pruned(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._pruned(kwargs["closure"])}
        return None

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._require_current()
        self._bits.apply(self._moved[optimizer])

    def _require_current(self) -> None:
        """Refuse weights that the network no longer has, or that were sharded since it began."""
        self._weights.require_current()
        if self._weights.weights != self._held:  # each is equal to itself alone
            raise InputError(
                "the network was sharded (fully_shard) while masks hold the weights that it had "
                "before, which its optimizer moves; shard it first, make the optimizer of the "
                "sharded weights, then hold the masks"
            )

    def _pruned(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure as the pruned network sees it, wherever a line search has moved zeros."""

        def evaluate(*args: Any, **kwargs: Any) -> Any:
            self._bits.apply(self._weights.values())
            with torch.enable_grad():
                loss = closure(*args, **kwargs)
            self._bits.apply_to_gradients()
            return loss

        return evaluate

    def _fill_zeros(self) -> None:
        for name, mask in self._masks.items():
            fill_zeros(self._weights[name], mask)

    def _clear_directions(self) -> None:
        """Clear what L-BFGS remembers under the masks: vectors over all weights in a row."""
        for optimizer in _with_inner(self._optimizers):
            owned = [w for group in optimizer.param_groups for w in group["params"]]
            numel = sum(w.numel() for w in owned)
            masks = {self._weights[name]: mask for name, mask in self._masks.items()}
            gone: Tensor | None = None
            for state in optimizer.state.values():
                values = [v for v in state.values() if isinstance(v, Tensor | list)]
                for vector in (x for v in values for x in (v if isinstance(v, list) else [v])):
                    if not isinstance(vector, Tensor) or vector.shape != (numel,):
                        continue
                    if any(map(is_distributed, owned)):
                        raise _over_shards(optimizer)
                    if gone is None:
                        none = torch.zeros((), dtype=torch.bool, device=vector.device)
                        kept = [masks[w] if w in masks else ~none.expand(w.shape) for w in owned]
                        gone = ~torch.cat([mask.reshape(-1).to(vector.device) for mask in kept])
                    vector.masked_fill_(gone, 0)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
        elif self._hooks:  # whatever is wrong with the hold, that error is the first
            self._end()


def each(optimizer: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers, of which there may be one alone.

    Raises:
        InputError: something else is among them.
    """
    given = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
    optimizers = tuple(map(_unwrapped, given))
    if not optimizers:
        raise InputError("got an empty list of optimizers; expected those that move the weights")
    for one in optimizers:
        if not isinstance(one, torch.optim.Optimizer):
            raise InputError(
                f"{type(one).__name__} is no optimizer; expected one of torch.optim, or a list"
            )
        if not hasattr(one, "_optimizer_step_post_hooks"):
            raise InputError(
                f"{type(one).__name__} is a wrapper without the hooks of torch's optimizers; give "
                "the optimizer that is within it"
            )
    return optimizers


def _unwrapped(optimizer: Any) -> Any:
    """The optimizer within a wrapper that keeps no state of its own, as accelerate's does."""
    inner = getattr(optimizer, "optimizer", None)
    if not isinstance(inner, torch.optim.Optimizer) or optimizer is inner:
        return optimizer
    is_bare = not isinstance(optimizer, torch.optim.Optimizer)
    is_bare = is_bare or not hasattr(optimizer, "_optimizer_step_post_hooks")
    return _unwrapped(inner) if is_bare and optimizer.state is inner.state else optimizer


def _parameters(optimizer: torch.optim.Optimizer) -> set[Tensor]:
    return {w for group in optimizer.param_groups for w in group["params"]}


def require_owned(weights: Selection, owned: Collection[Tensor]) -> None:
    """Refuse masks of a weight that is not among what the optimizers move.

    Raises:
        InputError: its name.
    """
    for name, w in weights.items():
        if w not in owned:
            raise InputError(
                f"{name} is in no parameter group of the optimizer, so its zeros cannot be "
                "held; give the optimizer that weight, or prune without it"
            )


def _over_shards(optimizer: torch.optim.Optimizer) -> InputError:
    return InputError(
        f"{type(optimizer).__name__} works on vectors over all weights in a row, of which masks of "
        "sharded weights (FSDP2) cannot hold parts at zero; use an optimizer that moves each weight"
        " by itself, such as AdamW"
    )


def _with_inner(
    optimizers: Sequence[torch.optim.Optimizer],
) -> Iterator[torch.optim.Optimizer]:
    """The optimizers, and those that they keep within and leave the work to."""
    for optimizer in optimizers:
        yield optimizer
        inner = [v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer)]
        yield from _with_inner([one for one in inner if one is not optimizer])


def _clear(optimizer: torch.optim.Optimizer, w: Tensor, mask: Tensor) -> None:
    """Clear an optimizer's state of a weight where it is masked."""
    values = [v for v in optimizer.state.get(w, {}).values() if isinstance(v, Tensor)]
    kept = local(mask)
    for value in map(local, values):
        if value.shape != kept.shape or value.ndim == 0:
            continue
        # codes, of which 0 need not stand for zero, and sparse moments: the state begins anew
        if not value.is_floating_point() or value.layout is not torch.strided:
            del optimizer.state[w]
            return
        value.masked_fill_(~kept.to(value.device), 0)
