"""Quantization: weights that share few values, so that each needs but a few bits in a file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Literal, get_args, overload

import torch
from torch import Tensor, nn

from ellzero.codebook import round_half, round_values
from ellzero.data.data import Data
from ellzero.errors import BudgetError, InputError, nearest
from ellzero.progress import shown_progress
from ellzero.pruning.budget import Budget
from ellzero.quantization.finetune import Quantized, write
from ellzero.quantization.integer import IntegerForm, integer_form
from ellzero.quantization.kmeans import kmeans
from ellzero.quantization.ranges import RangeMethod
from ellzero.record import Evaluation
from ellzero.selection import Selection, selected
from ellzero.training.evaluation import evaluate

Method = Literal["kmeans", "uniform", "int8"]

BITS = range(2, 9)
"""Bits that a codebook of k-means may have."""

DEFAULT_BITS = 4

INT8_TOP = 127


@overload
def quantize(
    model: nn.Module,
    *,
    activations: Literal[8],
    data: Data | Tensor,
    ranges: RangeMethod = "mse",
) -> IntegerForm: ...
@overload
def quantize(
    model: nn.Module,
    *,
    bits: int | Mapping[str, int] | None = None,
    method: Method = "kmeans",
    biases: int | None = None,
    weights: Selection | None = None,
    data: Data | None = None,
    budget: Budget | None = None,
    progress: bool = True,
) -> Quantized: ...
def quantize(
    model: nn.Module,
    *,
    bits: int | Mapping[str, int] | None = None,
    method: Method = "kmeans",
    biases: int | None = None,
    weights: Selection | None = None,
    data: Data | Tensor | None = None,
    budget: Budget | None = None,
    activations: Literal[8] | None = None,
    ranges: RangeMethod = "mse",
    progress: bool = True,
) -> Quantized | IntegerForm:
    """Let the weights of each layer share few values, in place.

    With `"kmeans"` the nonzero weights of a layer become the means of at most `2^bits` clusters;
    zeros stay zero and nonzeros nonzero. With `"int8"` they become `q s`, q a whole number in
    -127..127 and s = max|w| / 127; weights below s / 2 become zero. With `"uniform"` they are such
    multiples of the largest step whose squared error is at most that of k-means: more values than
    `2^bits`, but mostly a smaller packed file, where frequent values take fewer bits. Where no step
    with q in -127..127 is as exact, as with 8 bits, they are int8.

    The values, as well as all biases and other vectors (of batch normalizations only where the
    network was traced, for tracing makes other numbers of them), are rounded to 16 bits, as they
    are stored, or the biases to fewer: with `biases=6` those of a layer are q s, -31 <= q <= 31.
    Nothing marks the network: its codebooks are read off its weights.

    Compact a network first: what is merged or traced afterwards gets new values.

    With `activations=8` the network stays as it is, and an `IntegerForm` holds one that computes
    in integers alone: weights int8 with a scale for each output, symmetric; values int8 with a
    scale and a zero point for each tensor, whose ranges the data show; biases and sums int32, which
    one multiplication rounds to int8. It was folded and compacted before, so that it is the same
    whether the given network was or not.

    Args:
        model: the network; it changes in place, but for `activations=8`.
        bits: bits a weight of k-means, 2 to 8: one number, or one for each name of the weights; by
            default 4, or what the budget allows.
        method: `"kmeans"`, `"uniform"` or `"int8"`.
        biases: bits of a bias, 2 to 8; by default 16. A budget judges them with the weights.
        weights: what is quantized, from `ez.select`; by default what it selects by
            default.
        data: judges, by its validation part, what the budget allows. With `activations=8` what the
            ranges are taken of: a batch of inputs, preprocessed, or 512 training examples.
        budget: what may be lost against the network as given. The fewest bits that all layers may
            have are found, then fewer for each layer, the one with the most nonzeros first.
        activations: 8 for a network of integers; None for weights alone.
        ranges: of its values: those of the least squared error (`"mse"`), all that there are
            (`"minmax"`), or all but one in 10,000 at each end (`"percentile"`).
        progress: show on standard error how far the choice of bits is: a bar on a terminal,
            elsewhere a line every 30 seconds.

    Returns:
        A mapping from the weights' names to their codebooks; with `activations=8` the network of
        integers with its scales.

    Raises:
        InputError: bits, method or weights that make no sense; a weight that is NaN or infinite;
            a budget without data, or beside bits or int8. With `activations=8`: what has no integer
            form, by its name; a sum that int32 cannot hold; no data, or settings of weights.
        BudgetError: 8 bits lose more than the budget; the network is as it was.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[0, 1, 9, 5], [-4, 0, 8, 1]]))
        >>> quantized = ez.quantize(model, bits=2)
        >>> model.weight.data
        tensor([[ 0.0000,  1.0000,  8.5000,  5.0000],
                [-4.0000,  0.0000,  8.5000,  1.0000]])
        >>> quantized.bits
        {'weight': 2}
    """
    if activations is not None:
        return _of_integers(model, activations, data, ranges, bits, method, biases, weights, budget)
    if isinstance(data, Tensor):
        raise InputError("a batch of inputs judges no budget; give an ez.Data")
    weights = selected(model, weights)
    widths = _widths(weights, bits, method, budget)
    _check_budget(data, budget)
    if biases is not None and (type(biases) is not int or biases not in BITS):
        raise InputError(
            f"biases is {biases!r}; expected a whole number of bits from {BITS[0]} to {BITS[-1]}"
        )
    vectors = _vectors(model, weights)
    for name, w in {**weights, **vectors}.items():
        if not w.isfinite().all():
            raise InputError(f"{name} {tuple(w.shape)} holds NaN or inf; it cannot be quantized")

    originals = {name: w.detach().clone() for name, w in weights.items()}
    before = {name: w.detach().clone() for name, w in vectors.items()}
    try:
        reference = None if data is None else evaluate(model, data, "validation")
        write(vectors, {name: _stored(name, w, biases) for name, w in vectors.items()})
        if data is not None and budget is not None and reference is not None:
            _within(model, weights, originals, data, budget, reference, progress)
        else:
            write(weights, {n: _rounded(w, widths[n], method) for n, w in originals.items()})
    except BaseException:
        write(weights, originals)
        write(vectors, before)
        raise
    errors = {name: _relative_error(w, originals[name]) for name, w in weights.items()}
    return Quantized(model, weights, errors)


def _of_integers(
    model: nn.Module,
    activations: int,
    data: Data | Tensor | None,
    ranges: RangeMethod,
    *of_weights: object,
) -> IntegerForm:
    """The network of integers, if what else was asked for goes with it."""
    if activations != 8:
        raise InputError(f"activations is {activations!r}; expected 8, or None for weights alone")
    if data is None:
        raise InputError("activations=8 takes the ranges of values from data; give data=")
    bits, method, *others = of_weights
    if bits not in (None, 8) or method not in ("kmeans", "int8") or any(others):
        raise InputError(
            "with activations=8 all weights are int8; leave bits, method, biases, weights and "
            "budget out"
        )
    return integer_form(model, data, ranges)


def _vectors(model: nn.Module, weights: Selection) -> dict[str, Tensor]:
    """The biases and other vectors that are stored beside the weights."""
    normalizations = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for parameter in module.parameters(recurse=False)
    }
    apart = normalizations.union(weights.values())
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 1 and parameter.is_floating_point() and parameter not in apart
    }


@torch.no_grad()
def _stored(name: str, vector: Tensor, biases: int | None) -> Tensor:
    """A vector as it is stored: in 16 bits, a bias in fewer where that is asked for."""
    if biases is None or not name.rpartition(".")[2].startswith("bias"):
        return round_half(vector)
    return _uniform(vector, 2 ** (biases - 1) - 1)


def _widths(
    weights: Selection, bits: int | Mapping[str, int] | None, method: str, budget: Budget | None
) -> dict[str, int]:
    if method not in get_args(Method):
        raise InputError(f"method is {method!r}; expected 'kmeans', 'uniform' or 'int8'")
    if budget is not None and (bits is not None or method != "kmeans"):
        raise InputError("a budget chooses the bits of k-means; give it without bits or method")
    if method == "int8":
        if bits not in (None, 8):
            raise InputError(f"bits is {bits!r}; int8 has 8")
        return dict.fromkeys(weights, 8)
    asked = DEFAULT_BITS if bits is None else bits
    widths = asked if isinstance(asked, Mapping) else dict.fromkeys(weights, asked)
    for name in set(widths) ^ set(weights):
        if name in weights:
            raise InputError(f"bits lacks {name}; expected a number for each weight")
        raise InputError(f"bits names {name!r}; {nearest(name, list(weights))}")
    for name, width in widths.items():
        if type(width) is not int or width not in BITS:
            raise InputError(
                f"{name}: bits is {width!r}; expected a whole number from {BITS[0]} to {BITS[-1]}"
            )
    return dict(widths)


def _check_budget(data: Data | None, budget: Budget | None) -> None:
    if (data is None) != (budget is None):
        raise InputError("data and a budget go together: the data judge what the budget allows")
    is_of_accuracy = budget is not None and budget.max_accuracy_drop is not None
    if is_of_accuracy and data is not None and not data.scores_accuracy:
        raise InputError(
            "max_accuracy_drop (--max-accuracy-drop) needs the accuracy as score; use "
            "max_loss_increase (--max-loss-increase)"
        )


@torch.no_grad()
def _rounded(w: Tensor, bits: int, method: str) -> Tensor:
    """A weight with few values."""
    if method == "int8":
        return _uniform(w, INT8_TOP)
    quantized = torch.zeros_like(w)
    nonzero = w != 0
    quantized[nonzero] = round_values(kmeans(w[nonzero], 2**bits)).to(w)
    return quantized if method == "kmeans" else _as_exact(w, _relative_error(quantized, w))


def _as_exact(w: Tensor, error: float) -> Tensor:
    """Uniform values with the largest step whose relative squared error is no larger, nearly."""
    fewest = bisect_left(
        range(1, INT8_TOP), True, key=lambda top: _relative_error(_uniform(w, top), w) <= error
    )
    return _uniform(w, 1 + fewest)


def _uniform(values: Tensor, top: int) -> Tensor:
    """Values as whole multiples of a step, of which the largest is `top`.

    The step has 16 bits, so that all are exact.
    """
    scale = round_half(values.double().abs().max() / top) if values.numel() else torch.zeros(())
    if scale == 0:
        return torch.zeros_like(values)
    return (torch.round(values / scale).clamp(-top, top) * scale).to(values.dtype)


def _relative_error(quantized: Tensor, original: Tensor) -> float:
    """`|q - w|^2 / |w|^2`."""
    power = float(original.double().square().sum())
    return float((quantized.detach().double() - original).square().sum()) / power if power else 0.0


def _within(
    model: nn.Module,
    weights: Selection,
    originals: Mapping[str, Tensor],
    data: Data,
    budget: Budget,
    reference: Evaluation,
    shown: bool,
) -> None:
    """Quantize with the fewest bits that the budget allows."""
    now: dict[str, int] = {}

    def apply(bits: Mapping[str, int]) -> None:
        for name in bits:
            if now.get(name) != bits[name]:
                write(weights, {name: _rounded(originals[name], bits[name], "kmeans")})
                now[name] = bits[name]

    def lost(bits: Mapping[str, int]) -> float:
        apply(bits)
        return budget.used(reference=reference, candidate=evaluate(model, data, "validation"))

    with shown_progress(shown=shown) as bar:
        task = bar.add_task("choosing bits", total=len(BITS) + len(weights), note="")
        chosen = _common(weights, budget, lost, lambda: bar.advance(task))
        bar.update(task, completed=len(BITS), note=f"{max(chosen.values())} bits are enough")
        for name in sorted(weights, key=lambda n: -int(originals[n].count_nonzero())):
            while chosen[name] > BITS[0]:
                fewer = {**chosen, name: chosen[name] - 1}
                if not budget.allows(lost(fewer)):
                    break
                chosen = fewer
            bar.advance(task)
    apply(chosen)


def _common(
    weights: Selection,
    budget: Budget,
    lost: Callable[[Mapping[str, int]], float],
    tick: Callable[[], None],
) -> dict[str, int]:
    """The fewest bits common to all weights that the budget allows."""
    losses = {}
    for width in BITS:
        bits = dict.fromkeys(weights, width)
        losses[width] = lost(bits)
        if budget.allows(losses[width]):
            return bits
        tick()
    best = min(losses, key=lambda width: losses[width])
    unit = " points of accuracy" if budget.max_loss_increase is None else " (relative loss)"
    raise BudgetError(
        f"from {BITS[0]} to {BITS[-1]} bits none stayed within the budget of {budget.limit:g}"
        f"{unit}; the best found, {best} bits, lost {losses[best]:.3g}. Allow more, or choose the "
        "bits and fine-tune the codebooks"
    )
