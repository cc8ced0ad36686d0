"""The smallest of several exact ways to write a tensor; what a writer does, and no reader."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ellzero.codebook import find_codebook
from ellzero.packed.entropy import PRECISION, Integers
from ellzero.packed.forms import MAX_MAGNITUDES, Few, Raw, are_halves
from ellzero.packed.layouts import Layout
from ellzero.packed.lines import FINEST, MAX_UNITS, WEIGHT_BITS, Evidence, Geometry, binary
from ellzero.packed.tensor_fields import SIGNED, Announced, Form, Lines, kinds_of

MAX_LINES = 1 << 12  # of a tensor: each takes time, however short
FITTED = 1 << 17  # elements that weights are fitted to, at most
STEPS = 8  # of Newton's method
LINES_BITS = 64  # what telling the lines takes
LEAST_GAIN = 0.005  # of the bits of kinds; for less, decoding line by line is not worth its time


def announce(tensor: Tensor, layout: Layout, most_lines: int = MAX_LINES) -> Announced:
    """The smallest exact way to write a finite tensor, of any shape and a type in DTYPES.

    Args:
        tensor: without negative zeros.
        layout: of its columns; kernels tell theirs by their shapes.
        most_lines: how many lines it may have.
    """
    if _are_indices(tensor):
        zeros = int(tensor[-1]) + 1 - len(tensor)
        return Announced(tensor.dtype, tuple(tensor.shape), Form.INDICES, zeros)
    flat = tensor.flatten()
    kinds = kinds_of(flat)
    values = flat[torch.from_numpy(kinds != 0)]
    form, written = min(_forms(values), key=lambda each: _bits(*each, values))
    negatives = int((kinds < 0).sum())
    told = negatives if form in SIGNED else None
    zeros = len(flat) - len(values)
    counted = Announced(tensor.dtype, tuple(tensor.shape), form, zeros, told, None, written)
    if not all(written.signs) and zeros == 0:
        return counted
    if form not in SIGNED:
        kinds = np.abs(kinds)
    _, counts = np.unique(kinds, return_counts=True)
    least = _entropy(counts) * (1 - LEAST_GAIN)
    best = counted
    for geometry in _geometries(tensor, layout, most_lines):
        lines = Lines(geometry, layout.places)
        candidate = Announced(tensor.dtype, counted.shape, form, zeros, None, lines, written)
        weights, bits = _fitted(candidate, kinds, layout.indices)
        if bits + LINES_BITS < least:
            least = bits + LINES_BITS
            fitted = Lines(geometry, layout.places, weights)
            best = Announced(tensor.dtype, counted.shape, form, zeros, None, fitted, written)
    return best


def _forms(values: Tensor) -> Iterator[tuple[Form, Raw | Few]]:
    yield Form.RAW, Raw.of(values, halves=False)
    if are_halves(values):
        yield Form.HALVES, Raw.of(values, halves=True)
    book = find_codebook(values)
    if book is not None and len(book.values):
        yield Form.BOOK, Few.of_book(book.values, halves=False)
        if are_halves(book.values):
            yield Form.BOOK_OF_HALVES, Few.of_book(book.values, halves=True)
        grid = _grid(book.values)
        if grid is not None:
            yield Form.GRID, grid


def _bits(form: Form, written: Raw | Few, values: Tensor) -> float:
    """Bits that values take, with their signs."""
    bits = written.bits(values)
    if form in SIGNED:
        bits += _entropy(np.array([int((values < 0).sum()), int((values > 0).sum())]))
    return bits


def _grid(values: Tensor) -> Few | None:
    """Ascending values as multiples of a step, of which the largest has at most 127."""
    if not values.is_floating_point():
        return None
    exact = values.double()
    for top in range(1, MAX_MAGNITUDES + 1):
        scale = (exact.abs().max() / top).to(values.dtype)
        multiples = torch.round(exact / scale.double()) if scale else exact
        if torch.equal((multiples * scale.double()).to(values.dtype), values):
            lowest, highest = min(int(multiples[0]), 0), max(int(multiples[-1]), 0)
            if max(-lowest, highest) <= MAX_MAGNITUDES:
                return Few.of_grid(scale, lowest, highest)
    return None


def _geometries(tensor: Tensor, layout: Layout, most: int) -> Iterator[Geometry]:
    """Ways to cut a tensor into lines, of which there are not too many, and none is too long."""
    if not tensor.ndim:
        return
    columns = tensor[0].numel()
    kernel = tensor.shape[2:]
    if columns <= most and len(tensor) <= MAX_UNITS:
        if kernel:
            height = kernel[-2] if len(kernel) > 1 else 1
            yield Geometry(rows=False, height=height, width=kernel[-1])
        else:
            yield Geometry(rows=False, height=layout.height, width=layout.width)
    if len(tensor) <= most and columns <= MAX_UNITS and tensor.ndim > 1 and layout.width == 1:
        yield Geometry(rows=True)


def _fitted(
    announced: Announced, kinds: Integers, indices: Integers | None
) -> tuple[tuple[int, ...] | None, float]:
    """Weights of the four measures, and the bits of all kinds with them."""
    assert announced.lines is not None
    assert announced.values is not None
    geometry = announced.lines.geometry
    count, units = announced.line_shape
    step = min(-(-count * units // FITTED), units)
    first = (count, units) if geometry.rows else (units, count)
    lines = np.ascontiguousarray(geometry.lines(kinds.reshape(first))[:, ::step])
    nonzeros = int(np.count_nonzero(lines))
    places = np.arange(count) if indices is None else indices
    evidence = Evidence(lines.shape, nonzeros, geometry.neighbours(places))
    mixed, signed = 0 < nonzeros < lines.size, all(announced.values.signs)
    measures = np.empty((count, 4, lines.shape[1]), np.float32)
    bits = 0.0
    for index, line in enumerate(lines):
        if mixed:
            for measure, values in zip(measures[index], evidence.log_odds(), strict=True):
                measure[:] = values
        if signed:
            there = np.flatnonzero(line)
            bits += _cost(evidence.sign_model(there), line[there] > 0)
        evidence.learn(line)
    weights = (0, 0, 0, 1 << WEIGHT_BITS) if announced.zeros else None
    if mixed:
        each = measures.transpose(0, 2, 1).reshape(-1, 4)
        target = lines.reshape(-1) != 0
        weights = _newton(each / 256, target)
        mixture = (each @ np.array(weights, np.float32)).astype(np.int64) >> WEIGHT_BITS
        bits += _cost(binary()[np.clip(mixture, -FINEST, FINEST) + FINEST], target)
    return weights, bits * units / lines.shape[1]


def _newton(measures: np.ndarray, weights: np.ndarray) -> tuple[int, ...]:
    """Logistic regression: how much each measure counts, in 64ths."""
    factors, target = np.array([0.0, 0.0, 0.0, 1.0]), weights.astype(float)
    start = factors
    for _ in range(STEPS):
        p = 1 / (1 + np.exp2(-np.clip(measures @ factors, -16, 16)))
        slope = measures.T @ (target - p) * np.log(2) - (factors - start)
        curve = (measures * (p * (1 - p))[:, None]).T @ measures * np.log(2) ** 2 + np.eye(4)
        factors = factors + np.linalg.solve(curve, slope)
    return tuple(int(n) for n in np.clip(np.round(factors * (1 << WEIGHT_BITS)), -128, 127))


def _cost(model: Integers, symbols: Integers) -> float:
    """Bits of symbols (n,) with the frequencies (n, 2) of each."""
    chosen = model[np.arange(len(model)), symbols.astype(np.int64)]
    return float(PRECISION * len(model) - np.log2(chosen).sum())


def _entropy(counts: Integers) -> float:
    """Bits of symbols that occur so often."""
    times = counts[counts > 0].astype(np.float64)
    return float(-(times * np.log2(times / times.sum())).sum()) if len(times) else 0.0


def _are_indices(tensor: Tensor) -> bool:
    return (
        tensor.dtype == torch.int64
        and tensor.ndim == 1
        and len(tensor) > 0
        and int(tensor[0]) >= 0
        and bool((tensor.diff() > 0).all())
        and int(tensor[-1]) < 1000 * len(tensor)  # else the bitmap is no gain
    )
