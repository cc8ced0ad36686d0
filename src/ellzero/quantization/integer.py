"""Integer networks: weights, values and sums of a network as integers, ranges from data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor, nn

from ellzero.compaction.compact import compacted_of
from ellzero.compaction.folding import Folded, folded
from ellzero.compaction.living import warn_if_dead
from ellzero.data.data import Data
from ellzero.data.inputs import all_of
from ellzero.errors import InputError, warn
from ellzero.graph import Graph, Network, trace
from ellzero.operations import Select
from ellzero.operations.integer import is_integer
from ellzero.quantization.calibrated import Calibrated
from ellzero.quantization.converting import require_form
from ellzero.quantization.doubts import doubts
from ellzero.quantization.fake import FakeNetwork
from ellzero.quantization.ranges import RangeMethod, histograms
from ellzero.quantization.rewriting import rewritten
from ellzero.quantization.tuning import Trained, Tuning, tune
from ellzero.record import Evaluation
from ellzero.training.evaluation import evaluate

CALIBRATION = 512
"""Training examples that ranges are looked for on, at most."""

TOKENS = (torch.int32, torch.int64)

_BATCH = 64


@dataclass(eq=False)
class IntegerForm:
    """A network of integers that `quantize(..., activations=8)` made of another one.

    Args:
        model: takes and gives floats, and computes in between what the integer C computes, bit for
            bit.
        scales: of each value that is held as int8, by the node that gives it: (scale, zero point),
            `x = scale * (q - zero)`.
        left_out: what of the network its output lacks, a sentence each.
        source: the floats that it was made of.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        >>> form = ez.quantize(model, activations=8, data=torch.randn(100, 3))
        >>> [node.op.kind for node in form.model.graph.nodes]
        ['input', 'quantize', 'integer_linear', 'dequantize']
    """

    model: Network
    scales: Mapping[str, tuple[float, int]]
    left_out: tuple[str, ...]
    source: Calibrated = field(repr=False)

    def finetune(
        self,
        data: Data,
        *,
        epochs: int = 5,
        learning_rate: float = 0.05,
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = True,
    ) -> Evaluation:
        """Train weights and biases under the roundings of the integers, which replace the old ones.

        The floats behind them are trained on the CPU, with fake quantization of weights, biases and
        values: gradients go through a rounding as if it were not there, but not through values
        outside of their range. Ranges stay as they are, and so do zeros of the integer weights.
        Batch normalizations are part of the layers, and the network is in evaluation mode
        throughout. Adam, at a rate that falls to 0 by a cosine. After each epoch the network is
        made anew of integers and judged as such; the best one by validation data is kept, or what
        was there before. The network that was quantized does not change; what was frozen in it is
        trained as well.

        Args:
            data: its train part trains, its validation part chooses the epoch.
            epochs: passes over the training data.
            learning_rate: in steps of int8: 0.05 moves a weight by about a twentieth of a step.
            batch_size: examples a step.
            seed: of the order of the examples.
            progress: show on standard error how far it is: a bar on a terminal, elsewhere a line
                every 30 seconds.

        Returns:
            Score and loss on validation data of what was kept; with the softmax, if one was left
            out at the end.

        Raises:
            InputError: a setting out of range; data that do not fit; a network of zeros.
            DivergenceError: the weights became NaN or infinite; the form is as it was.

        Example:
            >>> import torch, ellzero as ez
            >>> x = torch.eye(3)
            >>> data = ez.Data((x, torch.arange(3)), (x, torch.arange(3)))
            >>> form = ez.quantize(torch.nn.Linear(3, 3), activations=8, data=data)
            >>> before = ez.evaluate(form.model, data)
            >>> form.finetune(data, epochs=10, learning_rate=1.0).better_than(before)
            True

        Source:
            Jacob et al.: Quantization and Training of Neural Networks for Efficient
            Integer-Arithmetic-Only Inference, CVPR 2018, https://arxiv.org/abs/1712.05877
        """
        how = Tuning(epochs, learning_rate, batch_size, seed)
        fake = FakeNetwork(self.source)
        if all(layer.is_dead for layer in fake.layers):
            raise InputError("no weight can be trained: all are zero")
        before = self.source.ended(self.model)
        data.check_fit(before)

        def ended() -> tuple[Evaluation, tuple[Calibrated, Network]]:
            floats = fake.trained()
            integers = floats.integers()
            return evaluate(floats.ended(integers), data), (floats, integers)

        kept: list[tuple[Calibrated, Network]] = []
        trained = Trained(fake.network, fake.parameters, fake.rounded, "integers")
        start = evaluate(before, data)
        best = tune(
            trained, data, how, best=start, ended=ended, keep=kept.append, progress=progress
        )
        if kept:
            self.source, self.model = kept[-1]
            self.scales = self.source.held(self.model)
        return best


def integer_form(model: nn.Module, data: Data | Tensor, ranges: RangeMethod = "mse") -> IntegerForm:
    """What `quantize` gives with `activations=8`; it says more."""
    if ranges not in get_args(RangeMethod):
        raise InputError(f"ranges is {ranges!r}; expected 'mse', 'minmax' or 'percentile'")
    batches = list(_calibration(data))
    whole = trace(model, batches[0])
    if isinstance(data, Data):  # a traced network may know both already
        prepare, classes = whole.graph.preprocess or data.preprocess, whole.graph.classes
        whole = trace(whole, preprocess=prepare, classes=classes or data.classes)
    if any(is_integer(node.op) for node in whole.graph.nodes):
        raise InputError("the network is one of integers already; quantize the one it was made of")
    changed, network, left_out = _rewritten(whole)
    warn_if_dead(changed)
    seen = histograms(network, batches, network.shapes)
    held_in = {name: seen[name].range(ranges) for name in network.shapes}
    if doubt := doubts(network, seen, held_in):
        warn(doubt)
    softmax = changed.network.graph.nodes[-1].op if left_out else None
    source = Calibrated(network, held_in, softmax)
    integers = source.integers()
    return IntegerForm(integers, source.held(integers), tuple(left_out), source)


def require_integer_form(network: Network) -> None:
    """Refuse a traced network that has no integer form, before any data are looked at.

    Raises:
        InputError: what it is that has none.
    """
    _rewritten(network)


def _rewritten(whole: Network) -> tuple[Folded, Network, Sequence[str]]:
    """A network folded, then in operations that have an integer form, and what was left out."""
    _require_one(whole.graph)
    changed = folded(whole.cpu().float(), codebooks=False)
    network, left_out = rewritten(compacted_of(changed).model)
    if any(isinstance(node.op, Select) for node in network.graph.nodes):
        # of inputs, in front of what is no layer that could skip them, such as an activation
        network, left_out = rewritten(changed.network)
    require_form(network)
    return changed, network, left_out


def _require_one(graph: Graph) -> None:
    if graph.opaque:
        raise InputError(f"there is no integer form of {graph.opaque[0].named}")
    for what, names in (("inputs", list(graph.inputs)), ("outputs", graph.results)):
        if len(names) > 1:
            raise InputError(
                f"the network has {len(names)} {what} ({', '.join(names)}); one of integers has one"
            )
    name, first = next(iter(graph.inputs.items()))
    if first.is_integer:
        raise InputError(f"the input {name} is of tokens; there is no integer form of embeddings")


def _calibration(data: Data | Tensor) -> Iterator[Tensor]:
    """Batches of one input."""
    if isinstance(data, Data):
        left = CALIBRATION
        for inputs, _ in data.train.spread(left).batches(_BATCH, torch.device("cpu")):
            batch, *others = all_of(inputs)
            if others:
                raise InputError(f"the data have {1 + len(others)} inputs; one of integers has one")
            yield batch[:left] if batch.dtype in TOKENS else batch[:left].float()
            left -= len(batch)
            if left <= 0:
                return
    elif isinstance(data, Tensor) and data.ndim > 1 and len(data) and data.is_floating_point():
        yield from data.detach().cpu().float().split(_BATCH)
    else:
        kind = type(data).__name__
        if isinstance(data, Tensor):
            kind = f"{tuple(data.shape)} of {str(data.dtype).removeprefix('torch.')}"
        raise InputError(
            f"the calibration data are {kind}; expected an ez.Data, or a batch (N, ...) of inputs "
            "as the network takes them: floats, preprocessed if it was trained so"
        )
