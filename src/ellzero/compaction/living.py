"""What of a network can matter to its output, and a warning where too little can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.compaction.channels import Channels
from ellzero.compaction.constants import along, uniform
from ellzero.compaction.folding import Folded
from ellzero.errors import EllzeroWarning, warn
from ellzero.graph import Node

LISTED = 10


@dataclass(frozen=True)
class Living:
    """What of a network can matter to its output, as far as compaction can prove.

    Args:
        nonzeros: for each weight of two or more dimensions, by its name, the nonzeros that are not
            proved dead: a dead one is read by nothing that matters, or multiplies a constant that a
            bias can take up.
        inputs: how many inputs there are: values where the network flattens them first, features
            where it reads frames, else channels.
        inputs_left: indices of those that something reads.
        constant_outputs: indices of outputs (channels of the output) that are the same whatever
            the input is.
        empty: names of the weights of layers without a single nonzero.
    """

    nonzeros: Mapping[str, int]
    inputs: int
    inputs_left: tuple[int, ...]
    constant_outputs: tuple[int, ...]
    empty: tuple[str, ...]


class DeadWarning(EllzeroWarning):
    """Category of the warning that too little of a network is alive."""


@torch.no_grad()
def living(changed: Folded) -> Living:
    """Find what of a network can matter to its output.

    What compaction cannot see through counts as living, with all that it reads.

    Args:
        changed: what `folded` made of the network; it stays as it is.

    Example:
        >>> import torch, ellzero as ez
        >>> from ellzero.compaction.folding import folded
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)
        ... )
        >>> _ = model[2].weight.data[:, 1:].zero_()  # one unit of four is read
        >>> alive = living(folded(ez.trace(model, torch.zeros(1, 3))))
        >>> alive.nonzeros, alive.inputs_left
        ({'0.weight': 3, '2.weight': 2}, (0, 1, 2))
    """
    channels = changed.channels
    nonzeros: dict[str, int] = {}
    for node in channels.nodes:
        for name in node.weights.values():
            alive = _alive(node, name, channels)
            if alive is not None:
                nonzeros[name] = int(alive.count_nonzero())
    inputs = _inputs(channels)
    left = tuple(inputs.nonzero().view(-1).tolist())
    last = channels.nodes[-1].name
    outputs = next(iter(channels.network.shapes[last]), 0)
    constant = ~uniform(channels.constants[last], 0, outputs).isnan()
    if not left:
        constant = torch.ones_like(constant)
    network = changed.original
    layers = [name for node in network.graph.nodes for name in node.layer_weights.values()]
    return Living(
        nonzeros,
        len(inputs),
        left,
        tuple(constant.nonzero().view(-1).tolist()),
        tuple(name for name in dict.fromkeys(layers) if not network.weight(name).any()),
    )


def _alive(node: Node, name: str, channels: Channels) -> Tensor | None:
    """Where a node's weight has nonzeros that may matter, bool; None for vectors."""
    weight = channels.network.weight(name).detach().cpu()
    if weight.ndim < 2:
        return None
    alive = weight != 0
    axes = channels.axes[node.name]
    if axes is None:
        return alive
    role = next(role for role, named in node.weights.items() if named == name)
    for place, needed in enumerate(channels.of_weight(node, role, channels.needed)):
        alive &= along(needed, place, weight.ndim)
    taken = channels.taken.get(node.name, {})
    if role in taken:
        alive &= along(~taken[role], axes.matrices[role][1], weight.ndim)
    return alive


def _inputs(channels: Channels) -> Tensor:
    """Which inputs something reads, bool."""
    first = channels.nodes[0].name
    readers = [node.name for node in channels.network.graph.consumers()[first]]
    if readers and all((name, 0) in channels.entries for name in readers):
        return torch.stack([channels.needed((name, 0)) for name in readers]).any(0)
    # of a sequence of frames (time, features) its features
    return channels.needed([key for key in channels.entries if key[0] == first][-1])


def warn_if_dead(changed: Folded) -> None:
    """Warn of layers without a weight, and of outputs that no input changes.

    Args:
        changed: what `folded` made of the network.
    """
    network, alive = changed.original, living(changed)
    empty = {name: network.weight(name).numel() for name in alive.empty}
    outputs = network.shapes[network.graph.nodes[-1].name][0]
    for text in sentences(empty, alive.constant_outputs, outputs):
        warn(text, DeadWarning)


def warn_if_empty(weights: Iterable[tuple[str, Tensor]]) -> None:
    """Warn of weights of two or more dimensions without a nonzero, where no more is known."""
    empty = {n: w.numel() for n, w in weights if w.ndim > 1 and w.numel() and not w.any()}
    for text in sentences(empty):
        warn(text, DeadWarning)


def sentences(
    empty: Mapping[str, int], constant: Sequence[int] = (), outputs: int = 0
) -> list[str]:
    """What is to be said of a network in which too little is alive: one sentence, or none.

    Args:
        empty: names of weights without a nonzero, and how many entries they have.
        constant: indices of outputs that no input changes.
        outputs: how many outputs there are.

    Example:
        >>> sentences({"2.weight": 48}, range(3), 3)
        ['2.weight has 0 of 48 weights left, so the output is the same for every input']
    """
    text = "; ".join(f"{name} has 0 of {size:,} weights left" for name, size in empty.items())
    if constant and len(constant) == outputs:
        text += (", so " if text else "") + "the output is the same for every input"
    elif constant:
        shown = ", ".join(map(str, constant[:LISTED])) + ", ..." * (len(constant) > LISTED)
        is_or_are = "is" if len(constant) == 1 else "are"
        text += ("; " if text else "") + (
            f"{len(constant)} of {outputs} outputs {is_or_are} the same for every input: {shown}"
        )
    return [text] if text else []
