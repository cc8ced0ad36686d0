"""Which weights count: those of linear and convolution layers, unless a pattern says otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from ellzero.errors import InputError, nearest

Kind = Literal["dense", "conv", "embedding", "other"]

DENSE = (nn.Linear, nn.Bilinear)
CONV = (nn.modules.conv._ConvNd,)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Holder(nn.Module):
    """A module that only holds weights, and says of what kind they are, as a layer's class does."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, Kind] = {}


@dataclass(frozen=True, eq=False)
class Weight:
    """One selected weight: its name in the network, the parameter itself, the kind of its layer."""

    name: str
    parameter: nn.Parameter
    kind: Kind


class Selection(Mapping[str, nn.Parameter]):
    """The selected weights of one network, by name, in the network's own order.

    A mapping from name to parameter; `weights` has the kinds as well. Made by `select`.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        self.weights = tuple(weights)
        self._parameters = {weight.name: weight.parameter for weight in self.weights}

    def __getitem__(self, name: str) -> nn.Parameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def numel(self) -> int:
        """Count of the selected weights."""
        return sum(parameter.numel() for parameter in self.values())


def select(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Selection:
    """Choose the weights that penalties and pruning act on.

    By default the weights of linear and convolution layers (attention's projections among them);
    no bias, normalization or embedding. Tied weights count once, under their first name, and a
    weight that is also an embedding counts as an embedding. Frozen ones are never selected.

    Args:
        model: any network; nothing of it changes.
        include: shell-style patterns of parameter names (`*`, `?`, `[...]`). Where given, exactly
            the parameters that match are selected, of whatever kind: `["encoder.*.weight"]`.
        exclude: patterns of names that are left out of that.

    Returns:
        A mapping from parameter name to parameter.

    Raises:
        InputError: a pattern that matches no parameter or only frozen ones; nothing is selected.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> list(ez.select(model))
        ['0.weight', '1.weight']
        >>> list(ez.select(model, exclude=["1.*"]))
        ['0.weight']
    """
    for option, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise InputError(f"{option} is the text {patterns!r}; expected a list of patterns")
    candidates = list(named_weights(model))
    for pattern in exclude:
        _require_match(pattern, candidates)
    for pattern in include:
        hits = _require_match(pattern, candidates)
        if not any(weight.parameter.requires_grad for weight in hits):
            raise InputError(
                f"include pattern {pattern!r} matches only frozen parameters ({hits[0].name}, "
                "...); unfreeze them, or drop the pattern"
            )

    chosen = []
    for names, weight in candidates:
        wanted = _matches(names, include) if include else weight.kind in ("dense", "conv")
        if wanted and weight.parameter.requires_grad and not _matches(names, exclude):
            chosen.append(weight)
    if not chosen:
        frozen = sum(not weight.parameter.requires_grad for _, weight in candidates)
        raise InputError(
            f"no weights selected in {type(model).__name__}: {len(candidates)} parameters, "
            f"{frozen} of them frozen; name others with include=, or unfreeze them"
        )
    return Selection(chosen)


def named_weights(model: nn.Module) -> Iterator[tuple[list[str], Weight]]:
    """Every distinct parameter with all its names, first name first, and its kind."""
    found: dict[nn.Parameter, tuple[list[str], set[Kind]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local}" if prefix else local
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise InputError(
                    f"{name} is uninitialized (a lazy layer); run one batch through the network "
                    "first"
                )
            names, kinds = found.setdefault(parameter, ([], set()))
            names.append(name)
            kinds.add(_kind(module, local))
    for parameter, (names, kinds) in found.items():
        kind: Kind = next(k for k in ("embedding", "conv", "dense", "other") if k in kinds)
        yield names, Weight(names[0], parameter, kind)


def _kind(module: nn.Module, local: str) -> Kind:
    if isinstance(module, Holder):
        return module.kinds.get(local, "other")
    if isinstance(module, nn.MultiheadAttention):
        return "dense" if local in ATTENTION else "other"
    if local == "weight":
        if isinstance(module, EMBEDDING):
            return "embedding"
        if isinstance(module, CONV):
            return "conv"
        if isinstance(module, DENSE):
            return "dense"
    return "other"


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _require_match(pattern: str, candidates: list[tuple[list[str], Weight]]) -> list[Weight]:
    hits = [weight for names, weight in candidates if _matches(names, [pattern])]
    if not hits:
        known = [name for names, _ in candidates for name in names]
        raise InputError(f"pattern {pattern!r} matches no parameter; {nearest(pattern, known)}")
    return hits
