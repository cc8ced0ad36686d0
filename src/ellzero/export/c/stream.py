"""Networks that can work frame by frame: what they do with one frame, and what with the last."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ellzero.c.text import block, comment, indented, loop
from ellzero.compaction.channels import axes_of
from ellzero.export.c.tokens import checks
from ellzero.graph import Graph, Network, Node
from ellzero.graph.graph import free_name
from ellzero.operations import Input, Recurrent, Slice
from ellzero.operations.axes import Axes, Axis


@dataclass(frozen=True)
class Stream:
    """A network of sequences (time, ...) as one of single frames.

    Recurrent layers keep their state from frame to frame.

    Args:
        network: it takes one frame (1, ...), and its nodes have the names they had.
        frames: how many frames the sequence has.
        each: the nodes that work on each frame; the others work on what the last one gives.
        gives_each: whether it gives a result for each frame, not for the last alone.
    """

    network: Network
    frames: int
    each: frozenset[str]
    gives_each: bool


@dataclass(frozen=True)
class NoStream:
    """Why a network with recurrent layers needs all frames at once."""

    reason: str


class _NeedsAllError(Exception):
    """A network that cannot work frame by frame, and why."""


def stream(network: Network) -> Stream | NoStream | None:
    """A network as one of single frames; None where it has no recurrent layer, so no state.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.RNN(3, 4, batch_first=True)
        >>> class Last(torch.nn.Module):
        ...     def forward(self, x):
        ...         return model(x)[0][:, -1]
        >>> streamed = stream(ez.trace(Last(), torch.zeros(1, 7, 3)))
        >>> streamed.frames, streamed.network.graph.input_shape, streamed.gives_each
        (7, (1, 3), False)
    """
    if not any(isinstance(node.op, Recurrent) for node in network.graph.nodes):
        return None
    try:
        return _Builder(network).stream()
    except _NeedsAllError as error:
        return NoStream(str(error))


class _Builder:
    """One walk over a network's nodes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.frames = network.graph.input_shape[0]
        self.weights: dict[str, Tensor] = {
            name: network.weight(name) for name in network.graph.weight_names()
        }
        self.each: dict[str, Node] = {}  # the nodes that work on each frame, on one frame
        self.constants: list[Node] = []
        self.after: list[Node] = []  # the others
        self.last: dict[str, str] = {}  # the last frame of a value -> that value

    def stream(self) -> Stream:
        graph = self.network.graph
        if len(graph.inputs) > 1 or len(graph.outputs) > 1:
            raise _NeedsAllError("it has several inputs or outputs")
        for node in graph.nodes:
            self._add(node)
        result = graph.results[0]
        first, *each = self.each.values()
        nodes = (first, *self.constants, *each, *self.after)
        changed = Graph(nodes=nodes, classes=graph.classes)
        if changed.results[0] != self.last.get(result, result):
            raise _NeedsAllError(f"{changed.results[0]} comes after its output")
        weights = {name: self.weights[name] for name in changed.weight_names()}
        one = Network(changed, weights).eval()
        return Stream(one, self.frames, frozenset(self.each), result in self.each)

    def _add(self, node: Node) -> None:
        if isinstance(node.op, Input):
            size = (1, *node.op.size[1:])
            self.each[node.name] = node.model_copy(
                update={"op": node.op.model_copy(update={"size": size})}
            )
        elif not node.inputs:
            self.constants.append(node)
        elif not any(name in self.each for name in node.inputs):
            self.after.append(node.reading(self.last))
        elif node.op == Slice(axis=0, start=self.frames - 1, stop=self.frames):
            self.last[node.name] = node.inputs[0]
        else:
            self.each[node.name] = self._of_one_frame(node)

    def _of_one_frame(self, node: Node) -> Node:
        if isinstance(node.op, Recurrent):
            if node.op.reverse:
                raise _NeedsAllError(f"{node.name} begins at the last frame")
            if node.op.kept:
                raise _NeedsAllError(f"{node.name} gives what it keeps after all frames")
            if len(node.inputs) > 1:
                raise _NeedsAllError(f"{node.name} begins at a state that is computed")
            return node
        axes = axes_of(node, self.network)
        if axes is None or not _keeps_frames(node, axes, self.each):
            raise _NeedsAllError(f"{node.named} reads more than one frame")
        (time,) = axes.result[0].names
        shapes = self.network.shapes
        sizes = axes.sizes_of(
            [shapes[name] for name in node.inputs],
            shapes[node.name],
            {role: tuple(self.weights[name].shape) for role, name in node.weights.items()},
        )
        op = node.op.narrowed({**sizes, time: 1}, (1, *shapes[node.name][1:]))
        weights = {
            role: self._of_one_index(node, name, axes.of_weight(role), time)
            for role, name in node.weights.items()
        }
        return node.model_copy(update={"op": op, "weights": weights})

    def _of_one_index(self, node: Node, name: str, axes: Sequence[Axis], time: str) -> str:
        """A weight that is the same at each frame, for one of them; its name."""
        places = [place for place, axis in enumerate(axes) if time in axis.names]
        if not places:
            return name
        weight = self.weights[name]
        first = weight.narrow(places[0], 0, 1)
        if len(places) > 1 or axes[places[0]].is_made_of_parts or (weight != first).any():
            raise _NeedsAllError(f"{node.named} is another one at each frame")
        new = free_name(f"{name}_frame", self.weights)
        self.weights[new] = first
        return new


def _keeps_frames(node: Node, axes: Axes, each: Container[str]) -> bool:
    """Whether each frame of a result is made of that frame alone, and of constants."""
    if not axes.result or len(axes.result[0].names) != 1:
        return False
    time = axes.result[0]
    reads = zip(node.inputs, axes.read, strict=True)
    return time.names[0] not in axes.whole.split() and all(
        read[:1] == (time,) if name in each else time not in read for name, read in reads
    )


def declared(streamed: Stream | NoStream | None, name: str) -> str:
    """What a header says of it."""
    if streamed is None:
        return ""
    if isinstance(streamed, NoStream):
        return f"\n/* It takes all frames at once: {comment(streamed.reason)}. */\n"
    upper, graph = name.upper(), streamed.network.graph
    return f"""
#define {upper}_FRAMES {streamed.frames} /* in an input */
#define {upper}_FRAME {math.prod(graph.input_shape)} /* values of one of them */
#define {upper}_STEP_OUTPUTS {math.prod(streamed.network.shapes[graph.results[-1]])}

/* What stays from frame to frame, and working memory. */
typedef struct {{
    float memory[{upper}_SCRATCH];
}} {name}_state;

/* Before the first frame. */
void {name}_reset({name}_state *state);

/* {_OF_EACH if streamed.gives_each else _OF_LAST}
   Returns the index of the largest. There may be more frames than {upper}_FRAMES, or fewer. */
int {name}_step({name}_state *state, const float *frame, float *output);
"""


def _of_frames(check: str, upper: str) -> str:
    """C of a check of each frame."""
    return block(f"for (int t = 0; t < {upper}_FRAMES; ++t)", check) if check else ""


_OF_EACH = "The outputs for one more raw frame."
_OF_LAST = "Outputs as of all frames since the reset, with one more raw frame."


def defined(
    streamed: Stream, calls: Mapping[str, str], state: int, name: str, ready: str = ""
) -> str:
    """The functions, among them that of whole inputs, which takes their frames one by one.

    Args:
        streamed: the network.
        calls: of each kernel, by its node, a line of C.
        state: the first floats of memory, which stay from frame to frame.
        name: the network's.
        ready: C that returns -1 where the network cannot work yet.
    """
    upper = name.upper()
    (first,) = streamed.network.graph.inputs
    of_frame = checks(streamed.network, {first: "frame"})
    of_frames = _of_frames(checks(streamed.network, {first: f"input + t * {upper}_FRAME"}), upper)
    of_step, of_all = (f"{ready}\n{check}" for check in (of_frame, of_frames))
    each = [call for node, call in calls.items() if node in streamed.each]
    after = [call for node, call in calls.items() if node not in streamed.each]
    output, step, row = "", "", ""
    if not after:
        output, step, row = "float *output, ", "output, ", "output, "
    if streamed.gives_each:
        row = f"output + t * {upper}_STEP_OUTPUTS, "
    finish, last = "", ""
    if after:
        last = f"\n    {name}_after(output, %s);"
        finish = (
            f"static void {name}_after(float *output, float *scratch)\n"
            f"{{\n{indented(chr(10).join(after))}\n}}\n\n"
        )
    return f"""static void {name}_each(const float *input, {output}float *scratch)
{{
{indented(chr(10).join(each))}
}}

{finish}static int {name}_largest(const float *output, int count)
{{
    int best = 0;
    for (int i = 1; i < count; ++i) {{
        if (output[i] > output[best]) {{
            best = i;
        }}
    }}
    return best;
}}

static void {name}_begin(float *scratch)
{{
{indented(loop("i", state, "scratch[i] = 0.0f;"))}
}}

void {name}_reset({name}_state *state)
{{
    {name}_begin(state->memory);
}}

int {name}_step({name}_state *state, const float *frame, float *output)
{{
{indented(of_step)}
    {name}_each(frame, {step}state->memory);{last.replace("%s", "state->memory")}
    return {name}_largest(output, {upper}_STEP_OUTPUTS);
}}

int {name}_predict_in(const float *input, float *output, float *scratch)
{{
{indented(of_all)}
    {name}_begin(scratch);
    for (int t = 0; t < {upper}_FRAMES; ++t) {{
        {name}_each(input + t * {upper}_FRAME, {row}scratch);
    }}{last.replace("%s", "scratch")}
    return {name}_largest(output, {upper}_OUTPUTS);
}}
"""
