"""The ranges of a network's values on calibration data."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.graph import Network
from ellzero.quantization.scale import Scale

RangeMethod = Literal["mse", "minmax", "percentile"]

BINS = 2048
"""Of the histogram of a value's entries, from the least to the largest."""

OUTLIERS = 1e-4
"""The part of the entries that percentiles leave outside at each end."""

FEW = 1e-3
"""The part of the entries other than 0 that is few."""

_STEPS = np.linspace(1.0, 0.05, 39)
"""Parts of the whole range that are tried for the least squared error."""


@dataclass
class Histogram:
    """What entries of one value there were on calibration data; 0 counts as one of them."""

    low: float = 0.0
    high: float = 0.0
    counts: np.ndarray | None = None
    zeros: int = 0
    examples: int = 0
    least: Tensor | None = None
    """Of each channel."""
    most: Tensor | None = None

    def widen(self, values: Tensor) -> None:
        """Take the entries' extremes into account."""
        low, high = values.transpose(0, 1).flatten(1).aminmax(dim=1)
        self.least = low if self.least is None else self.least.minimum(low)
        self.most = high if self.most is None else self.most.maximum(high)
        self.low, self.high = min(self.low, float(low.min())), max(self.high, float(high.max()))
        self.examples += len(values)

    def count(self, values: Tensor) -> None:
        """Count the entries."""
        if self.low < self.high:
            counted = torch.histc(values.double(), BINS, self.low, self.high).numpy()
            self.counts = counted if self.counts is None else self.counts + counted
            self.zeros += int((values == 0).sum())

    @property
    def is_constant(self) -> bool:
        """Whether each channel has one value."""
        return not self._changing.any()

    @property
    def largest_constant(self) -> tuple[int, float] | None:
        """The channel that is constant at the largest magnitude, and its value; None without."""
        assert self.most is not None
        constant = self.most.masked_fill(self._changing, 0)
        place = int(constant.abs().argmax())
        return (place, float(constant[place])) if constant[place] else None

    @property
    def width_of_changing(self) -> float:
        """How wide a range with 0 is that holds the channels which are not constant."""
        assert self.least is not None
        assert self.most is not None
        low, high = self.least[self._changing].min(), self.most[self._changing].max()
        return max(0.0, float(high)) - min(0.0, float(low))

    @property
    def width_of_most(self) -> float:
        """How wide a range with 0 is that holds all but a few of the entries other than 0."""
        assert self.counts is not None
        others = self.counts.copy()
        zero = torch.histc(torch.zeros(1).double(), BINS, self.low, self.high).argmax()
        others[int(zero)] -= self.zeros
        low, high = self._without(others, FEW / 2)
        return high - low

    @property
    def _changing(self) -> Tensor:
        """Which channels are not constant, bool."""
        assert self.least is not None
        assert self.most is not None
        return self.least != self.most

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        return (edges[1:] + edges[:-1]) / 2

    def range(self, method: RangeMethod) -> tuple[float, float]:
        """The range that is to be held, (low <= 0, high >= 0)."""
        if self.counts is None or method == "minmax":
            return self.low, self.high
        if method == "percentile":
            return self._without(self.counts, OUTLIERS)
        return self._least_squares()

    def _without(self, counts: np.ndarray, part: float) -> tuple[float, float]:
        """The range that leaves a part of what is counted outside at each end."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        below = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
        first = int(np.searchsorted(below, part, side="right")) - 1
        last = int(np.searchsorted(below, 1 - part, side="left"))
        return min(0.0, float(edges[first])), max(0.0, float(edges[min(last, BINS)]))

    def _least_squares(self) -> tuple[float, float]:
        """The part of the range whose int8 values are nearest to the entries, in the mean square.

        First both ends are moved together, then each alone.
        """
        low, high = min(
            ((self.low * step, self.high * step) for step in _STEPS), key=self._squared_error
        )
        for _ in range(2):
            low, _high = min(
                ((self.low * s, high) for s in _STEPS if self.low),
                key=self._squared_error,
                default=(low, high),
            )
            _low, high = min(
                ((low, self.high * s) for s in _STEPS if self.high),
                key=self._squared_error,
                default=(low, high),
            )
        return float(low), float(high)

    def _squared_error(self, ends: tuple[float, float]) -> float:
        assert self.counts is not None
        held, x = Scale.of_range(*ends), self.centres
        q = np.clip(np.round(x / held.scale) + held.zero, -128, 127)
        return float((self.counts * ((q - held.zero) * held.scale - x) ** 2).sum())


@torch.no_grad()
def histograms(
    network: Network, batches: Sequence[Tensor], names: Container[str]
) -> dict[str, Histogram]:
    """What values the nodes of these names have on calibration data.

    Args:
        network: of one input.
        batches: its inputs, as it takes them.
        names: the nodes that are looked at.

    Raises:
        InputError: no data; values that are NaN or infinite, by the node that gives them.
    """
    seen = {node.name: Histogram() for node in network.graph.nodes if node.name in names}
    for last, batch in product((False, True), batches):
        for name, value in _values(network, batch):
            if name not in seen:
                continue
            if not value.isfinite().all():
                raise InputError(
                    f"{name} gives NaN or inf on the calibration data; there is no range to "
                    "quantize it in"
                )
            seen[name].count(value) if last else seen[name].widen(value)
    return seen


def _values(network: Network, batch: Tensor) -> list[tuple[str, Tensor]]:
    values: dict[str, Tensor] = dict(zip(network.graph.inputs, [batch], strict=True))
    for node in network.graph.nodes:
        if node.inputs:
            weights: Mapping[str, Tensor] = {r: network.weight(n) for r, n in node.weights.items()}
            values[node.name] = node.op.run([values[name] for name in node.inputs], weights)
    return list(values.items())
