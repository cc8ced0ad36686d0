"""Which values of a network are the same for every input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ellzero.graph import Network, Node
from ellzero.operations import Operation
from ellzero.operations.axes import Axes

EVEN = 1e-12
"""How far, relatively, values of one channel may be apart by rounding, in float64."""


def uniform(constant: Tensor, place: int, size: int) -> Tensor:
    """The value of each index of an axis where it is the same everywhere, else NaN: (size,)."""
    if not constant.ndim:
        return constant.new_full((size,), math.nan)
    values = constant.movedim(place, 0).flatten(1) if constant.ndim > 1 else constant.view(-1, 1)
    low, high = values.aminmax(dim=1)
    even = high - low <= EVEN * high.abs()
    return high.masked_fill(~even, math.nan).expand(size)


def constants_of(network: Network, axes: Mapping[str, Axes | None]) -> dict[str, Tensor]:
    """The values that are the same for every input, NaN for the others; float64.

    Of each node a tensor of the dimensions of an example, with size 1 where an axis is uniform.
    What the network's own type does not hold is not known, for there it is infinite.
    """
    held = [torch.finfo(weight.dtype).max for weight in network.parameters()]
    largest = max(held, default=math.inf)
    constants: dict[str, Tensor] = {}
    for node in network.graph.nodes:
        value = _constant(node, network, axes[node.name], constants)
        constants[node.name] = torch.where(value.abs() <= largest, value, math.nan)
    return constants


def _constant(
    node: Node, network: Network, axes: Axes | None, constants: Mapping[str, Tensor]
) -> Tensor:
    nothing = torch.full((1,) * len(network.shapes[node.name]), math.nan, dtype=torch.float64)
    inputs = [constants[name] for name in node.inputs]
    if axes is None:
        return nothing
    if axes.mixes:
        return _mixed(node, network, axes, inputs[0])
    return _followed(node, network, inputs) if node.op.FOLLOWS else nothing


def _mixed(node: Node, network: Network, axes: Axes, constant: Tensor) -> Tensor:
    """Behind a layer: a row is constant if nothing that it reads is unknown."""
    row, column = (axes.of_weight("weight")[place] for place in axes.matrices["weight"])
    place = axes.read[0].index(column)
    known = uniform(constant, place, network.shapes[node.inputs[0]][place])
    matrix = as_matrix(node, "weight", network, axes)
    unknown = (nonzero(matrix) & ~taken_up(node.op, "weight", known)).any(1)
    value = times(matrix, known.nan_to_num())
    if "bias" in node.weights:
        value += exact(network.weight(node.weights["bias"]))
    value = value.masked_fill(unknown, math.nan)
    return along(value, axes.result.index(row), len(axes.result))


def _followed(node: Node, network: Network, constants: Sequence[Tensor]) -> Tensor:
    """Behind an operation that makes NaN of whatever depends on NaN: what it makes of them.

    A padding makes a channel another one at the margin, so that it is uniform no more.
    """
    weights = {role: network.weight(name).detach().cpu() for role, name in node.weights.items()}
    weights = {r: w.double() if w.is_floating_point() else w for r, w in weights.items()}
    seen = node.op.sees(weights)
    filled = []
    for name, constant in zip(node.inputs, constants, strict=True):
        shape = network.shapes[name]
        # elsewhere a place may not be as another, such as at the margin
        size = (*shape[:1], *constant.shape[1:]) if node.op.ELEMENTWISE else shape
        value = constant.expand(size)
        if seen is not True:
            hidden = ~torch.as_tensor(seen).view(-1, *[1] * (len(shape) - 1))
            value = value.masked_fill(hidden, 0)
        filled.append(value.unsqueeze(0))
    (values,) = node.op.known(filled, weights)
    return _narrow(values.double())  # indices and masks, too


def _narrow(values: Tensor) -> Tensor:
    """The same with size 1 where an axis is uniform."""
    for place in range(values.ndim):
        low, high = values.aminmax(dim=place, keepdim=True)
        unknown = values.isnan()
        even = (high - low <= EVEN * high.abs()) | unknown.all(place, keepdim=True)
        if even.all():
            values = high
    return values


def as_matrix(node: Node, role: str, network: Network, axes: Axes) -> Tensor:
    """A layer's weight on the CPU: (rows, columns, entries of the kernel between them)."""
    weight = network.weight(node.weights[role]).detach().cpu().movedim(axes.matrices[role], (0, 1))
    return weight.reshape(*weight.shape[:2], -1)


def times(matrix: Tensor, columns: Tensor) -> Tensor:
    """What a weight makes of constant columns in float64, where no margin cuts its kernel."""
    return matrix.double().sum(2) @ columns


def nonzero(matrix: Tensor) -> Tensor:
    """Whether a row has anything but zeros on a column, bool (rows, columns)."""
    return (matrix != 0).any(2)


def taken_up(op: Operation, role: str, known: Tensor, *, folds: bool = True) -> Tensor:
    """Which columns no row needs: those of zeros, and constants that its bias takes up.

    Args:
        op: the layer.
        role: of its weight.
        known: the value of each column, NaN where it is not constant.
        folds: whether a column is the same at each step, so that a bias could stand for it.
    """
    takes = folds and op.folds_constants() and bias_of(role) in (*op.REQUIRED, *op.OPTIONAL)
    return (known == 0) | (known.isfinite() & takes)


def bias_of(role: str) -> str:
    """The role of the bias that is added to what a weight makes: weight_ih, bias_ih."""
    return role.replace("weight", "bias")


def along(vector: Tensor, place: int, dimensions: int) -> Tensor:
    """A vector as a tensor of so many dimensions, size 1 but at its place."""
    return vector.view([-1 if p == place else 1 for p in range(dimensions)])


def exact(weight: Tensor) -> Tensor:
    """A weight's values as float64, on the CPU."""
    return weight.detach().cpu().double()


def fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers stay finite in a type, which float16 may not hold.

    Example:
        >>> fits(torch.tensor([70_000.0]), torch.float16)
        False
    """
    return bool(values.to(dtype).isfinite().all())
