"""Holding masks: pruned weights stay at zero through whatever moves the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ellzero.chunks import chunks
from ellzero.errors import InputError
from ellzero.tensors import INTEGERS

if TYPE_CHECKING:
    from ellzero.pruning.masks import Masks
    from ellzero.regularizers import Regularizer

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]

NOT_FOLLOWED = (
    "pruned weights came back: masks were left to the regularizer, and its step(optimizer) did not "
    "follow a step of the optimizer; call it after each, or hold without it: masks.hold(optimizer)"
)


class Hold:
    """Masks at work on optimizers; made by `Masks.hold`, ended by `release` or its `with`."""

    def __init__(
        self, masks: Masks, optimizer: Optimizers, regularizer: Regularizer | None
    ) -> None:
        masks.weights.require_current()
        self._masks, self._optimizers = masks, each(optimizer)
        owned = {w for o in self._optimizers for group in o.param_groups for w in group["params"]}
        for name, w in masks.weights.items():
            if w not in owned:
                raise InputError(
                    f"{name} is in no parameter group of the optimizer, so its zeros cannot be "
                    "held; give the optimizer that weight, or prune without it"
                )
        if regularizer is not None and regularizer.held:
            raise InputError("the regularizer holds other masks already; release those first")
        masks.apply()
        self._regularizer = regularizer
        self._held: dict[Tensor, Tensor] = {
            w: bits_of(w, masks[name]) for name, w in masks.weights.items()
        }
        self._own = {o: self._of(o) for o in self._optimizers}
        self._followed: dict[torch.optim.Optimizer, int] = {}
        """By optimizer, how many steps the regularizer had taken before its last one."""
        self._views: dict[Tensor, Tensor] = {}
        self._clear_directions()
        self._hooks = [
            hook
            for o in self._optimizers
            for hook in (
                o.register_step_pre_hook(self._before_step),
                o.register_step_post_hook(self._after_step),
            )
        ]
        if regularizer is not None:
            regularizer.held = self._held

    def release(self) -> None:
        """End the hold: clear the optimizer's state under the masks, and let go of it.

        Raises:
            InputError: as within the hold.
        """
        missing = any(map(self._step_is_missing, self._optimizers))
        self._end()
        self._masks.weights.require_current()
        if missing:
            raise InputError(NOT_FOLLOWED)

    def _end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._regularizer is not None and self._regularizer.held is self._held:
            self._regularizer.held = {}  # and not those of a later hold
        for name, mask in self._masks.items():
            fill_zeros(self._masks.weights[name], mask)
        for optimizer in _with_inner(self._optimizers):
            for name, mask in self._masks.items():
                _clear(optimizer, self._masks.weights[name], mask)
        self._clear_directions()
        self._held, self._own, self._views = {}, {}, {}

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        if self._step_is_missing(optimizer):
            raise InputError(NOT_FOLLOWED)
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._pruned(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._pruned(kwargs["closure"])}
        return None

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._masks.weights.require_current()
        if self._regularizer is None:
            self._zero(self._own[optimizer])
        else:
            self._followed[optimizer] = self._regularizer.steps

    def _of(self, optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
        """The held weights that an optimizer moves."""
        own = {w for group in optimizer.param_groups for w in group["params"]}
        return {w: bits for w, bits in self._held.items() if w in own}

    def _step_is_missing(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether its last step was not followed by the regularizer's, and did move zeros.

        It may have moved none: a gradient scaler calls fused optimizers for steps it skips, too.
        """
        if self._regularizer is None or self._followed.get(optimizer) != self._regularizer.steps:
            return False
        weights = self._masks.weights.items()
        return any(int(w.detach()[~self._masks[name]].count_nonzero()) for name, w in weights)

    def _pruned(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure as the pruned network sees it, wherever a line search has moved zeros."""

        def evaluate(*args: Any, **kwargs: Any) -> Any:
            self._zero(self._held)
            with torch.enable_grad():
                loss = closure(*args, **kwargs)
            # a sparse gradient stays as it is: what it moves is put right after the step
            _multiply(
                (w.grad.view(bits.dtype), bits)
                for w, bits in self._held.items()
                if w.grad is not None and w.grad.layout is torch.strided
            )
            return loss

        return evaluate

    def _zero(self, held: Mapping[Tensor, Tensor]) -> None:
        """Set to zero what the bits say, NaN and inf as well."""
        _multiply((self._view(w, bits), bits) for w, bits in held.items())

    def _view(self, w: Tensor, bits: Tensor) -> Tensor:
        """The weight as integers; made once, for that takes longer than to multiply a small one."""
        view = self._views.get(w)
        if view is None or view.data_ptr() != w.data_ptr() or view.dtype != bits.dtype:
            if w.dtype.itemsize != bits.dtype.itemsize:
                raise InputError(
                    f"a weight of {tuple(w.shape)} has become {w.dtype} within a hold of its "
                    "masks; convert the network before the hold"
                )
            view = self._views[w] = w.detach().view(bits.dtype)
        return view

    def _clear_directions(self) -> None:
        """Clear what L-BFGS remembers under the masks: vectors over all weights in a row."""
        for optimizer in _with_inner(self._optimizers):
            owned = [w for group in optimizer.param_groups for w in group["params"]]
            numel = sum(w.numel() for w in owned)
            masks = {self._masks.weights[name]: mask for name, mask in self._masks.items()}
            gone: Tensor | None = None
            for state in optimizer.state.values():
                values = [v for v in state.values() if isinstance(v, Tensor | list)]
                for vector in (x for v in values for x in (v if isinstance(v, list) else [v])):
                    if not isinstance(vector, Tensor) or vector.shape != (numel,):
                        continue
                    if gone is None:
                        none = torch.zeros((), dtype=torch.bool, device=vector.device)
                        kept = [masks[w] if w in masks else ~none.expand(w.shape) for w in owned]
                        gone = ~torch.cat([mask.reshape(-1).to(vector.device) for mask in kept])
                    vector.masked_fill_(gone, 0)

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.release()
        else:  # whatever is wrong with the hold, that error is the first
            self._end()


def each(optimizer: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers, of which there may be one alone.

    Raises:
        InputError: something else is among them.
    """
    found = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
    if not found:
        raise InputError("got an empty list of optimizers; expected those that move the weights")
    for one in found:
        if not isinstance(one, torch.optim.Optimizer):
            raise InputError(f"{one!r} is no optimizer; expected one of torch.optim, or a list")
        if not hasattr(one, "_optimizer_step_post_hooks"):
            raise InputError(
                f"{type(one).__name__} is a wrapper without the hooks of torch's optimizers; give "
                "the optimizer that is within it"
            )
    return found


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
    for value in (v for v in values if v.shape == mask.shape and v.ndim > 0):
        if not value.is_floating_point():
            del optimizer.state[w]  # codes, of which 0 need not stand for zero: it begins anew
            return
        value.masked_fill_(~mask.to(value.device), 0)


@torch.no_grad()
def fill_zeros(w: Tensor, mask: Tensor) -> None:
    """Set a weight to zero where it is masked, in place."""
    for part, kept in chunks(w, mask):
        part.masked_fill_(~kept, 0)


@torch.no_grad()
def _multiply(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    numbers = list(zip(*pairs, strict=True))
    if numbers:
        torch._foreach_mul_(*map(list, numbers))  # pyright: ignore[reportPrivateImportUsage]


def bits_of(w: Tensor, mask: Tensor) -> Tensor:
    """A mask as 0 and 1, by which the bits of a weight are multiplied as an integer.

    0 times NaN is NaN, but 0 times its bits is 0; and a bool mask takes several times longer.
    """
    bits = torch.empty_like(w, dtype=INTEGERS[w.dtype.itemsize], requires_grad=False)
    return bits.copy_(mask)
