"""Which weights count: those of linear, convolution and recurrent layers, unless a pattern says so.

What is left out is named in a warning: a figure over the selected weights says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NoReturn, TypeGuard

from torch import Tensor, nn

from ellzero.errors import InputError, nearest, warn
from ellzero.modules import is_replicated, unwrapped, wrapped_child
from ellzero.sharding import group_of, require_workable, reshard
from ellzero.tensors import is_distributed
from ellzero.weights import SELECTED, Kind, Weight, named_weights

DEFAULT = "default"
"""Among the patterns of `include`: what is selected by default."""


class Selection(Mapping[str, nn.Parameter]):
    """The selected weights of one network, by name, in the network's own order.

    A mapping from name to parameter; `weights` has the kinds as well. Made by `select`.

    Weights that FSDP2's `fully_shard` replaces by their sharded form are taken over, by name, as
    soon as something is done with them.

    Args:
        model: the network, or what torch has wrapped around it (DDP, `torch.compile`).
        weights: some of its weights.
        left_out: what is left out of them that a user may expect among them, in sentences.

    Raises:
        InputError: (where it is copied) the network is not copied in the same call, so that the
            copy would hold on to weights of no network.

    Example:
        >>> import torch, ellzero as ez
        >>> weights = ez.select(torch.nn.Linear(4, 3))
        >>> weights.numel, [(weight.name, weight.kind) for weight in weights.weights]
        (12, [('weight', 'dense')])
    """

    def __init__(
        self, model: nn.Module, weights: Sequence[Weight], left_out: Sequence[str] = ()
    ) -> None:
        self.model = unwrapped(model)
        self.is_replicated = is_replicated(model)
        """Whether the network was given as DDP keeps it, equal on all ranks."""
        self.left_out = tuple(left_out)
        self._bind(weights)

    def __getitem__(self, name: str) -> nn.Parameter:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __deepcopy__(self, memo: dict[int, Any]) -> Selection:
        model = memo.get(id(self.model))
        if model is None:
            raise InputError(
                "masks and regularizers are bound to the weights of their network, and a copy of "
                "them alone would act on none; copy the network first in the same call: "
                "copy.deepcopy((model, masks))"
            )
        copied = [replace(w, parameter=memo[id(w.parameter)]) for w in self.weights]
        return Selection(model, copied, self.left_out)

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "masks and regularizers are bound to the weights of their network and cannot be "
            "pickled; keep their state_dict(), or the network by ez.save, whose zeros are the masks"
        )

    @property
    def numel(self) -> int:
        """Count of the selected weights."""
        return sum(parameter.numel() for parameter in self.values())

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a selected weight; None of another tensor."""
        return self._names.get(tensor)

    def require_current(self) -> None:
        """Make sure that the network still has these parameters, and not others in their place.

        Raises:
            InputError: one was replaced, so that whatever is done to it here has no effect.
        """
        if all(
            _parameter_at(self.model, path) is weight.parameter
            for weight, path in zip(self.weights, self._paths, strict=True)
        ):
            return
        reshard(self.model)
        self._bind([self._renewed(weight) for weight in self.weights])

    def _bind(self, weights: Sequence[Weight]) -> None:
        self.weights = tuple(weights)
        self._parameters = {weight.name: weight.parameter for weight in weights}
        self._names: dict[Tensor, str] = {weight.parameter: weight.name for weight in weights}
        self._paths = [_path(self.model, weight.name) for weight in weights]

    def _renewed(self, weight: Weight) -> Weight:
        """A weight as the network has it now: the same parameter, or its sharded form."""
        parameter = _parameter_at(self.model, _path(self.model, weight.name))
        if parameter is weight.parameter:
            return weight
        if not _is_sharded_form(parameter, weight.parameter):
            raise InputError(_replaced(type(self.model).__name__, weight.name, parameter))
        renewed = replace(weight, parameter=parameter)
        _require_workable(renewed)
        return renewed


def select(
    model: nn.Module, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Selection:
    """Choose the weights that penalties and pruning act on.

    By default the weights of linear, convolution and recurrent layers (attention's projections
    among them); no bias, normalization or embedding. Under weight and spectral normalization it is
    the parameter whose zeros are the weight's (`parametrizations.weight.original1`). Tied weights
    count once, under their first name, and a weight that is also an embedding counts as an
    embedding. Frozen ones are never selected. A warning names the matrices that are left out.

    Args:
        model: any network, also within DDP or `torch.compile`, which add nothing to the names, or
            sharded by FSDP2; nothing of it changes.
        include: shell-style patterns of parameter names (`*`, `?`, `[...]`). Where given, exactly
            the parameters that match are selected, of whatever kind: `["encoder.*.weight"]`.
            `"default"` among them stands for what is selected without it.
        exclude: patterns of names that are left out of that.

    Returns:
        A mapping from parameter name to parameter.

    Raises:
        InputError: a pattern that matches no parameter or only frozen ones; nothing is selected; a
            weight that is sparse, complex, float8, on the meta device, or a DTensor that is not
            spread as FSDP2 spreads it; a network within FullyShardedDataParallel.

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
    named = [pattern for pattern in include if pattern != DEFAULT]
    for pattern in named:
        hits = _require_match(pattern, candidates)
        if not any(weight.parameter.requires_grad for weight in hits):
            raise InputError(
                f"include pattern {pattern!r} matches only frozen parameters ({hits[0].name}, "
                "...); unfreeze them, or drop the pattern"
            )

    by_default = not include or DEFAULT in include
    chosen, rest = [], []
    for names, weight in candidates:
        if not weight.parameter.requires_grad or _matches(names, exclude):
            continue
        wanted = (by_default and weight.kind in SELECTED) or _matches(names, named)
        (chosen if wanted else rest).append(weight)
    left_out = list(_left_out(rest)) if by_default else []
    if not chosen:
        frozen = sum(not weight.parameter.requires_grad for _, weight in candidates)
        raise InputError(
            f"no weights selected in {type(model).__name__}: {len(candidates)} parameters, "
            f"{frozen} of them frozen; name others with include=, or unfreeze them"
            + "".join(f"; {sentence}" for sentence in left_out)
        )
    for weight in chosen:
        _require_workable(weight)
    for sentence in left_out:
        warn(sentence)
    return Selection(model, chosen, left_out)


def selected(model: nn.Module, weights: Selection | None) -> Selection:
    """The weights that were selected in a network, or in one within it; by default `select`'s.

    Raises:
        InputError: those of another network; ones that it no longer has; no selection.
    """
    if weights is None:
        return select(model)
    if not isinstance(weights, Selection):
        raise InputError(f"weights is {type(weights).__name__}; expected what ez.select gives")
    weights.require_current()
    parameters = set(model.parameters())
    for name, parameter in weights.items():
        if parameter not in parameters:
            raise InputError(
                f"{name} is a weight of another network than the one given; select in this one: "
                "ez.select(model)"
            )
    return weights


def _left_out(rest: Sequence[Weight]) -> Iterator[str]:
    """Sentences that name matrices among the weights that are not selected, and the embeddings."""
    reasons: dict[Kind, str] = {
        "embedding": "embeddings are not selected by default",
        "other": "weights of a kind that is not known are not selected",
    }
    for kind, reason in reasons.items():
        alike: dict[str, list[Weight]] = {}
        for weight in rest:
            # a table of positions, "pos_embed", is an embedding that no layer holds
            is_embedding = weight.kind == "embedding" or "embed" in _local(weight)
            if is_embedding == (kind == "embedding") and _is_matrix(weight):
                # "blocks.0.qkv" and "blocks.1.qkv" are told together
                parts = ("*" if part.isdigit() else part for part in weight.name.split("."))
                alike.setdefault(".".join(parts), []).append(weight)
        if alike:
            groups = {p if len(ws) > 1 else ws[0].name: ws for p, ws in alike.items()}
            named = ", ".join(
                f"{pattern} ({f'{len(some)} of ' * (len(some) > 1)}{_size(some[0])})"
                for pattern, some in groups.items()
            )
            yield f"{reason}: {named}; include={[DEFAULT, *groups]} selects them too"


def _is_matrix(weight: Weight) -> bool:
    """Whether it has two dimensions or more that are not 1, and is no bias or normalization."""
    is_known = weight.kind == "normalization" or "bias" in _local(weight)
    return not is_known and sum(size != 1 for size in weight.parameter.shape) > 1


def _local(weight: Weight) -> str:
    return weight.name.rpartition(".")[2]


def _size(weight: Weight) -> str:
    return " x ".join(map(str, weight.parameter.shape))


def _require_workable(weight: Weight) -> None:
    """Refuse a weight that cannot be worked on as it is, or as it is sharded."""
    require_workable(weight.name, weight.parameter)
    if 0 in weight.normalized and group_of(weight.parameter) is not None:
        raise InputError(
            f"{weight.name} is sharded by rows, and the network divides it by a norm over several "
            "rows (spectral normalization, or weight normalization along another dimension), which "
            f"ellzero does not support; leave it out with exclude=[{weight.name!r}]"
        )


def _path(model: nn.Module, name: str) -> list[str]:
    """The names that lead to a parameter, those in wrappers among them, as far as there are any."""
    path: list[str] = []
    module: nn.Module | None = model
    for part in name.split("."):
        while module is not None and (child := wrapped_child(module)) is not None:
            path.append(child)
            module = module._modules[child]
        path.append(part)
        module = None if module is None else module._modules.get(part)
    return path


def _parameter_at(model: nn.Module, path: Sequence[str]) -> Any:
    """What the network has under a parameter's name, None where it has nothing."""
    module: nn.Module | None = model
    for part in path[:-1]:
        module = module._modules.get(part)
        if module is None:
            return None
    return module._parameters.get(path[-1])


def _is_sharded_form(parameter: object, of: nn.Parameter) -> TypeGuard[nn.Parameter]:
    """Whether a parameter is what `fully_shard` makes of a weight."""
    return (
        isinstance(parameter, nn.Parameter)
        and is_distributed(parameter)
        and not is_distributed(of)
        and parameter.shape == of.shape
    )


def _replaced(network: str, name: str, replacement: object) -> str:
    what = "is no longer there" if replacement is None else "is another parameter now"
    return (
        f"{name} of {network} {what} (a new module, load_state_dict(assign=True), a "
        "parametrization), so what is bound to the old one has no effect; select, prune, or make "
        "the regularizer anew"
    )


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _require_match(pattern: str, candidates: list[tuple[list[str], Weight]]) -> list[Weight]:
    hits = [weight for names, weight in candidates if _matches(names, [pattern])]
    if not hits:
        known = [name for names, _ in candidates for name in names]
        raise InputError(f"pattern {pattern!r} matches no parameter; {nearest(pattern, known)}")
    return hits
