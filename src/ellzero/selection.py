"""Which weights count: those of linear, convolution and recurrent layers, unless a pattern says so.

What is left out is named in a warning: a figure over the selected weights says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, NoReturn

from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ellzero.errors import InputError, nearest, warn
from ellzero.tensors import is_distributed, require_plain

Kind = Literal["dense", "conv", "recurrent", "parametrized", "embedding", "normalization", "other"]

DENSE = (nn.Linear, nn.Bilinear)
CONV = (nn.modules.conv._ConvNd,)
RECURRENT = (nn.RNNBase, nn.modules.rnn.RNNCellBase)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
NORMALIZATION = (nn.LayerNorm, nn.RMSNorm)  # a scale each, of as many dimensions as the input
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

SELECTED: tuple[Kind, ...] = ("conv", "dense", "recurrent", "parametrized")
"""The kinds that are selected by default."""

DEFAULT = "default"
"""Among the patterns of `include`: what is selected by default."""

KEEPS_ZEROS = {
    (parametrizations._WeightNorm, "original1"),  # w = g v / ||v||
    (parametrizations._SpectralNorm, "original"),  # w = v / sigma
}
"""Parametrizations whose weight is zero where this parameter is; no other is selected unasked."""

OLD_NORMS = (WeightNorm, SpectralNorm)
"""Their forerunners, hooks of a module, with parameters named `weight_v` and `weight_orig`."""


class Holder(nn.Module):
    """A module that only holds weights, and says of what kind they are, as a layer's class does."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, Kind] = {}


@dataclass(frozen=True, eq=False)
class Weight:
    """One selected weight: its name in the network, the parameter itself, the kind of its layer.

    Args:
        name: its first name in the network.
        parameter: the parameter itself.
        kind: of its layer.
        layer: of a parametrized weight, the kind that it would be without the parametrization.
        normalized: dimensions over which weight or spectral normalization divides by a norm; where
            all weights along them were zero, the layer's would be NaN.
    """

    name: str
    parameter: nn.Parameter
    kind: Kind
    layer: Kind | None = None
    normalized: tuple[int, ...] = ()


class Selection(Mapping[str, nn.Parameter]):
    """The selected weights of one network, by name, in the network's own order.

    A mapping from name to parameter; `weights` has the kinds as well. Made by `select`.

    Args:
        model: the network.
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
        self.model = model
        self.weights = tuple(weights)
        self.left_out = tuple(left_out)
        self._parameters = {weight.name: weight.parameter for weight in self.weights}
        self._paths = [weight.name.split(".") for weight in self.weights]

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

    def require_current(self) -> None:
        """Make sure that the network still has these parameters, and not others in their place.

        Raises:
            InputError: one was replaced, so that whatever is done to it here has no effect.
        """
        for weight, path in zip(self.weights, self._paths, strict=True):
            parameter = _parameter_at(self.model, path)
            if parameter is not weight.parameter:
                raise InputError(_replaced(type(self.model).__name__, weight.name, parameter))


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
        model: any network; nothing of it changes.
        include: shell-style patterns of parameter names (`*`, `?`, `[...]`). Where given, exactly
            the parameters that match are selected, of whatever kind: `["encoder.*.weight"]`.
            `"default"` among them stands for what is selected without it.
        exclude: patterns of names that are left out of that.

    Returns:
        A mapping from parameter name to parameter.

    Raises:
        InputError: a pattern that matches no parameter or only frozen ones; nothing is selected; a
            weight that is a DTensor, sparse, complex, float8 or on the meta device.

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
        require_plain(weight.name, weight.parameter)
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


def named_weights(model: nn.Module) -> Iterator[tuple[list[str], Weight]]:
    """Every distinct parameter with all its names, first name first, and its kind."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the network is {model!r}; expected a torch.nn.Module")
    places: dict[nn.Parameter, list[Weight]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for prefix, module in modules.items():
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local}" if prefix else local
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise InputError(
                    f"{name} is uninitialized (a lazy layer); run one batch through the network "
                    "first"
                )
            weight = _parametrized(modules, prefix, local, parameter)
            weight = weight or Weight(name, parameter, _kind(module, local))
            places.setdefault(parameter, []).append(weight)
    order: tuple[Kind, ...] = ("embedding", *SELECTED, "normalization", "other")
    for weights in places.values():
        first = min(weights, key=lambda weight: order.index(weight.kind))
        yield [weight.name for weight in weights], replace(first, name=weights[0].name)


def _parametrized(
    modules: Mapping[str, nn.Module], prefix: str, local: str, parameter: nn.Parameter
) -> Weight | None:
    """A parameter that a layer's weight is computed from, None if it is none."""
    module, name = modules[prefix], f"{prefix}.{local}" if prefix else local
    if isinstance(module, ParametrizationList):
        # "fc.parametrizations.weight": the weight of the layer "fc"
        *path, _, local_weight = prefix.split(".")
        layer = _kind(modules[".".join(path)], local_weight)
        norm = module._parameters.get("original0") if len(module) == 1 else None
        keeps_zeros = _keeps_zeros(module, local)
    else:
        hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, OLD_NORMS)]
        hook = next((h for h in hooks if local.rpartition("_")[0] == h.name), None)
        if hook is None:
            return None
        layer, norm = _kind(module, hook.name), module._parameters.get(f"{hook.name}_g")
        keeps_zeros = local in (f"{hook.name}_v", f"{hook.name}_orig")
    if not keeps_zeros or layer not in SELECTED:
        return Weight(name, parameter, "embedding" if layer == "embedding" else "other")
    # a norm per row of weight normalization has size 1 where it sums up; others are of all weights
    sizes = norm.shape if norm is not None and norm.ndim else [1] * parameter.ndim
    normalized = tuple(d for d, size in enumerate(sizes) if size == 1)
    return Weight(name, parameter, "parametrized", layer, normalized)


def _kind(module: nn.Module, local: str) -> Kind:
    if isinstance(module, Holder):
        return module.kinds.get(local, "other")
    if isinstance(module, nn.MultiheadAttention):
        return "dense" if local in ATTENTION else "other"
    if isinstance(module, RECURRENT) and local.startswith("weight_"):
        return "recurrent"
    if local == "weight":
        if isinstance(module, EMBEDDING):
            return "embedding"
        if isinstance(module, NORMALIZATION):
            return "normalization"
        if isinstance(module, CONV):
            return "conv"
        if isinstance(module, DENSE):
            return "dense"
    return "other"


def _keeps_zeros(module: ParametrizationList, local: str) -> bool:
    """Whether the computed weight is zero wherever this parameter of it is."""
    first, *others = (type(step) for step in module)
    return (first, local) in KEEPS_ZEROS and all(
        (step, "original") in KEEPS_ZEROS for step in others
    )


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


def _parameter_at(model: nn.Module, path: Sequence[str]) -> object:
    """What the network has under a parameter's name, None where it has nothing."""
    module: nn.Module | None = model
    for part in path[:-1]:
        module = module._modules.get(part)
        if module is None:
            return None
    return module._parameters.get(path[-1])


def _replaced(network: str, name: str, replacement: object) -> str:
    if isinstance(replacement, nn.Parameter) and is_distributed(replacement):
        return f"{name} of {network} has become a DTensor, which ellzero does not support yet"
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
