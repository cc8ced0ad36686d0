"""The weights of a network: each with its names, the kind of its layer, and normalizations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ellzero.errors import InputError
from ellzero.modules import named_modules, require_network
from ellzero.sharding import require_no_flat_shards, reshard

Kind = Literal["dense", "conv", "recurrent", "parametrized", "embedding", "normalization", "other"]

DENSE = (nn.Linear, nn.Bilinear)
CONV = (nn.modules.conv._ConvNd,)
RECURRENT = (nn.RNNBase, nn.modules.rnn.RNNCellBase)
EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
NORMALIZATION = (nn.LayerNorm, nn.RMSNorm)  # a scale each, of as many dimensions as the input
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

SELECTED: tuple[Kind, ...] = ("conv", "dense", "recurrent", "parametrized")
"""The kinds that are selected by default."""

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


def named_weights(model: nn.Module) -> Iterator[tuple[list[str], Weight]]:
    """Every distinct parameter with all its names, first name first, and its kind."""
    require_network(model)
    require_no_flat_shards(model)
    reshard(model)
    places: dict[nn.Parameter, list[Weight]] = {}
    modules = dict(named_modules(model))
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
