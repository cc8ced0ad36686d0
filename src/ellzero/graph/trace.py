"""Tracing: from any network that `torch.export` understands to a graph of plain data."""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from ellzero.errors import InputError
from ellzero.graph import ops
from ellzero.graph.graph import Graph, Node
from ellzero.graph.network import Network
from ellzero.graph.recognize import (
    IDENTITIES,
    VIEWS,
    example_size,
    is_batch,
    path_of,
    recognized,
)
from ellzero.modules import device_of, evaluating
from ellzero.preprocess import Preprocess
from ellzero.tensors import require_held, require_plain

aten = torch.ops.aten

LARGEST_BATCH = 65_535
"""Up to this size a network is exported: a bound that kernels have (convolutions on CUDA)."""


def trace(
    model: nn.Module,
    example: Tensor | None = None,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
) -> Network:
    """See a network as layers: a copy of it whose architecture is plain data.

    The copy computes what the network computes in evaluation mode (dropout is gone, batch
    normalizations have become a scale and a shift) under the same state_dict keys. What cannot be
    said in the operations of `ellzero.graph.ops` is kept as an opaque node: it runs in memory.

    Args:
        model: a network that `torch.export` can trace, of one tensor in and one out, dimension 0
            of both the batch. One that was traced before is given back, with what is named below.
        example: a batch (N, ...), of any N; its values do not matter. Only the first call needs it.
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
    else:
        if example is None:
            raise InputError(f"{type(model).__name__} needs an example, a batch of its inputs")
        graph, weights = Tracer(model, example).graph()
    _require_real(graph, weights)
    changes = {
        "preprocess": graph.preprocess if preprocess is None else preprocess,
        "classes": graph.classes if names is None else names,
    }
    return Network(graph.model_copy(update=changes), _copies(weights)).eval()


def _texts(classes: Sequence[str]) -> tuple[str, ...]:
    names = () if isinstance(classes, str) else tuple(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"classes is {classes!r}; expected a list of names, each of them text")
    return names


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what torch wraps around it to compile or to share it out.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> unwrapped(nn.DataParallel(model)) is model
        True
    """
    from torch._dynamo.eval_frame import (
        OptimizedModule,  # slow to import; torch.export needs it too
    )
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while isinstance(model, OptimizedModule | DataParallel | DistributedDataParallel):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
        assert isinstance(model, nn.Module)
    return model


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
            if not isinstance(node.op, ops.Opaque) and not is_index:
                require_plain(name, weights[name])


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    copies = {}
    for name, tensor in weights.items():
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        is_parameter = isinstance(tensor, nn.Parameter)
        copies[name] = nn.Parameter(copy, tensor.requires_grad) if is_parameter else copy
    return copies


class _Ref:
    """Stands for a node's result or a weight in the arguments of an opaque operation."""

    def __init__(self, index: int, *, weight: str | None = None) -> None:
        self.index, self.weight = index, weight


class Tracer:
    """One walk over an exported program."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        model = unwrapped(model)
        if not isinstance(example, Tensor) or example.ndim < 2 or not len(example):
            what = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
            raise InputError(f"the example is {what}; expected a batch (N, ...) of inputs")
        require_dense(model)
        self.program = _export(model, example)
        self.nodes: dict[str, Node] = {}
        self.weights: dict[str, Tensor] = {}
        self.result: dict[Any, str] = {}  # fx node -> name of the node whose result it is
        self.lifted: dict[Any, str] = {}  # fx node -> name of the weight it stands for
        self.tensors = {**self.program.state_dict, **self.program.constants}
        first: dict[int, str] = {}  # a tied weight goes by its first name, as in named_parameters
        for name, tensor in self.tensors.items():
            first.setdefault(id(tensor), name)
        signature = self.program.graph_signature
        lifted = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.keys = {key: first[id(self.tensors[name])] for key, name in lifted.items()}
        self.changed = {
            first[id(self.tensors[spec.target])]
            for spec in signature.output_specs
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
        }
        """Weights that the network changes whenever it runs."""

    def graph(self) -> tuple[Graph, dict[str, Tensor]]:
        """The graph, its unused nodes left out, and its weights."""
        output = None
        for fx_node in self.program.graph_module.graph.nodes:
            if fx_node.op == "placeholder":
                self._placeholder(fx_node)
            elif fx_node.op == "call_function":
                self._call(fx_node)
            elif fx_node.op == "output":
                output = self._output(fx_node)
        if not isinstance(output, fx.Node) or output not in self.result:
            raise InputError("the network's output does not depend on its input")
        if not is_batch(output):
            raise InputError("the network's output is no tensor whose dimension 0 is the batch")
        nodes = _needed(self.nodes, self.result[output])
        graph = Graph(nodes=tuple(nodes))
        return graph, {name: self.weights[name] for name in graph.weight_names()}

    def _output(self, fx_node: Any) -> Any:
        """What the network gives; an exported program gives what it changes in place as well."""
        specs = self.program.graph_signature.output_specs
        (output,) = (
            value
            for value, spec in zip(fx_node.args[0], specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT
        )
        state = self.changed & {self.lifted[source] for source in _sources(output, self.lifted)}
        if state:
            raise InputError(
                f"the network changes {min(state)} in each call and its output depends on it, so "
                "what it gives depends on the calls before; a traced network has no such state. "
                "Keep it from changing in evaluation mode"
            )
        return output

    def _placeholder(self, fx_node: Any) -> None:
        if fx_node.name in self.keys:
            self.lifted[fx_node] = self.keys[fx_node.name]
        else:
            self.add(fx_node, ops.Input(size=example_size(fx_node)), ())

    def _call(self, fx_node: Any) -> None:
        if fx_node.target in IDENTITIES and fx_node.args[0] in self.result:
            self.result[fx_node] = self.result[fx_node.args[0]]
        elif fx_node.target is operator.getitem and self._first_of_affine(fx_node):
            pass
        elif not recognized(self, fx_node):
            self._opaque(fx_node)

    def _first_of_affine(self, fx_node: Any) -> bool:
        """A batch normalization gives a tuple, of which only the first part is its result."""
        source, index = fx_node.args
        name = self.result[source]
        if index != 0 or not isinstance(self.nodes[name].op, ops.Affine):
            return False
        self.result[fx_node] = name
        return True

    def _opaque(self, fx_node: Any) -> None:
        read: list[str] = []
        weights: dict[str, str] = {}

        def stand_in(argument: Any) -> Any:
            if argument in self.lifted:
                name = self.weight(argument)
                weights[name] = name
                return _Ref(-1, weight=name)
            read.append(self.result[argument])
            return _Ref(len(read) - 1)

        arguments = map_arg((fx_node.args, fx_node.kwargs), stand_in)
        # a view of what a clone, left out as an identity, would have made contiguous
        target = aten.reshape.default if fx_node.target in VIEWS else fx_node.target

        def call(inputs: Sequence[Any], given: Mapping[str, Tensor]) -> Any:
            def fill(value: Any) -> Any:
                if not isinstance(value, _Ref):
                    return value
                return inputs[value.index] if value.weight is None else given[value.weight]

            args, kwargs = tree_map(fill, arguments)
            return target(*args, **kwargs)

        op = ops.Opaque(target=str(fx_node.target), call=call, size=example_size(fx_node))
        self.add(fx_node, op, read, weights)

    def weight(self, fx_node: Any) -> str:
        """The name of a weight, which is now in use."""
        name = self.lifted[fx_node]
        self.weights[name] = self.tensors[name]
        return name

    def new_weight(self, name: str, tensor: Tensor) -> str:
        """The name of a weight that the network has under no name of its own."""
        while name in self.weights or name in self.tensors:
            name += "_"
        self.weights[name] = tensor
        return name

    def tensor(self, fx_node: Any) -> Tensor:
        """A weight's values."""
        return self.tensors[self.lifted[fx_node]]

    def named(self, roles: Mapping[str, Any]) -> dict[str, str]:
        """Weights by role; the roles that the network leaves out are left out."""
        return {role: self.weight(w) for role, w in roles.items() if w is not None}

    def add(
        self,
        fx_node: Any,
        op: ops.AnyOp,
        inputs: Sequence[str],
        weights: Mapping[str, str] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Add a node; its result is that of the call."""
        name = name or path_of(fx_node)
        if name in self.nodes:
            name = str(fx_node.name)
        while name in self.nodes:
            name += "_"
        node = Node(name=name, op=op, inputs=tuple(inputs), weights=dict(weights or {}))
        self.nodes[name] = node
        self.result[fx_node] = name


def _export(model: nn.Module, example: Tensor) -> Any:
    device = device_of(model)
    batch = example[:1].expand(2, *example.shape[1:]).contiguous().to(device)
    dynamic = {0: torch.export.Dim("batch", max=LARGEST_BATCH)}
    with evaluating(model), torch.no_grad(), quiet("torch", logging.CRITICAL):
        try:
            program = torch.export.export(model, (batch,), dynamic_shapes=(dynamic,))
            program = program.run_decompositions({})  # in-place operations become pure ones
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"{type(model).__name__} cannot be traced with inputs {tuple(example.shape)} of "
                f"any batch size: {reason[0]}"
            ) from error
    outputs = program.call_spec.out_spec
    if outputs is None or not outputs.is_leaf():
        what = "nothing" if outputs is None else f"a {outputs.type.__name__}"
        raise InputError(f"{type(model).__name__} gives {what}; expected one tensor")
    return program


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


def _sources(output: Any, lifted: Mapping[Any, str]) -> set[Any]:
    """The weights that a result is computed from."""
    found, waiting = set(), [output] if isinstance(output, fx.Node) else []
    while waiting:
        fx_node = waiting.pop()
        if fx_node not in found:
            found.add(fx_node)
            waiting += fx_node.all_input_nodes
    return found & set(lifted)


def _needed(nodes: Mapping[str, Node], output: str) -> list[Node]:
    wanted = {output}
    kept = []
    for node in reversed(list(nodes.values())):
        if node.name in wanted or isinstance(node.op, ops.Input):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]
