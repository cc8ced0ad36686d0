"""A network's architecture as plain data: nodes in the order they run, and back from JSON."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, ValidationError

from ellzero.errors import InputError
from ellzero.operations import (
    OPERATIONS,
    Input,
    Opaque,
    Operation,
    Reshape,
    how_to_register,
    is_registered,
    operation_of_kind,
)
from ellzero.preprocess import Preprocess
from ellzero.tensors import Shape

Name = Annotated[str, Field(min_length=1, max_length=1000)]


def free_name(name: str, taken: Container[str]) -> str:
    """The name, lengthened until it is another one's no more."""
    while name in taken:
        name += "_"
    return name


def _operation(table: Any) -> Operation:
    """The operation that a table's kind names, with the settings beside it."""
    if isinstance(table, Operation):
        return table
    kind = table.get("kind") if isinstance(table, dict) else None
    if kind == "opaque":
        return Opaque.model_validate(table)
    known = operation_of_kind(kind) if isinstance(kind, str) else None
    if known is None:
        raise ValueError(
            f"no operation is of the kind {str(kind)[:50]!r}; expected one of "
            f"{', '.join(OPERATIONS)}, or a registered one of your own"
        )
    return known.model_validate(table)


AnyOperation = Annotated[SerializeAsAny[Operation], BeforeValidator(_operation)]


class Node(BaseModel, frozen=True, extra="forbid"):
    """One step of a network: an operation, what it works on, and the names of its weights."""

    name: Name
    op: AnyOperation
    inputs: tuple[Name, ...] = ()
    weights: dict[str, Name] = {}
    """Role in the operation ("weight", "bias") -> name in the state_dict."""

    @property
    def named(self) -> str:
        """Its name, and what it does, for messages; of what is not known, where its call is."""
        op = self.op
        if not isinstance(op, Opaque):
            return f"{self.name} ({op.kind})"
        return f"{self.name} ({op.target}{f', {op.line}' if op.line else ''})"

    @property
    def layer_weights(self) -> dict[str, Name]:
        """By role, the weights that make it a layer, if it is one: they are pruned and counted."""
        return {role: self.weights[role] for role in self.op.REQUIRED} if self.op.LAYER else {}

    def reading(self, instead: Mapping[str, str]) -> Node:
        """The node with some of its inputs replaced."""
        return self.model_copy(update={"inputs": tuple(instead.get(n, n) for n in self.inputs)})


class Output(BaseModel, frozen=True, extra="forbid"):
    """One of a network's outputs: the node that gives it, and its name where it has one."""

    node: Name
    name: str | None = None


class Graph(BaseModel, frozen=True, extra="forbid"):
    """A network's architecture: its nodes, in an order in which they can run.

    The first nodes are the inputs. `outputs` says which nodes' results the network gives: a tuple
    of them, or where they have names a dictionary; where it is empty, the last one's alone. Weights
    are not in it, only their names. `preprocess` turns raw values into what the first input takes;
    it is not applied, it travels with the network, and so do the names of the classes.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...] = ()
    preprocess: Preprocess | None = None
    classes: tuple[str, ...] | None = None

    @property
    def inputs(self) -> dict[str, Input]:
        """The inputs by their names, in order."""
        return {node.name: node.op for node in self.nodes if isinstance(node.op, Input)}

    @property
    def input_shape(self) -> Shape:
        """Shape of one example of the first input."""
        op = self.nodes[0].op
        assert isinstance(op, Input)
        return op.size

    @property
    def results(self) -> tuple[Name, ...]:
        """The nodes whose results the network gives."""
        return tuple(output.node for output in self.outputs) or (self.nodes[-1].name,)

    @property
    def opaque(self) -> list[Node]:
        """The nodes that are no data: a file has their names alone, and C has none for them.

        Sizes of the batch are among them only where they alone are in the way.
        """
        unknown = [node for node in self.nodes if isinstance(node.op, Opaque)]
        return [n for n in unknown if isinstance(n.op, Opaque) and not n.op.is_size] or unknown

    def consumers(self) -> dict[str, list[Node]]:
        """Who reads each node's result, in order; once for each time it is read."""
        readers: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                readers[name].append(node)
        return readers

    def weight_names(self) -> Iterator[str]:
        """Names of the weights in order of use, each once."""
        yield from dict.fromkeys(n for node in self.nodes for n in node.weights.values())

    def shapes(self, weights: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shape of one example at every node, and with it whether all of the graph makes sense.

        Args:
            weights: shape of each weight, by its name.

        Raises:
            InputError: no nodes; a name twice; an input that comes later or nowhere; weights that
                are missing, left over, without elements, or of another shape than the operation
                takes; a node whose result nobody reads; an output that is no node, or has no name
                where others have one; preprocessing for another number of channels, or for tokens.
        """
        shapes: dict[str, Shape] = {}
        if not self.nodes or not isinstance(self.nodes[0].op, Input):
            raise InputError("the graph's first node is not an input")
        count = len(self.inputs)
        for node in self.nodes:
            if node.name in shapes:
                raise InputError(f"two nodes are named {node.name!r}")
            if isinstance(node.op, Input) and len(shapes) >= count:
                raise InputError(f"the input {node.name!r} comes after other nodes")
            self._check(node, shapes, weights)
            inputs = [shapes[name] for name in node.inputs]
            try:
                shapes[node.name] = node.op.shape(
                    inputs, {role: weights[name] for role, name in node.weights.items()}
                )
            except InputError as error:
                raise InputError(f"{node.name} ({node.op.kind}): {error}") from None
        if unused := set(weights) - set(self.weight_names()):
            raise InputError(f"no node uses the weight {min(unused)!r}")
        if missing := [name for name in self.results if name not in shapes]:
            raise InputError(f"the output {missing[0]!r} is no node")
        names = [output.name for output in self.outputs if output.name is not None]
        if names and (len(names) < len(self.outputs) or len(set(names)) < len(names)):
            raise InputError(f"the outputs are named {names}; expected a name for each, or none")
        # every result is of use: what runs a graph frees a value after its last reader; a network
        # may take inputs that it does not need, but not those alone
        inputs, readers = self.inputs, self.consumers()
        is_read = any(readers[name] or name in self.results for name in inputs)
        for name in readers:
            if not readers[name] and name not in self.results and not (is_read and name in inputs):
                raise InputError(f"nobody reads {name!r}, and it is no output")
        self._check_preprocess()
        return shapes

    def _check_preprocess(self) -> None:
        if self.preprocess is None:
            return
        name, first = next(iter(self.inputs.items()))
        if first.is_integer:
            raise InputError(f"there is preprocessing for {name!r}, which takes whole numbers")
        channels = next(iter(self.input_shape), 1)
        for role in ("scale", "shift"):
            value = getattr(self.preprocess, role)
            count = 1 if isinstance(value, int | float) else len(value)
            if count not in (1, channels):
                raise InputError(
                    f"the preprocessing has {count} values for {role}, the input {channels} "
                    "channels"
                )

    def _check(self, node: Node, known: Mapping[str, Shape], weights: Mapping[str, Shape]) -> None:
        op = node.op
        if op.ARITY is not None and len(node.inputs) != op.ARITY:
            raise InputError(f"{node.named} has {len(node.inputs)} inputs; expected {op.ARITY}")
        for name in node.inputs:
            if name not in known:
                raise InputError(f"{node.name} reads {name!r}, which is not before it")
            if not known[name] and not isinstance(op, Opaque | Reshape):
                raise InputError(f"{node.name} reads {name!r}, which is no tensor")
        for role, name in node.weights.items():
            if role not in (*op.REQUIRED, *op.OPTIONAL) and not isinstance(op, Opaque):
                raise InputError(f"{node.named} has a weight {role!r}")
            if name not in weights:
                raise InputError(f"{node.name}: there is no weight {name!r}")
            if 0 in weights[name] and not isinstance(op, Opaque):
                raise InputError(
                    f"{node.named}: its {role} {name!r} has the shape {weights[name]}, without "
                    "elements; leave the layer out"
                )
        for role in op.REQUIRED:
            if role not in node.weights:
                raise InputError(f"{node.named} lacks its {role}")

    def to_json(self) -> bytes:
        """The graph as compact JSON; defaults are left out, of opaque nodes what they call.

        Raises:
            InputError: an operation that is not in `OPERATIONS`, so that nothing could read it.
        """
        for node in self.nodes:
            if not is_registered(node.op) and not isinstance(node.op, Opaque):
                raise InputError(
                    f"{node.named} cannot be written as data{how_to_register(node.op)}"
                )
        return self.model_dump_json(exclude_defaults=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Graph:
        """The graph that `to_json` wrote; `shapes` says whether it makes sense.

        Raises:
            InputError: not JSON, or no graph.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"the architecture is no graph: {where}: {first['msg']}") from None
