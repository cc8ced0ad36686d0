"""Masks: which weights of a network are kept, as an object beside the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from ellzero.documents import brief
from ellzero.errors import InputError, nearest
from ellzero.files import read_model
from ellzero.pruning.bits import Bits, fill_zeros
from ellzero.pruning.hold import Hold, Optimizers
from ellzero.selection import Selection, select
from ellzero.sharding import (
    like,
    local,
    nonzeros,
    redistributed,
    require_workable,
    start,
    summed,
    whole,
)
from ellzero.weights import named_weights


class Masks(Mapping[str, Tensor]):
    """The masks of one network: by weight name a bool tensor of its shape, True = keep.

    They stand beside the network and change nothing of it: no module is wrapped, no attribute and
    no key of its state_dict is added. Zeros are the truth: a network saved with its zeros gives the
    masks back through `Masks.of`.

    The mask of a weight that FSDP2 shards is a `DTensor` sharded as the weight is. Figures are of
    all weights, over all ranks, which all have to ask for them.

    Args:
        weights: the selected weights of the network, from `ez.select`.
        masks: by name, a bool tensor of the weight's shape, sharded as the weight is, or whole.

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
        self._masks = {name: masks[name] for name in weights}
        self.bits = Bits(weights, self)
        """The masks as integers, for the steps of a training."""

    @classmethod
    def of(cls, weights: Selection, kept_zeros: Mapping[str, list[int]] | None = None) -> Masks:
        """The masks of a network as it stands: `w != 0`, plus the kept zeros.

        Args:
            weights: the selected weights of the network.
            kept_zeros: by name, flat indices of weights that are kept although they are zero.

        Raises:
            InputError: kept zeros of an unknown weight, or an index outside it.
        """
        weights.require_current()
        return cls(weights, _kept(weights, kept_zeros or {}))

    @classmethod
    def read(cls, path: str | Path, model: nn.Module) -> Masks:
        """The masks that a file holds: `w != 0` of its weights, plus the kept zeros.

        They are of the weights that the file notes masks of; where it notes none, of those that
        `select` selects. What the network's own weights are does not matter; `apply` prunes them.

        Args:
            path: a file of `ez.save`, or any safetensors file.
            model: a network of the same architecture, which the masks are for.

        Raises:
            InputError: as `ez.load` raises; a packed file; weights that the network or the file
                does not have, or of another shape.

        Example:
            >>> import tempfile, pathlib, torch, ellzero as ez
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
            >>> model = torch.nn.Linear(3, 2)
            >>> ez.save(model, path, masks=ez.prune(model, nonzeros=4))
            >>> ez.Masks.read(path, torch.nn.Linear(3, 2)).nonzeros
            4
        """
        tensors, metadata = read_model(Path(path))
        if "masks" not in metadata:
            weights = select(model)
            return cls(weights, _kept(_stored(path, tensors, weights), {}))
        known = {name: weight for names, weight in named_weights(model) for name in names}
        try:
            noted = _Noted.model_validate(metadata["masks"])
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("masks", *first["loc"])))
            raise InputError(
                f"{path} notes masks that make no sense: {brief(where)}: {first['msg']}"
            ) from None
        missing = [name for name in noted.weights if name not in known]
        if missing:
            raise InputError(
                f"{path} has masks for {brief(missing[0])}; {nearest(missing[0], list(known))}"
            )
        weights = Selection(model, [known[name] for name in noted.weights])
        return cls(weights, _kept(_stored(path, tensors, weights), noted.kept_zeros))

    def __getitem__(self, name: str) -> Tensor:
        # the network may have moved, or been sharded
        mask = self._masks[name] = redistributed(self._masks[name], self.weights[name])
        return mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def numel(self) -> int:
        """Count of the weights under the masks."""
        return self.weights.numel

    @property
    def nonzeros(self) -> int:
        """Count of the kept weights."""
        return sum(nonzeros([*self.values()]))

    @property
    def sparsity(self) -> float:
        """Fraction of pruned weights, in [0, 1]; 0 of no weights at all."""
        return 1 - self.nonzeros / self.numel if self.numel else 0.0

    @property
    def kept_zeros(self) -> dict[str, list[int]]:
        """By name, the flat indices of kept weights that are zero all the same (rare)."""
        self.weights.require_current()
        counts = nonzeros([self._zeros_kept(name) for name in self])
        return {
            name: whole(self._zeros_kept(name)).reshape(-1).nonzero().view(-1).tolist()
            for name, count in zip(self, counts, strict=True)
            if count
        }

    @torch.no_grad()
    def apply(self) -> None:
        """Set the pruned weights to zero, in place.

        Raises:
            InputError: a weight that the network no longer has.
        """
        self.weights.require_current()
        for name, mask in self.items():
            fill_zeros(self.weights[name], mask)

    @torch.no_grad()
    def apply_to(self, other: nn.Module) -> None:
        """Set the same weights to zero in another network, such as an average of the weights.

        An average that began before the pruning (`torch.optim.swa_utils.AveragedModel`, an
        exponential one) keeps what the pruned weights once were, so it stays dense: apply the masks
        to it before it is evaluated or saved.

        Args:
            other: a network with weights of the same names and shapes, or a wrapper around one
                (`AveragedModel`, `DataParallel`, `torch.compile`).

        Raises:
            InputError: no network; it has no such weight, or one of another shape.

        Example:
            >>> import torch, ellzero as ez
            >>> model = torch.nn.Linear(10, 10)
            >>> average = torch.optim.swa_utils.AveragedModel(model)
            >>> masks = ez.prune(model, sparsity=0.9)
            >>> masks.apply_to(average)
            >>> int(average.module.weight.count_nonzero())
            10
        """
        named = list(named_weights(other))
        weights = {_bare(name): weight.parameter for names, weight in named for name in names}
        kind = type(other).__name__
        for name, mask in self.items():
            _require_shape(name, mask, weights.get(_bare(name)), "the masks have", kind)
        for name, mask in self.items():
            w = weights[_bare(name)]
            require_workable(name, w)
            fill_zeros(w, redistributed(mask, w))

    def hold(self, optimizer: Optimizers) -> Hold:
        """Keep the pruned weights at zero through the optimizer's steps, inside a `with`.

        Through momentum and weight decay, foreach and fused alike. A closure that an optimizer
        evaluates (L-BFGS) sees the pruned network, and its gradients are zero under the masks. At
        the end of the `with` the optimizer's state under the masks is cleared, also that of an
        optimizer within it (`ZeroRedundancyOptimizer`), so that no momentum revives a weight.
        (After the hold, optimizers whose updates mix weights, such as Muon, fill zeros as any
        others.)

        A hook on the optimizer applies the masks as a part of each of its steps, so that an average
        of the weights or a decoupled penalty after it sees the pruned network.

        Args:
            optimizer: what moves the weights, or a list of several that do together.

        Raises:
            InputError: a masked weight that no group of the optimizer owns, or that the network no
                longer has. Within the hold: a weight that was replaced. L-BFGS on sharded weights.
                In several processes: pruned weights that are not zero, as DDP gives ranks the
                weights of rank 0; masks that differ between the ranks of a DDP model.
        """
        return Hold(self.weights, self, self.bits, optimizer)

    def state_dict(self) -> dict[str, Tensor]:
        """The masks by weight name, for `load_state_dict`."""
        return dict(self)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over masks that `state_dict` gave; the weights themselves do not change.

        Raises:
            InputError: names, shapes or dtypes that do not fit the weights.
        """
        _check(self.weights, state)
        self._masks.update({name: state[name] for name in self})
        self.bits.clear()

    def _zeros_kept(self, name: str) -> Tensor:
        """Where a weight is kept that is zero, laid out as the weight is."""
        w, mask = self.weights[name], self[name]
        return like(local(mask) & (local(w) == 0), w)


class _Noted(BaseModel, strict=True):
    """What a model file notes of masks, see `model_file.save`."""

    weights: list[str]
    kept_zeros: dict[str, list[int]]


def _stored(
    path: str | Path, tensors: Mapping[str, Tensor], weights: Selection
) -> dict[str, Tensor]:
    """What a file holds of these weights; of a tied one under any of its names."""
    names = {weight.name: names for names, weight in named_weights(weights.model)}
    stored = {}
    for name, w in weights.items():
        tensor = next((tensors[alias] for alias in names[name] if alias in tensors), None)
        stored[name] = _require_shape(name, w, tensor, "the network has", path)
    return stored


def _require_shape(
    name: str, expected: Tensor, tensor: Tensor | None, whose: str, source: object
) -> Tensor:
    if tensor is None or tensor.shape != expected.shape:
        has = "none of that name" if tensor is None else f"one of {tuple(tensor.shape)}"
        raise InputError(
            f"{whose} {name} {tuple(expected.shape)}, {source} has {has}; expected the same weights"
        )
    return tensor


def _kept(
    tensors: Mapping[str, Tensor], kept_zeros: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """What is kept of these weights: all that is not zero, and the zeros of these flat indices."""
    masks = {name: like((local(w) != 0).contiguous(), w) for name, w in tensors.items()}
    for name, indices in kept_zeros.items():
        if name not in masks:
            raise InputError(f"kept zeros of {name}; {nearest(name, list(masks))}")
        if not all(0 <= index < masks[name].numel() for index in indices):
            raise InputError(f"kept zeros of {name} reach outside its {masks[name].numel()}")
        here, first = local(masks[name]).view(-1), start(masks[name])
        here[[i - first for i in indices if first <= i < first + len(here)]] = True
    return masks


def _bare(name: str) -> str:
    """A parameter's name without what averages of weights put before it (`AveragedModel`)."""
    return re.sub(r"^(module\.)+", "", name)


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
    normalized = [weight for weight in weights.weights if weight.normalized]
    kept = [masks[weight.name] for weight in normalized]
    rows = [~local(m).any(w.normalized) for w, m in zip(normalized, kept, strict=True)]
    for weight, empty in zip(normalized, summed([row.sum() for row in rows], kept), strict=True):
        if empty:
            raise InputError(
                f"the mask of {weight.name} leaves a row without a weight; the network divides it "
                "by its norm, 0, which is NaN. Keep one, or remove the normalization"
            )
