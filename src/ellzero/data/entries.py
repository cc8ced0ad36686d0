"""Entries: which parts of an example are inputs, targets and weights, in whatever form it comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.data.arrays import as_tensor, is_array
from ellzero.data.batch import Batch
from ellzero.data.inputs import all_of
from ellzero.errors import InputError

EXPECTED = (
    "expected (inputs, targets), (inputs, targets, weights), or a dictionary; of a network with "
    "several inputs a tuple or a dictionary of them"
)


@dataclass(frozen=True)
class Entries:
    """How examples are read: as pairs, as triples with weights, or as dictionaries.

    Args:
        targets: the key, or keys, of a dictionary that are the targets.
        weights: the key of its weights; None: it has none.

    Example:
        >>> given = {"tokens": torch.ones(2, 5), "labels": torch.arange(2)}
        >>> inputs, targets = Entries("labels").batch("train data", given)
        >>> list(inputs), targets
        (['tokens'], tensor([0, 1]))
    """

    targets: str | tuple[str, ...] = "labels"
    weights: str | None = None

    def batch(self, part: str, given: Any) -> Batch:
        """A batch, or all examples of a part.

        Args:
            part: its name, for messages.
            given: tensors, arrays or frames: a pair, a triple, or a dictionary.

        Raises:
            InputError: another thing; no numbers; unequal lengths; NaN or inf; weights that are
                negative or not (N,).
        """
        if isinstance(given, Mapping):
            inputs, targets, weights = self._by_key(part, given)
        elif isinstance(given, tuple | list) and len(given) in (2, 3):
            inputs, targets, weights = (*given, None) if len(given) == 2 else given
            if self.weights is not None:
                raise InputError(
                    f"weights names {self.weights!r}, but {part} examples are no dictionaries; "
                    "give weights as the third of (inputs, targets, weights)"
                )
        else:
            parts = f" of {len(given)}" if isinstance(given, tuple | list) else ""
            raise InputError(
                f"{part} data, or a batch of them, is {type(given).__name__}{parts}; {EXPECTED}"
            )
        batch = Batch(
            _tensors(f"{part} inputs", inputs),
            _tensors(f"{part} targets", targets),
            None if weights is None else _weights(part, weights),
        )
        _require_equal_lengths(part, batch)
        _require_finite(part, batch)
        return batch

    def _by_key(self, part: str, given: Mapping[Any, Any]) -> tuple[Any, Any, Any]:
        names = (self.targets,) if isinstance(self.targets, str) else self.targets
        for name in names:
            if name not in given:
                raise InputError(
                    f"{part} data has no {name!r}; it has {', '.join(map(str, given))}. Say which "
                    "key holds the targets: targets=..."
                )
        inputs = {str(k): v for k, v in given.items() if k not in (*names, self.weights)}
        if not inputs:
            raise InputError(f"{part} data has no inputs beside {', '.join(map(str, given))}")
        several = {name: given[name] for name in names}
        targets = given[self.targets] if isinstance(self.targets, str) else several
        return inputs, targets, None if self.weights is None else given.get(self.weights)

    def named(self, targets: Any) -> dict[str, Tensor]:
        """The targets by their names, as a network takes them that computes its loss itself."""
        if isinstance(targets, dict):
            return targets
        names = (self.targets,) if isinstance(self.targets, str) else self.targets
        return dict(zip(names, all_of(targets), strict=True))


def _tensors(what: str, values: Any) -> Any:
    if isinstance(values, Mapping):
        return {str(name): as_tensor(f"{what} {name!r}", value) for name, value in values.items()}
    # a list of arrays is one of examples; of tensors it is what a loader makes of a tuple
    several = isinstance(values, tuple) and all(map(is_array, values))
    several |= isinstance(values, list) and all(isinstance(x, Tensor) and x.ndim for x in values)
    if several and len(values):
        return tuple(as_tensor(what, value) for value in values)
    return as_tensor(what, values)


def _weights(part: str, values: Any) -> Tensor:
    weights = as_tensor(f"{part} weights", values)
    if weights.ndim != 1 or weights.is_complex():
        raise InputError(
            f"{part} weights are {tuple(weights.shape)}; expected a number for each example, (N,)"
        )
    weights = weights.to(torch.float32)
    if len(weights) and not bool((weights >= 0).all()):
        raise InputError(f"{part} weights are below 0 or NaN; expected finite numbers >= 0")
    return weights


def _require_equal_lengths(part: str, batch: Batch) -> None:
    tensors = (*all_of(batch.inputs), *all_of(batch.targets))
    for x in tensors:
        if not x.ndim:
            raise InputError(f"{part} data holds a single number; expected a batch (N, ...)")
    targets = len(all_of(batch.targets)[0])
    for x in tensors:
        if len(x) != targets:
            raise InputError(f"{part} data has {len(x)} inputs and {targets} targets")
    if batch.weights is not None and len(batch.weights) != targets:
        raise InputError(f"{part} data has {len(batch.weights)} weights and {targets} targets")


def _require_finite(part: str, batch: Batch) -> None:
    weights = () if batch.weights is None else (batch.weights,)
    for role, tensors in (
        ("inputs", all_of(batch.inputs)), ("targets", all_of(batch.targets)), ("weights", weights)
    ):  # fmt: skip
        for x in tensors:
            # the sum is NaN or inf as soon as one entry is, and takes no memory of the data's size
            if x.is_floating_point() and not torch.isfinite(x.sum(dtype=torch.float64)):
                raise InputError(f"{part} {role} hold NaN or inf; clean or drop those examples")
