"""Optimizers: those of torch.optim, or the user's own, by the name that a recipe gives them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ellzero.errors import EllzeroError, InputError, UserCodeError, nearest
from ellzero.tensors import is_distributed
from ellzero.user_code import imported, may_import

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer
}
"""The classes of torch.optim, by their names in lower case."""

MOMENTUM = 0.9
"""Of plain SGD in a recipe that does not say otherwise; other classes have their own default."""

KEYS = {"lr": "learning_rate", "momentum": "momentum", "weight_decay": "weight_decay"}
"""Arguments of optimizers for which a recipe has keys, which are not options of theirs."""

KERNELS = ("fused", "foreach", "capturable", "differentiable")
"""Options that say how a step is computed, of which torch takes one at a time."""

Group = Literal["bias", "norm"]
"""Parameters that may be left out of the weight decay: biases; normalization layers' own."""


def canonical(name: str) -> str:
    """The name under which an optimizer is written: torch's in lower case.

    Example:
        >>> canonical("RMSprop"), canonical("my_module:Lion")
        ('rmsprop', 'my_module:Lion')
    """
    return name.lower() if name.lower() in OPTIMIZERS else name


def optimizer_class(name: str) -> type[Optimizer] | None:
    """The class behind a name; None of the user's own where nothing may be imported.

    Raises:
        InputError: an unknown name, with the nearest known one; what is no optimizer; one that a
            training loop of batches cannot drive.

    Example:
        >>> optimizer_class("rmsprop").__name__
        'RMSprop'
    """
    if ":" not in name:
        if canonical(name) not in OPTIMIZERS:
            raise InputError(
                f"there is no optimizer {name!r} in torch.optim; "
                f"{nearest(name.lower(), tuple(OPTIMIZERS))} "
                "(your own is written package.module:Class)"
            )
        found: Any = OPTIMIZERS[canonical(name)]
    elif not may_import():
        return None
    else:
        found = imported(f"optimizer {name!r}", name, "class")
    if not isinstance(found, type) or not issubclass(found, Optimizer):
        raise InputError(
            f"optimizer {name!r} is {found!r}; expected a class derived from torch.optim.Optimizer"
        )
    _require_driven(name, found)
    return found


def _require_driven(name: str, cls: type[Optimizer]) -> None:
    """Refuse classes that need more than a gradient a step, and a rate that can be scheduled."""
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise InputError(
            f"optimizer {name!r} computes the loss again and again within a step (its step needs a "
            "closure), which recipes do not do; take it in a loop of your own"
        )
    if issubclass(cls, torch.optim.SparseAdam):
        raise InputError(
            f"optimizer {name!r} takes sparse gradients alone, and those of a network that is "
            "pruned are dense; take 'adam'"
        )
    if "lr" not in _arguments(cls):
        raise InputError(f"optimizer {name!r} has no argument lr, which learning_rate is given to")


@cache
def _arguments(cls: type[Optimizer]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters


def has_argument(cls: type[Optimizer], name: str) -> bool:
    """Whether a class takes an argument of that name."""
    return name in _arguments(cls)


def default_momentum(name: str) -> float:
    """What `momentum` is in a recipe that does not say it: of SGD 0.9, else the class's own.

    Example:
        >>> default_momentum("sgd"), default_momentum("rmsprop"), default_momentum("adam")
        (0.9, 0, 0.9)
    """
    cls = optimizer_class(name)
    if cls is None or cls is torch.optim.SGD or not has_argument(cls, "momentum"):
        return MOMENTUM
    default = _arguments(cls)["momentum"].default
    return MOMENTUM if default is inspect.Parameter.empty else default


def require_options(name: str, cls: type[Optimizer], options: Collection[str]) -> None:
    """Make sure that a class has arguments of these names, which are no keys of the recipe's own.

    Raises:
        InputError: it has none of that name, with the nearest one; the recipe has a key for it.
    """
    arguments = _arguments(cls)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in arguments.values())
    known = [n for n in tuple(arguments)[1:] if n not in KEYS]
    for option in options:
        if option in KEYS:
            raise InputError(
                f"{option} of optimizer {name!r} is a key of the recipe's stage, {KEYS[option]}; "
                "write it there"
            )
        if option not in known and not takes_any:
            raise InputError(
                f"optimizer {name!r} has no argument {option!r}; {nearest(option, known)}"
            )


def made(
    model: nn.Module,
    name: str,
    options: Mapping[str, Any],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    no_decay: Collection[Group] = (),
) -> Optimizer:
    """An optimizer of a network's parameters, frozen ones left out.

    Where the class has fused kernels, they are taken on the devices that have them.

    Args:
        model: the network.
        name: of the class.
        options: further arguments of the class.
        lr: the learning rate.
        momentum: given to classes that have such an argument.
        weight_decay: given to classes that have such an argument.
        no_decay: parameters that get a group of their own, without weight decay.

    Raises:
        InputError: the class refuses the options, or parameters of this network.
        UserCodeError: the user's own class fails.
    """
    cls: Any = optimizer_class(name)
    parameters = [p for p in model.parameters() if p.requires_grad]
    keys = {"momentum": momentum, "weight_decay": weight_decay}
    arguments = {key: value for key, value in keys.items() if has_argument(cls, key)}
    # TOML has lists where torch has tuples
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    if has_argument(cls, "fused") and not any(option in KERNELS for option in options):
        # fused kernels exist for these devices, but not all of them for sharded parameters;
        # elsewhere torch picks what it has
        exist = (p.device.type in ("cpu", "cuda") and not is_distributed(p) for p in parameters)
        given["fused"] = True if all(exist) else None
    excluded = set(_members(model, no_decay))
    groups: Any = parameters
    if weight_decay and excluded:
        decayed = [p for p in parameters if p not in excluded]
        others = [p for p in parameters if p in excluded]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
    try:
        return cls(groups, lr=lr, **arguments, **given)
    except EllzeroError:
        raise
    except Exception as error:
        kind = UserCodeError if ":" in name else InputError
        raise kind(f"optimizer {name!r} does not take this network or its options: {error}") from (
            error
        )


def _members(model: nn.Module, groups: Collection[Group]) -> Iterator[Tensor]:
    """The parameters of these groups; a normalization layer is one by the name of its class."""
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            is_bias = "bias" in name  # also bias_ih_l0 of recurrent layers, in_proj_bias
            if ("norm" in groups and is_norm) or ("bias" in groups and is_bias):
                yield parameter
