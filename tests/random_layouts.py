"""Random networks on sequences and axes: attention, products, sums over axes, tokens."""

from __future__ import annotations

import math
from typing import Any

from c_programs import Builder
from ellzero import operations as ops
from ellzero.graph import Network

MOST = 400
"""Values of an example, at most, so that all of it stays small."""


def random_layouts(seed: int) -> Network:
    """Up to seven random operations on two to four axes, often after a table of tokens."""
    b = Builder((1,), seed)
    is_text = b.pick(True, False, False)
    count = 1 if is_text else int(b.random.integers(2, 4))
    size = tuple(b.random.integers(2, 6, count).tolist())
    b = Builder(size, seed, dtype="int64" if is_text else "float")
    if is_text:
        b.add(ops.Embedding(), weight=b.weight(b.pick(3, 11), int(b.random.integers(2, 7))))
    for _ in range(b.random.integers(2, 7)):
        b.pick(*CHANGES)(b)
    if b.pick(True, False):
        b.add(ops.Softmax(log=b.pick(True, False), axis=_axis(b)))
    return b.network()


def _axis(b: Builder) -> int:
    return int(b.random.integers(len(b.shape)))


def _linear(b: Builder) -> None:
    """On the last axis, the weight as a layer has it or transposed."""
    rows, features = int(b.random.integers(1, 6)), b.shape[-1]
    if b.pick(True, False):
        b.add(ops.Linear(transposed=True), weight=b.weight(features, rows))
    else:
        b.layer(ops.Linear(), rows, features)


def _attention(b: Builder) -> None:
    """Queries, keys and values of the last two axes, with another number of keys, or a mask."""
    if len(b.shape) < 2:
        return
    x, (*before, steps, features) = b.last, b.shape
    queries = b.layer(ops.Linear(), features, features)
    b.last = x
    if b.pick(True, False):  # as keys, some of the steps
        first = int(b.random.integers(steps))
        b.add(ops.Slice(axis=len(before), start=first, stop=steps))
    source = b.last
    keys, seen = b.layer(ops.Linear(), features, features), b.shape[-2]
    b.last = source
    values = b.layer(ops.Linear(), int(b.random.integers(1, 5)), features)
    mask = []
    if b.pick(True, False):
        sizes = (*(b.pick(1, size) for size in before), b.pick(1, steps), b.pick(1, seen))
        mask = [_constant(b, *sizes)]
    op: Any = {"scale": b.pick(1.0, features**-0.5), "causal": not mask and b.pick(True, False)}
    b.last = queries
    b.add(ops.Attention(**op), keys, values, *mask)


def _matmul(b: Builder) -> None:
    """Of the value turned, or of a constant matrix, with the value itself."""
    if len(b.shape) < 2:
        return
    x, axes = b.last, len(b.shape)
    if b.pick(True, False):
        b.add(ops.Permute(order=(*range(axes - 2), axes - 1, axes - 2)))
    else:
        _constant(b, b.pick(1, 3), b.shape[-2])
    b.add(ops.MatMul(), x)
    b.activation("tanh")  # squares of squares grow without bound


def _reduce(b: Builder) -> None:
    over = [axis for axis in range(len(b.shape)) if b.pick(True, False)] or [_axis(b)]
    function = b.pick("mean", "sum", "max", "min")
    b.add(ops.Reduce.model_validate({"function": function, "over": tuple(over)}))


def _permute(b: Builder) -> None:
    b.add(ops.Permute(order=tuple(b.random.permutation(len(b.shape)).tolist())))


def _reshape(b: Builder) -> None:
    """Any other factors of the number of values, in two to four axes."""
    left, size = math.prod(b.shape), []
    for _ in range(b.random.integers(1, 4)):
        size.append(b.pick(*(n for n in range(1, left + 1) if left % n == 0)))
        left //= size[-1]
    b.add(ops.Reshape(size=(*size, left)))


def _pairwise(b: Builder) -> None:
    """Of two values, of which each may be wider at other axes."""
    x, size = b.last, b.shape
    narrow = [axis for axis in range(len(size)) if b.pick(True, False, False)]
    if narrow:
        b.add(ops.Reduce(function="mean", over=tuple(narrow)))
    elif b.pick(True, False):
        b.activation(b.pick("tanh", "abs"))
    else:
        wide = 4 if math.prod(size) * 4 ** size.count(1) <= MOST else 1
        _constant(b, *(b.pick(1, wide) if n == 1 else b.pick(1, n) for n in size))
    op = b.pick(ops.Add(), ops.Subtract(), ops.Multiply(), ops.Divide())
    if isinstance(op, ops.Divide):
        b.activation("abs")
        b.activation("plus")  # of 1.5
    first, b.last = b.last, x
    if not isinstance(op, ops.Divide) and b.pick(True, False):
        first, b.last = x, first
    b.add(op, first)
    if isinstance(op, ops.Multiply):
        b.activation("tanh")


def _where(b: Builder) -> None:
    """The value or its absolute one, by a comparison with a constant of some axes."""
    x, size = b.last, b.shape
    bound = _constant(b, *(b.pick(1, n) for n in size))
    b.last = x
    other, b.last = b.activation("abs"), x
    relation = b.pick("less", "at_most", "more", "at_least", "equal", "not_equal")
    b.add(ops.Compare.model_validate({"relation": relation}), bound)
    b.add(ops.Where(), *b.pick([x, other], [other, x]))


def _expand(b: Builder) -> None:
    """Axes of size 1, repeated."""
    if math.prod(b.shape) * 3 ** b.shape.count(1) <= MOST:
        b.add(ops.Expand(size=tuple(b.pick(1, 3) if n == 1 else n for n in b.shape)))


def _concat(b: Builder) -> None:
    """With a part of it, or with a constant."""
    axis, x, size = _axis(b), b.last, list(b.shape)
    if 3 * math.prod(size) > MOST:
        return
    if b.pick(True, False):
        _slice(b, axis)
    else:
        size[axis] = b.pick(1, 2)
        _constant(b, *size)
    b.add(ops.Concat(axis=axis), x, *b.pick([], [x]))


def _slice(b: Builder, axis: int | None = None) -> None:
    axis = _axis(b) if axis is None else axis
    start = int(b.random.integers(b.shape[axis]))
    stop = int(b.random.integers(start, b.shape[axis])) + 1
    b.add(ops.Slice(axis=axis, start=start, stop=stop, step=b.pick(1, 1, 2)))


def _pad(b: Builder) -> None:
    before, after = (tuple(b.random.integers(0, 2, len(b.shape)).tolist()) for _ in range(2))
    grown = math.prod(n + 2 for n in b.shape)
    if grown <= MOST:
        b.add(ops.Pad(before=before, after=after, value=b.pick(0.0, -1.5)))


def _norm(b: Builder) -> None:
    count = int(b.random.integers(1, len(b.shape) + 1))
    op = b.pick(ops.LayerNorm(count=count, eps=0.1), ops.RMSNorm(count=count, eps=0.1))
    size = tuple(b.shape[axis] for axis in op.weight_axes(len(b.shape)))
    b.add(op, **{role: b.normal(*size) for role in b.pick((), op.OPTIONAL)})


def _activation(b: Builder) -> None:
    b.activation(b.pick("gelu", "silu", "sigmoid", "relu"))


def _constant(b: Builder, *size: int) -> str:
    """A value that no input changes, as a node."""
    return b.add(ops.Constant(), value=b.normal(*size))


CHANGES = (
    _linear,
    _attention,
    _matmul,
    _reduce,
    _permute,
    _reshape,
    _pairwise,
    _pairwise,
    _where,
    _expand,
    _concat,
    _slice,
    _pad,
    _norm,
    _activation,
)
