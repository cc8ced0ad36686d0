"""From an exported program to a graph: each call becomes an operation that recognizes it."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from ellzero.errors import InputError
from ellzero.graph.constants import computed_of, constant_of
from ellzero.graph.graph import Graph, Node, Output, free_name
from ellzero.graph.recognition import Recognition
from ellzero.operations import Constant, Input, Opaque, Operation, Reshape
from ellzero.operations.call import (
    Values,
    arguments_of,
    aten,
    path_of,
    result_of,
)
from ellzero.operations.cast import CASTS
from ellzero.operations.layout import Layout, times
from ellzero.operations.operation import Recognized
from ellzero.tensors import Shape

IDENTITIES = {
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.lift_fresh_copy.default,
}
"""Calls whose result is their argument."""

VIEWS = {aten.view.default, aten._unsafe_view.default}
"""Calls that fail where the values do not lie as they expect."""


@dataclass(frozen=True)
class _Ref:
    """Stands in an opaque operation's arguments for an input (its index) or a weight (its role)."""

    key: int | str


class GraphBuilder:
    """One walk over an exported program.

    Args:
        program: it is not changed.
        outputs: names of what the network gives, in order, None for what has none; None where it
            gives one tensor.
    """

    def __init__(
        self, program: ExportedProgram, outputs: Sequence[str | None] | None = None
    ) -> None:
        self.program, self.outputs = program, outputs
        self.nodes: dict[str, Node] = {}
        self.shapes: dict[str, Shape] = {}  # of one example at each of them
        self.weights: dict[str, Tensor] = {}
        self.constants = {""}  # names of the nodes that depend on no input; of none, too
        self.result: dict[Any, str] = {}  # fx node -> name of the node whose result it is
        self.lifted: dict[Any, str] = {}  # fx node -> name of the weight it stands for
        self.values = Values()
        self.recognition = Recognition(self.values)
        self._raw: dict[Any, str] = {}  # fx node -> an opaque one, of what no input changes
        self._shared: dict[Any, str] = {}  # what is computed -> the node that computes it
        self.tensors: dict[str, Any] = {**program.state_dict, **program.constants}
        # a tied weight goes by its first name, as in named_parameters
        first = {id(tensor): name for name, tensor in reversed(self.tensors.items())}
        signature = program.graph_signature
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
            and spec.target is not None
        }
        """Weights that the network changes whenever it runs."""
        self._literals = {
            *signature.inputs_to_lifted_tensor_constants,
            *(
                key
                for key, name in signature.inputs_to_buffers.items()
                if name in signature.non_persistent_buffers
            ),
        }
        """Tensors that are no part of the state_dict, so that nothing but the code has them."""

    def graph(self) -> tuple[Graph, dict[str, Tensor]]:
        """The graph, its unused nodes left out, and its weights.

        Raises:
            InputError: an output that is no batch, does not depend on the input, or depends on
                what the network changes from call to call.
        """
        results: list[fx.Node] = []
        for fx_node in self.program.graph_module.graph.nodes:
            if fx_node.op == "placeholder":
                self._placeholder(fx_node)
            elif fx_node.op == "call_function":
                self._call(fx_node)
            elif fx_node.op == "output":
                results = list(self._results(fx_node))
        names = [self._given(fx_node) for fx_node in results]
        nodes = tuple(_needed(self.nodes, names))
        outputs = [
            Output(node=node, name=name)
            for node, name in zip(names, self.outputs or (), strict=self.outputs is not None)
        ]
        graph = Graph(nodes=nodes, outputs=tuple(outputs))
        return graph, {name: self.weights[name] for name in graph.weight_names()}

    def _results(self, fx_node: fx.Node) -> Iterator[fx.Node]:
        """What the network gives; an exported program gives what it changes in place as well."""
        specs = self.program.graph_signature.output_specs
        values: Any = fx_node.args[0]
        for value, spec in zip(values, specs, strict=True):
            if spec.kind is OutputKind.USER_OUTPUT:
                yield self._checked(value)

    def _checked(self, output: Any) -> fx.Node:
        """An output of the network that a graph can give."""
        state = self.changed & {self.lifted[source] for source in _sources(output, self.lifted)}
        if state:
            raise InputError(
                f"the network changes {min(state)} in each call and its output depends on it, so "
                "what it gives depends on the calls before; a traced network has no such state. "
                "Keep it from changing in evaluation mode"
            )
        if not isinstance(output, fx.Node) or self.result.get(output, "") in self.constants:
            raise InputError("the network's output does not depend on its input")
        layout = self.values.layouts.get(output)
        if layout is None or not (layout.is_single or layout.dims[0] == (None,)):
            raise InputError("the network's output is no tensor whose dimension 0 is the batch")
        return output

    def _given(self, output: fx.Node) -> str:
        """The node that gives an output; one value an example loses its axis."""
        name = self.result[output]
        if not self.values.layouts[output].is_single or not self.shapes[name]:
            return name
        return self._add(Reshape(size=()), [name], {}, f"{output.name}_single", output)

    def _placeholder(self, fx_node: fx.Node) -> None:
        if fx_node.name in self.keys:
            name = self.keys[fx_node.name]
            self.lifted[fx_node] = name
            tensor = self.tensors[name]
            self.values.weights[fx_node] = tensor
            self.values.layouts[fx_node] = Layout.of_weight(tuple(tensor.shape))
            if name not in self.changed and (fx_node.name in self._literals or _is_index(tensor)):
                self.values.constants[fx_node] = tensor
        elif isinstance(value := fx_node.meta.get("val"), Tensor):
            self.values.batch = value.shape[0] if self.values.batch is None else self.values.batch
            layout = Layout.plain(tuple(value.shape[1:]))
            op = Input(size=tuple(value.shape[1:]), dtype=Input.dtype_of(value.dtype))
            name = self._add(op, [], {}, path_of(fx_node), fx_node)
            if layout.is_single:
                name = self._add(Reshape(size=layout.shape), [name], {}, f"{name}_axis", fx_node)
            self.result[fx_node] = name
            self.values.layouts[fx_node] = layout

    def _call(self, fx_node: fx.Node) -> None:
        if fx_node.target is operator.getitem:
            self._part(fx_node)
        elif _gives_argument(fx_node):
            self._same(fx_node, fx_node.args[0])
        elif isinstance(fx_node.meta.get("val"), tuple | list):
            pass  # its parts are asked for one by one
        elif not self._is_constant(fx_node) and not self._recognized(fx_node, fx_node, 0):
            self._unknown(fx_node)

    def _part(self, fx_node: fx.Node) -> None:
        """A part of the tuple that a call gives."""
        arguments: Any = fx_node.args
        source, index = arguments
        if source in self.result or not self._recognized(fx_node, source, index):
            if source not in self.result:
                self.result[source] = self._opaque(source, layout=None)
            self._unknown(fx_node)

    def _same(self, fx_node: fx.Node, source: Any) -> None:
        """A call that gives what it is given."""
        known: dict[Any, Any]
        for known in (self.result, self.lifted, self.values.weights, self.values.constants):
            if source in known:
                known[fx_node] = known[source]
        if source in self.values.layouts:
            self.values.layouts[fx_node] = self.values.layouts[source]

    def _is_constant(self, fx_node: fx.Node) -> bool:
        """Whether no input changes a call's result, so that no node computes it."""
        computed = computed_of(fx_node, self.values)
        if computed is None:
            return False
        constant = constant_of(fx_node, computed, self.values.batch)
        if constant is None:
            self.values.counted[fx_node] = computed
        else:
            self.values.constants[fx_node], self.values.layouts[fx_node] = constant
        return True

    def _recognized(self, fx_node: fx.Node, source: fx.Node, part: int) -> bool:
        """Add what a call does to the nodes, if it can be said as data; whether it can."""
        known = self.recognition.of(source, part)
        if known is None:
            return False
        said, self.values.layouts[fx_node] = known
        self.result[fx_node] = self._said(said, path_of(source), fx_node)
        return True

    def _said(self, said: Recognized | fx.Node, path: str, fx_node: fx.Node) -> str:
        """The name of the node that gives what was recognized.

        Args:
            said: what it is.
            path: of the module that calls it, by which it goes.
            fx_node: by which it goes where that name is taken.
        """
        if not isinstance(said, Recognized):
            return self._read(said)
        inputs = [self._said(source, path, fx_node) for source in said.inputs]
        if said.operation is None:
            return inputs[0]
        weights = {
            role: self._weight(weight, f"{path}.{role}")
            for role, weight in said.weights.items()
            if weight is not None
        }
        key = (said.operation, *inputs, *weights.items())
        if key not in self._shared:
            name = said.name or path
            self._shared[key] = self._add(said.operation, inputs, weights, name, fx_node)
        return self._shared[key]

    def _read(self, source: fx.Node) -> str:
        """The node that gives a value to an operation; a weight or a constant becomes one."""
        if source in self.result:
            return self.result[source]
        if source not in self._shared:
            is_weight = source in self.lifted
            tensor = source if is_weight else self.values.constants[source]
            name = self.lifted.get(source, source.name)
            weights = {"value": self._weight(tensor, name)}
            self._shared[source] = self._add(Constant(), [], weights, name, source)
        return self._shared[source]

    def _traced(self, argument: Any) -> tuple[str, Layout | None]:
        """The node of a value for an opaque one, and how the value lies in the network's code.

        Of what no input changes, a graph has one example; the code has it for the batch's size.
        """
        if argument in self.result and self.result[argument] not in self.constants:
            return self.result[argument], self.values.layouts.get(argument)
        if argument not in self._raw:
            self._raw[argument] = self._opaque(argument, layout=None)
        return self._raw[argument], None

    def _unknown(self, fx_node: fx.Node) -> None:
        """Add what is not known; others may read it where its batch is one dimension."""
        layout = self._layout_of_opaque(fx_node)
        self.result[fx_node] = self._opaque(fx_node, layout)
        if layout is not None:
            self.values.layouts[fx_node] = layout

    def _opaque(self, fx_node: fx.Node, layout: Layout | None) -> str:
        """Add a node that calls what the network's code calls; its name.

        Its result has the batch first where a layout says where it lies.
        """
        read: list[str] = []
        layouts: list[Layout | None] = []
        weights: dict[str, str] = {}

        def stand_in(argument: Any) -> Any:
            if argument in self.lifted:
                name = self._weight(argument)
                weights[name] = name
                return _Ref(name)
            if argument.op == "get_attr":
                raise InputError(
                    f"the network calls {fx_node.target}, which takes a part of the network as an "
                    "argument and cannot be traced"
                )
            name, layout = self._traced(argument)
            read.append(name)
            layouts.append(layout)
            return _Ref(len(read) - 1)

        arguments = map_arg((fx_node.args, fx_node.kwargs), stand_in)
        # a view of what a clone, left out as an identity, would have made contiguous
        target: Any = aten.reshape.default if fx_node.target in VIEWS else fx_node.target
        batch = 0 if layout is None or layout.is_single else layout.dims.index((None,))

        def call(inputs: Sequence[Any], given: Mapping[str, Tensor]) -> Any:
            traced = [
                value if layout is None else layout.restored(value)
                for value, layout in zip(inputs, layouts, strict=True)
            ]
            values = {**dict(enumerate(traced)), **given}
            args, kwargs = tree_map_only(_Ref, lambda ref: values[ref.key], arguments)
            result = target(*args, **kwargs)
            if layout is not None and layout.is_single:
                return result.unsqueeze(1)
            return result.movedim(batch, 0) if batch else result

        op = Opaque(
            target=str(fx_node.target),
            call=call,
            size=() if layout is None else layout.shape,
            line=_line(fx_node),
            is_size=isinstance(fx_node.meta.get("val"), torch.SymInt),
        )
        return self._add(op, read, weights, path_of(fx_node), fx_node)

    def _layout_of_opaque(self, fx_node: fx.Node) -> Layout | None:
        """How the batch lies in what is not known: one dimension, or it is no batch."""
        value = fx_node.meta.get("val")
        if not isinstance(value, Tensor):
            return None
        dims = [
            (size if isinstance(size, int) else None,)
            for size in value.shape
            if isinstance(size, int) or times(size, self.values.batch) == 1
        ]
        layout = Layout(tuple(dims))
        return layout if len(dims) == value.ndim and dims.count((None,)) == 1 else None

    def _weight(self, weight: fx.Node | Tensor, new_name: str = "") -> str:
        """The name of a weight, which is now in use; a new tensor has none of its own yet."""
        if isinstance(weight, Tensor):
            if hasattr(torch.nn.Module, new_name.split(".")[0]):  # a call such as "to"
                new_name = f"_{new_name}"
            name = free_name(new_name, {**self.weights, **self.tensors})
            self.weights[name] = weight
        else:
            name = self.lifted[weight]
            self.weights[name] = self.tensors[name]
        return name

    def _add(
        self,
        op: Operation,
        inputs: Sequence[str],
        weights: Mapping[str, str],
        name: str,
        fx_node: fx.Node,
    ) -> str:
        """Add a node; its name, which is another one where that is taken."""
        if isinstance(op, Reshape):  # of several in a row the last one says it all
            (source,) = inputs
            while isinstance(self.nodes[source].op, Reshape):
                (source,) = self.nodes[source].inputs
            if self.shapes[source] == op.size:
                return source
            inputs = [source]
        name = free_name(fx_node.name if name in self.nodes else name, self.nodes)
        self.nodes[name] = Node(name=name, op=op, inputs=tuple(inputs), weights=dict(weights))
        sizes = {role: tuple(self.weights[weight].shape) for role, weight in weights.items()}
        self.shapes[name] = op.shape([self.shapes[source] for source in inputs], sizes)
        if not isinstance(op, Input | Opaque) and self.constants.issuperset(inputs):
            self.constants.add(name)
        return name


def _is_index(tensor: Tensor) -> bool:
    """Whether a tensor is no weight to compute with: indices, or a mask with infinities."""
    if isinstance(tensor, torch.nn.Parameter) or tensor.is_complex():
        return False
    return not (tensor.is_floating_point() and bool(tensor.isfinite().all()))


def _gives_argument(fx_node: Any) -> bool:
    """Whether a call's result is its first argument."""
    if fx_node.target in CASTS:
        return result_of(fx_node.args[0]).dtype == result_of(fx_node).dtype
    return fx_node.target in IDENTITIES


def _line(fx_node: fx.Node) -> str:
    """Where in the network's code a call is, such as "model.py:42"; empty where it is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', fx_node.meta.get("stack_trace") or "")
    of_network = [frame for frame in frames if not Path(frame[0]).is_relative_to(_TORCH)]
    return f"{Path(of_network[-1][0]).name}:{of_network[-1][1]}" if of_network else ""


_TORCH = Path(torch.__file__).parent


def is_plain(program: ExportedProgram) -> bool:
    """Whether nothing is changed in place, as far as the schemas of what is called say."""
    return not any(
        _may_change(fx_node)
        for fx_node in program.graph_module.graph.nodes
        if fx_node.op == "call_function"
    )


def _may_change(fx_node: Any) -> bool:
    """Whether a call may change one of its arguments in place."""
    if not isinstance(fx_node.target, torch._ops.OpOverload):
        return fx_node.target is not operator.getitem and isinstance(
            fx_node.target, torch._ops.HigherOrderOperator
        )
    arguments = arguments_of(fx_node)
    trains = arguments.get("train") or arguments.get("training")
    return bool(fx_node.target._schema.is_mutable or trains)


def _sources(output: Any, lifted: Mapping[Any, str]) -> set[Any]:
    """The weights that a result is computed from."""
    seen, waiting = set(), [output] if isinstance(output, fx.Node) else []
    while waiting:
        fx_node = waiting.pop()
        if fx_node not in seen:
            seen.add(fx_node)
            waiting += fx_node.all_input_nodes
    return seen & set(lifted)


def _needed(nodes: Mapping[str, Node], outputs: Sequence[str]) -> list[Node]:
    wanted = set(outputs)
    kept = []
    for node in reversed(list(nodes.values())):
        if node.name in wanted or isinstance(node.op, Input):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]
