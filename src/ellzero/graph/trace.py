"""Tracing: from any network that `torch.export` understands to a graph of plain data."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from ellzero.errors import InputError
from ellzero.graph.builder import GraphBuilder, is_plain
from ellzero.graph.graph import Graph, Node
from ellzero.graph.network import Network
from ellzero.modules import device_of, evaluating, require_network, unwrapped
from ellzero.operations import Opaque
from ellzero.preprocess import Preprocess
from ellzero.tensors import Shape, require_held, require_plain
from ellzero.weights import Kind, named_weights

LARGEST_BATCH = 65_535
"""Up to this size a network is exported: a bound that kernels have (convolutions on CUDA)."""


Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""A batch of a network's input; of several inputs a list of batches, or a dictionary by name."""


def batches_of(example: Example) -> list[Tensor]:
    """The batches of an example, in order."""
    if isinstance(example, Tensor):
        return [example]
    return list(example.values() if isinstance(example, Mapping) else example)


def trace(
    model: nn.Module,
    example: Example | None = None,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
) -> Network:
    """See a network as layers: a copy of it whose architecture is plain data.

    The copy computes what the network computes in evaluation mode (dropout is gone, batch
    normalizations have become a scale and a shift) under the same state_dict keys. What cannot be
    said in the operations of `ellzero.operations` is kept as an opaque node: it runs in memory.

    Args:
        model: a network that `torch.export` can trace. It takes one tensor or several, and gives
            one, a tuple, a dictionary, or an object with tensors by name; dimension 0 of each is
            the batch. One that was traced before is given back, with what is named below.
        example: a batch (N, ...), of any N; of several inputs a list of them, or a dictionary by
            name. The values do not matter. Only the first call needs it.
        preprocess: what turns raw inputs into those of the network; it travels with the copy.
        classes: names of the classes; they travel with the copy.

    What the network changes in place, its input or a buffer, stays as it is in the copy: only the
    output is the same.

    A network that goes another way for some sizes of the batch is refused, but for a size of 1 (or
    more than 65,535): torch.export cannot see such a branch, and the copy goes the way of a larger
    batch.

    Raises:
        InputError: no example; a network that cannot be traced, or whose output depends on a buffer
            that it changes, call by call; weights on the meta device, sparse, or of numbers that
            are not real; preprocessing that is no `ez.Preprocess`, or for another number of
            channels; names that are no text.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten())
        >>> ez.trace(model, torch.zeros(1, 1, 5, 5)).shapes
        {'input': (1, 5, 5), '0': (4, 3, 3), '1': (36,)}
    """
    names = None if classes is None else _texts(classes)
    if not isinstance(preprocess, Preprocess | None):
        raise InputError(f"preprocess is {preprocess!r}; expected an ez.Preprocess, which is data")
    if isinstance(model, Network):
        require_dense(model)
        graph, weights = model.graph, {n: model.weight(n) for n in model.graph.weight_names()}
        kinds = model.weight_kinds()
    else:
        require_network(model)
        if example is None:
            raise InputError(f"{type(model).__name__} needs an example, a batch of its inputs")
        program = _exported(unwrapped(model), example)
        graph, weights = GraphBuilder(program, _output_names(model, program)).graph()
        named = [weight for _, weight in named_weights(unwrapped(model))]
        kinds: dict[str, Kind] = {w.name: w.kind for w in named if w.kind != "other"}
    _require_real(graph, weights)
    changes = {
        "preprocess": graph.preprocess if preprocess is None else preprocess,
        "classes": graph.classes if names is None else names,
    }
    return Network(graph.model_copy(update=changes), _copies(weights), kinds).eval()


def with_code(graph: Graph, model: nn.Module, weights: Mapping[str, Shape]) -> Graph:
    """A graph that a file holds, its opaque parts those of the network's code.

    Args:
        graph: where it has an opaque node, the file has its name alone.
        model: a network of the class that the graph was traced from; its weights do not matter.
        weights: shapes of the graph's.

    Raises:
        InputError: the network has no such part, or one that works on other shapes.
    """
    example = [op.zeros() for op in graph.inputs.values()]
    lender, shapes = trace(model, example), graph.shapes(weights)
    parts = {node.name: node for node in lender.graph.nodes}
    nodes = []
    for node in graph.nodes:
        if isinstance(node.op, Opaque):
            part = parts.get(node.name)
            wanted = node.op.target, node.op.size, [shapes[name] for name in node.inputs]
            if part is None or wanted != _code_of(part, lender):
                raise InputError(
                    f"{type(model).__name__} has no part {node.named}, which the file needs of it; "
                    "give a network of the class that it was made from"
                )
            node = node.model_copy(update={"op": part.op})
        nodes.append(node)
    return graph.model_copy(update={"nodes": tuple(nodes)})


def _code_of(node: Node, network: Network) -> object:
    """What an opaque node calls, and the shapes that it gives and reads; None of another one."""
    if not isinstance(node.op, Opaque):
        return None
    return node.op.target, node.op.size, [network.shapes[name] for name in node.inputs]


def _texts(classes: Sequence[str]) -> tuple[str, ...]:
    names = () if isinstance(classes, str) else tuple(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"classes is {classes!r}; expected a list of names, each of them text")
    return names


def require_dense(model: nn.Module) -> None:
    """Refuse a network with weights that have no values here, or that are sparse.

    Raises:
        InputError: a weight on the meta device, a DTensor or a sparse layout, by its name.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        require_held(name, tensor)
        if tensor.layout is not torch.strided:
            require_plain(name, tensor)


def _require_real(graph: Graph, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that an operation cannot compute with; indices are integers."""
    for node in graph.nodes:
        for name in node.weights.values():
            is_index = not (weights[name].is_floating_point() or weights[name].is_complex())
            if not isinstance(node.op, Opaque) and not is_index:
                require_plain(name, weights[name])


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    copies = {}
    for name, tensor in weights.items():
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        is_parameter = isinstance(tensor, nn.Parameter)
        copies[name] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
    return copies


def _exported(model: nn.Module, example: Example) -> ExportedProgram:
    named: dict[str, Tensor] = dict(example) if isinstance(example, Mapping) else {}
    inputs: list[Any]
    if isinstance(example, Tensor):
        inputs = [example]
    else:
        inputs = [] if named else list(example) if isinstance(example, Sequence) else [example]
    for value in (*inputs, *named.values()):
        if not isinstance(value, Tensor) or value.ndim < 2 - (len(inputs) + len(named) > 1):
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(f"the example is {what}; expected a batch (N, ...) of inputs")
        if not len(value):
            raise InputError(
                f"the example is {tuple(value.shape)}; expected a batch (N, ...) of inputs"
            )
    require_dense(model)
    device = device_of(model)
    batch = [_two_of(value, device) for value in inputs]
    keywords = {name: _two_of(value, device) for name, value in named.items()}
    dynamic = torch.export.ShapesCollection()
    for value in (*batch, *keywords.values()):
        dynamic[value] = {0: torch.export.Dim("batch", max=LARGEST_BATCH)}
    shown = ", ".join(str(tuple(value.shape)) for value in (*inputs, *named.values()))
    with evaluating(model), torch.no_grad(), quiet("torch", logging.CRITICAL):
        try:
            program = _export(model, tuple(batch), keywords, dynamic)
            if not is_plain(program):
                # operations that change things in place become others that do not; not done where
                # it is not needed, as it takes far longer than the export itself
                program = program.run_decompositions({})
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"{type(model).__name__} cannot be traced with inputs {shown} of any batch size: "
                f"{reason[0]}"
            ) from error
    return program


def _export(
    model: nn.Module, batch: tuple[Tensor, ...], keywords: dict[str, Tensor], dynamic: Any
) -> ExportedProgram:
    """The program that running the network shows, or else the one that reading its code shows.

    A run fixes the batch where the code needs a number of it, as `len(x)` gives. To read (`strict`)
    takes longer, and Python that the reader does not know is refused.
    """
    from torch._dynamo.exc import UserError  # slow to import; torch.export needs it too

    try:
        return torch.export.export(model, batch, keywords, dynamic_shapes=dynamic)
    except UserError as error:
        is_fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one call, which only running code avoids
        try:
            return torch.export.export(model, batch, keywords, dynamic_shapes=dynamic, strict=True)
        except Exception:
            raise error from None
        finally:
            torch.backends.mha.set_fastpath_enabled(is_fast)


def _two_of(value: Tensor, device: torch.device) -> Tensor:
    """A batch of two, for a batch of one is exported as one for good."""
    return value[:1].expand(2, *value.shape[1:]).contiguous().to(device)


def _output_names(model: nn.Module, program: ExportedProgram) -> list[str | None] | None:
    """Names of what a network gives, None for those of a tuple; None where it gives one tensor."""
    spec = program.call_spec.out_spec
    if spec is None:
        raise InputError(f"{type(model).__name__} gives nothing; expected tensors")
    outputs = tree_unflatten(range(spec.num_leaves), spec)
    if isinstance(outputs, int):
        return None
    if hasattr(outputs, "_asdict"):  # a named tuple
        outputs = outputs._asdict()
    elif is_dataclass(outputs) and not isinstance(outputs, Mapping):
        outputs = vars(outputs)
    names: list[str | None] = []
    if isinstance(outputs, Mapping):
        parts = {str(name): part for name, part in outputs.items() if part is not None}
        names.extend(parts)
        values = list(parts.values())
    else:
        values = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        names = [None] * len(values)
    if not values or not all(isinstance(value, int) for value in values):
        raise InputError(
            f"{type(model).__name__} gives a {type(outputs).__name__} of other things than "
            "tensors; expected a tensor, or a tuple or a dictionary of tensors"
        )
    return names


@contextmanager
def quiet(logger_name: str, level: int) -> Iterator[None]:
    """Without torch's warnings about its own future, and without its log below a level."""
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
