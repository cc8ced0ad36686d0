"""From an exported program to a graph: each call becomes an operation that recognizes it."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from ellzero.errors import InputError
from ellzero.graph.graph import Graph, Node, free_name
from ellzero.operations import OPERATIONS, Input, Opaque, Operation
from ellzero.operations.call import (
    Call,
    ComputedWeightError,
    arguments_of,
    aten,
    example_shape,
    first_result,
    is_batch,
    path_of,
)
from ellzero.operations.operation import Recognized, Recognizer

IDENTITIES = {
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.dropout.default,
}
"""Calls whose result is their argument."""

VIEWS = {aten.view.default, aten._unsafe_view.default}
"""Calls that fail where the values do not lie as they expect."""


@dataclass(frozen=True)
class _Ref:
    """Stands in an opaque operation's arguments for an input (its index) or a weight (its role)."""

    key: int | str


class GraphBuilder:
    """One walk over an exported program."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.recognizers = _recognizers()
        self.nodes: dict[str, Node] = {}
        self.weights: dict[str, Tensor] = {}
        self.result: dict[Any, str] = {}  # fx node -> name of the node whose result it is
        self.lifted: dict[Any, str] = {}  # fx node -> name of the weight it stands for
        self.values: dict[Any, Tensor] = {}  # fx node -> that weight
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

    def graph(self) -> tuple[Graph, dict[str, Tensor]]:
        """The graph, its unused nodes left out, and its weights.

        Raises:
            InputError: an output that is no batch, does not depend on the input, or depends on
                what the network changes from call to call.
        """
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
        if not is_batch(output.meta.get("val")):
            raise InputError("the network's output is no tensor whose dimension 0 is the batch")
        graph = Graph(nodes=tuple(_needed(self.nodes, self.result[output])))
        return graph, {name: self.weights[name] for name in graph.weight_names()}

    def _output(self, fx_node: fx.Node) -> Any:
        """What the network gives; an exported program gives what it changes in place as well."""
        specs = self.program.graph_signature.output_specs
        values: Any = fx_node.args[0]
        (output,) = (
            value
            for value, spec in zip(values, specs, strict=True)
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

    def _placeholder(self, fx_node: fx.Node) -> None:
        if fx_node.name in self.keys:
            self.lifted[fx_node] = self.keys[fx_node.name]
            self.values[fx_node] = self.tensors[self.lifted[fx_node]]
        else:
            shape = example_shape(fx_node.meta.get("val"))
            self.result[fx_node] = self._add(Input(size=shape), [], {}, path_of(fx_node), fx_node)

    def _call(self, fx_node: fx.Node) -> None:
        if self._gives_argument(fx_node):
            self.result[fx_node] = self.result[fx_node.args[0]]
        elif not self._recognized(fx_node):
            self._opaque(fx_node)

    def _gives_argument(self, fx_node: fx.Node) -> bool:
        """Whether a call's result is its first argument, as far as the graph has it.

        Of a tuple that an operation gives, the graph has the first part alone.
        """
        if fx_node.target is not operator.getitem:
            return fx_node.target in IDENTITIES and fx_node.args[0] in self.result
        source, index = fx_node.args
        is_opaque = isinstance(self.nodes[self.result[source]].op, Opaque)
        return _gives_tuple(source) and not is_opaque and bool(index == 0)

    def _recognized(self, fx_node: fx.Node) -> bool:
        """Add what a call does to the nodes, if it can be said as data; whether it can."""
        if fx_node.target not in self.recognizers or not _has_one_result(fx_node):
            return False
        call = Call(fx_node, self.values)
        if not call.shape:
            return False
        for recognizer in self.recognizers[fx_node.target]:
            try:
                said = recognizer(call)
            except ComputedWeightError:
                continue
            if said is not None and self._fits(call, said):
                self.result[fx_node] = self._said(call, said)
                return True
        return False

    def _fits(self, call: Call, said: Recognized | fx.Node) -> bool:
        """Whether all is there that an operation works on: batches as large, weights as they are.

        What the network computes from weights alone is neither.
        """
        if isinstance(said, Recognized):
            weights = [w for w in said.weights.values() if w is not None]
            return all(self._fits(call, source) for source in said.inputs) and all(
                isinstance(weight, Tensor) or weight in self.lifted for weight in weights
            )
        if said not in self.result or not is_batch(first_result(said)):
            return False
        return first_result(said).shape[0] == first_result(call.fx_node).shape[0]

    def _said(self, call: Call, said: Recognized | fx.Node) -> str:
        """The name of the node that gives what was recognized."""
        if not isinstance(said, Recognized):
            return self.result[said]
        inputs = [self._said(call, source) for source in said.inputs]
        weights = {
            role: self._weight(weight, f"{call.path}.{role}")
            for role, weight in said.weights.items()
            if weight is not None
        }
        name = said.name or call.path
        return self._add(said.operation, inputs, weights, name, call.fx_node)

    def _opaque(self, fx_node: fx.Node) -> None:
        read: list[str] = []
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
            read.append(self.result[argument])
            return _Ref(len(read) - 1)

        arguments = map_arg((fx_node.args, fx_node.kwargs), stand_in)
        # a view of what a clone, left out as an identity, would have made contiguous
        target: Any = aten.reshape.default if fx_node.target in VIEWS else fx_node.target

        def call(inputs: Sequence[Any], given: Mapping[str, Tensor]) -> Any:
            values = {**dict(enumerate(inputs)), **given}
            args, kwargs = tree_map_only(_Ref, lambda ref: values[ref.key], arguments)
            return target(*args, **kwargs)

        shape = example_shape(fx_node.meta.get("val"))
        op = Opaque(target=str(fx_node.target), call=call, size=shape)
        self.result[fx_node] = self._add(op, read, weights, path_of(fx_node), fx_node)

    def _weight(self, weight: fx.Node | Tensor, new_name: str = "") -> str:
        """The name of a weight, which is now in use; a new tensor has none of its own yet."""
        if isinstance(weight, Tensor):
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
        name = free_name(fx_node.name if name in self.nodes else name, self.nodes)
        self.nodes[name] = Node(name=name, op=op, inputs=tuple(inputs), weights=dict(weights))
        return name


def is_plain(program: ExportedProgram) -> bool:
    """Whether every call is known by what it calls, and nothing is changed in place.

    What is not known may change a value, and so may what trains (a batch normalization).
    """
    known = {*_recognizers(), *IDENTITIES, aten.sym_size.int}
    return all(
        fx_node.target in known and not _changes(fx_node)
        for fx_node in program.graph_module.graph.nodes
        if fx_node.op == "call_function"
    )


def _changes(fx_node: Any) -> bool:
    """Whether a call changes one of its arguments in place."""
    arguments = arguments_of(fx_node)
    trains = arguments.get("train") or arguments.get("training")
    return bool(fx_node.target._schema.is_mutable or trains)


def _recognizers() -> Mapping[Any, list[Recognizer]]:
    """Who may recognize a call, by what it calls; operations registered last are asked first."""
    recognizers: dict[Any, list[Recognizer]] = defaultdict(list)
    for operation in reversed(OPERATIONS.values()):
        for target, recognizer in operation.recognizers().items():
            recognizers[target].append(recognizer)
    return recognizers


def _gives_tuple(fx_node: Any) -> bool:
    return isinstance(fx_node.meta.get("val"), tuple | list)


def _has_one_result(fx_node: fx.Node) -> bool:
    """Whether a call gives one tensor, or a tuple of which only the first part is used."""
    return not _gives_tuple(fx_node) or all(
        user.target is operator.getitem and (user.args[1] == 0 or not user.users)
        for user in fx_node.users
    )


def _sources(output: Any, lifted: Mapping[Any, str]) -> set[Any]:
    """The weights that a result is computed from."""
    seen, waiting = set(), [output] if isinstance(output, fx.Node) else []
    while waiting:
        fx_node = waiting.pop()
        if fx_node not in seen:
            seen.add(fx_node)
            waiting += fx_node.all_input_nodes
    return seen & set(lifted)


def _needed(nodes: Mapping[str, Node], output: str) -> list[Node]:
    wanted = {output}
    kept = []
    for node in reversed(list(nodes.values())):
        if node.name in wanted or isinstance(node.op, Input):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]
