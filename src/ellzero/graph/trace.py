"""Tracing: from any network that `torch.export` understands to a graph of plain data."""

from __future__ import annotations

import logging
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from ellzero.data.data import Affine as Preprocess
from ellzero.data.data import device_of, evaluating
from ellzero.errors import InputError
from ellzero.graph import ops
from ellzero.graph.graph import Graph, Node
from ellzero.graph.network import Network

aten = torch.ops.aten


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

    Raises:
        InputError: no example; a network that cannot be traced; preprocessing that is no
            `ez.Affine`, or for another number of channels; names that are no text.

    Example:
        >>> import torch, ellzero as ez
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten())
        >>> ez.trace(model, torch.zeros(1, 1, 5, 5)).shapes
        {'input': (1, 5, 5), '0': (4, 3, 3), '1': (36,)}
    """
    names = None if classes is None else _texts(classes)
    if not isinstance(preprocess, Preprocess | None):
        raise InputError(f"preprocess is {preprocess!r}; expected an ez.Affine, which is data")
    if isinstance(model, Network):
        graph, weights = model.graph, {n: model.weight(n) for n in model.graph.weight_names()}
    else:
        if example is None:
            raise InputError(f"{type(model).__name__} needs an example, a batch of its inputs")
        graph, weights = _Tracer(model, example).graph()
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


class _Tracer:
    """One walk over an exported program."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        model = _unwrapped(model)
        if not isinstance(example, Tensor) or example.ndim < 2 or not len(example):
            what = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
            raise InputError(f"the example is {what}; expected a batch (N, ...) of inputs")
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

    def graph(self) -> tuple[Graph, dict[str, Tensor]]:
        """The graph, its unused nodes left out, and its weights."""
        output = None
        for fx_node in self.program.graph_module.graph.nodes:
            if fx_node.op == "placeholder":
                self._placeholder(fx_node)
            elif fx_node.op == "call_function":
                self._call(fx_node)
            elif fx_node.op == "output":
                (output,) = fx_node.args[0]
        if not isinstance(output, fx.Node) or output not in self.result:
            raise InputError("the network's output does not depend on its input")
        if not _is_batch(output):
            raise InputError("the network's output is no tensor whose dimension 0 is the batch")
        nodes = _needed(self.nodes, self.result[output])
        graph = Graph(nodes=tuple(nodes))
        return graph, {name: self.weights[name] for name in graph.weight_names()}

    def _placeholder(self, fx_node: Any) -> None:
        if fx_node.name in self.keys:
            self.lifted[fx_node] = self.keys[fx_node.name]
        else:
            self.add(fx_node, ops.Input(size=_size(fx_node)), ())

    def _call(self, fx_node: Any) -> None:
        if fx_node.target in IDENTITIES and fx_node.args[0] in self.result:
            self.result[fx_node] = self.result[fx_node.args[0]]
        elif fx_node.target is operator.getitem and self._first_of_affine(fx_node):
            pass
        elif not _recognized(self, fx_node):
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

        op = ops.Opaque(target=str(fx_node.target), call=call, size=_size(fx_node))
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


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what torch wraps around it to compile or to share it out."""
    from torch._dynamo.eval_frame import (
        OptimizedModule,  # slow to import; torch.export needs it too
    )

    while isinstance(model, OptimizedModule | nn.DataParallel):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
        assert isinstance(model, nn.Module)
    return model


def _export(model: nn.Module, example: Tensor) -> Any:
    device = device_of(model)
    batch = example[:1].expand(2, *example.shape[1:]).contiguous().to(device)
    dynamic = {0: torch.export.Dim("batch")}
    with evaluating(model), torch.no_grad(), _quiet():
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
def _quiet() -> Iterator[None]:
    """Without torch's warnings about its own future, and its log of what it could not trace."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _needed(nodes: Mapping[str, Node], output: str) -> list[Node]:
    wanted = {output}
    kept = []
    for node in reversed(list(nodes.values())):
        if node.name in wanted or isinstance(node.op, ops.Input):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def path_of(fx_node: Any) -> str:
    """The module that an operation belongs to, or else the operation's own name."""
    stack = list((fx_node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path if path and not path.startswith("_empty") else fx_node.name


def _is_batch(fx_node: Any) -> bool:
    value = fx_node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 0 and not isinstance(value.shape[0], int)


def _size(fx_node: Any) -> ops.Shape:
    """Shape of one example of a tensor, nothing for what is none or has no batch."""
    if not _is_batch(fx_node):
        return ()
    size = fx_node.meta["val"].shape[1:]
    return tuple(size) if all(isinstance(n, int) for n in size) else ()


# A recognizer sees a call of one aten operation, and adds nodes if it can say it as data.

IDENTITIES = {
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.dropout.default,
}

VIEWS = {aten.view.default, aten._unsafe_view.default}

BATCH_NORM = aten._native_batch_norm_legit_no_training.default
WEIGHT_ROLES = ("weight", "bias", "running_mean", "running_var")


def _recognized(tracer: _Tracer, fx_node: Any) -> bool:
    recognize = RECOGNIZERS.get(fx_node.target)
    if recognize is None:
        return False
    arguments = _bound(fx_node)
    if arguments.get("self", arguments.get("input")) not in tracer.result:
        return False  # an operation on weights alone
    if not _size(fx_node) and fx_node.target is not BATCH_NORM:  # which gives a tuple
        return False
    weights = [arguments[role] for role in WEIGHT_ROLES if arguments.get(role) is not None]
    if not all(weight in tracer.lifted for weight in weights):
        return False  # they are computed
    return recognize(tracer, fx_node, arguments)


def _bound(fx_node: Any) -> dict[str, Any]:
    """A call's arguments by their names in the operation's schema, defaults filled in."""
    found = {}
    for index, argument in enumerate(fx_node.target._schema.arguments):
        given = fx_node.args[index] if index < len(fx_node.args) else argument.default_value
        found[argument.name] = fx_node.kwargs.get(argument.name, given)
    return found


def _linear(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    if len(_size(fx_node)) != 1:
        return False
    weights = tracer.named({"weight": a["weight"], "bias": a["bias"]})
    tracer.add(fx_node, ops.Linear(), [tracer.result[a["input"]]], weights)
    return True


def _conv(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    if len(_size(fx_node)) != 3:
        return False
    stride, dilation = _pair(a["stride"]), _pair(a["dilation"])
    if isinstance(a["padding"], str):
        kernel = tracer.tensor(a["weight"]).shape[2:]
        total = [
            d * (k - 1) if a["padding"] == "same" else 0
            for d, k in zip(dilation, kernel, strict=True)
        ]
        if any(n % 2 for n in total):
            return False  # an even kernel: more padding on one side
        padding = (total[0] // 2, total[1] // 2)
    else:
        padding = _pair(a["padding"])
    op = ops.Conv(stride=stride, padding=padding, dilation=dilation, groups=a["groups"])
    weights = tracer.named({"weight": a["weight"], "bias": a["bias"]})
    tracer.add(fx_node, op, [tracer.result[a["input"]]], weights)
    return True


def _batch_norm(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    mean, variance = (tracer.tensor(a[key]).double() for key in ("running_mean", "running_var"))
    # y = (x - mean) / sqrt(variance + eps) * weight + bias
    scale = torch.rsqrt(variance + a["eps"])
    if a["weight"] is not None:
        scale = scale * tracer.tensor(a["weight"]).double()
    shift = -mean * scale
    if a["bias"] is not None:
        shift = shift + tracer.tensor(a["bias"]).double()
    dtype = tracer.tensor(a["running_mean"]).dtype
    prefix = path_of(fx_node)
    names = {
        "scale": tracer.new_weight(f"{prefix}.scale", scale.to(dtype)),
        "shift": tracer.new_weight(f"{prefix}.shift", shift.to(dtype)),
    }
    tracer.add(fx_node, ops.Affine(), [tracer.result[a["input"]]], names)
    return True


def _activation(function: str, *roles: str) -> Callable[[_Tracer, Any, dict[str, Any]], bool]:
    def recognize(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
        parameters = tuple(a[role] for role in roles)
        if function == "clamp" and parameters == (0, None):
            return _activation("relu")(tracer, fx_node, a)
        if any(not isinstance(p, int | float) or not math.isfinite(p) for p in parameters):
            return False
        if function == "clamp" and parameters[0] > parameters[1]:
            return False
        if function == "elu" and (a["scale"], a["input_scale"]) != (1, 1):
            return False  # SELU
        if function == "gelu" and a["approximate"] != "none":
            return False
        op = ops.Activation(function=function, parameters=parameters)  # pyright: ignore[reportArgumentType]
        tracer.add(fx_node, op, [tracer.result[a["self"]]])
        return True

    return recognize


def _relu6(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    op = ops.Activation(function="clamp", parameters=(0.0, 6.0))
    tracer.add(fx_node, op, [tracer.result[a["self"]]])
    return True


def _prelu(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    slope, channels = tracer.tensor(a["weight"]), _size(fx_node)[0]
    if slope.numel() == channels:
        name = tracer.weight(a["weight"])
    else:  # one slope for all channels
        name = tracer.new_weight(f"{path_of(fx_node)}.slope", slope.detach().expand(channels))
    tracer.add(fx_node, ops.PReLU(), [tracer.result[a["self"]]], {"slope": name})
    return True


def _max_pool(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    op = ops.Pool(
        function="max",
        kernel=_pair(a["kernel_size"]),
        stride=_pair(a["stride"] or a["kernel_size"]),
        padding=_pair(a["padding"]),
        dilation=_pair(a["dilation"]),
        ceil=a["ceil_mode"],
    )
    return _pool(tracer, fx_node, a, op)


def _average_pool(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    if a["divisor_override"] is not None:
        return False
    op = ops.Pool(
        function="average",
        kernel=_pair(a["kernel_size"]),
        stride=_pair(a["stride"] or a["kernel_size"]),
        padding=_pair(a["padding"]),
        ceil=a["ceil_mode"],
        count_padding=a["count_include_pad"],
    )
    return _pool(tracer, fx_node, a, op)


def _adaptive_average(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    size, out = _size(a["self"])[1:], _size(fx_node)[1:]
    if len(out) != 2 or any(n % m for n, m in zip(size, out, strict=True)):
        return False  # windows of unequal size
    kernel = (size[0] // out[0], size[1] // out[1])
    return _pool(tracer, fx_node, a, ops.Pool(function="average", kernel=kernel, stride=kernel))


def _mean(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    size = _size(a["self"])
    if len(size) != 3 or sorted(d % 4 for d in a["dim"] or ()) != [2, 3] or a["dtype"]:
        return False
    _pool(tracer, fx_node, a, ops.Pool(function="average", kernel=size[1:], stride=size[1:]))
    if not a["keepdim"]:
        tracer.add(fx_node, ops.Flatten(), [tracer.result[fx_node]], name=f"{fx_node.name}_flat")
    return True


def _pool(tracer: _Tracer, fx_node: Any, a: dict[str, Any], op: ops.Pool) -> bool:
    if len(_size(a["self"])) != 3:
        return False
    tracer.add(fx_node, op, [tracer.result[a["self"]]])
    return True


def _flatten(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    before, after = _size(a["self"]), _size(fx_node)
    source, result = a["self"].meta["val"], fx_node.meta["val"]
    if not before or not after or source.shape[0] != result.shape[0]:
        return False
    if before == after:
        tracer.result[fx_node] = tracer.result[a["self"]]
        return True
    if len(after) != 1:
        return False
    tracer.add(fx_node, ops.Flatten(), [tracer.result[a["self"]]])
    return True


def _add(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    other = a["other"]
    if a["alpha"] != 1 or other not in tracer.result or _size(other) != _size(a["self"]):
        return False
    if not _size(other):
        return False
    tracer.add(fx_node, ops.Add(), [tracer.result[a["self"]], tracer.result[other]])
    return True


def _softmax(tracer: _Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    if a["dim"] % a["self"].meta["val"].ndim != 1 or a["dtype"] is not None:
        return False
    op = ops.Softmax(log=fx_node.target is aten.log_softmax.int)
    tracer.add(fx_node, op, [tracer.result[a["self"]]])
    return True


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


RECOGNIZERS: dict[Any, Callable[[_Tracer, Any, dict[str, Any]], bool]] = {
    aten.linear.default: _linear,
    aten.conv2d.default: _conv,
    aten.conv2d.padding: _conv,
    BATCH_NORM: _batch_norm,
    aten.relu.default: _activation("relu"),
    aten.relu6.default: _relu6,
    aten.leaky_relu.default: _activation("leaky_relu", "negative_slope"),
    aten.hardtanh.default: _activation("clamp", "min_val", "max_val"),
    aten.clamp.default: _activation("clamp", "min", "max"),
    aten.elu.default: _activation("elu", "alpha"),
    aten.sigmoid.default: _activation("sigmoid"),
    aten.tanh.default: _activation("tanh"),
    aten.silu.default: _activation("silu"),
    aten.gelu.default: _activation("gelu"),
    aten.hardswish.default: _activation("hardswish"),
    aten.hardsigmoid.default: _activation("hardsigmoid"),
    aten.prelu.default: _prelu,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
    aten.mean.dim: _mean,
    aten.flatten.using_ints: _flatten,
    aten.view.default: _flatten,
    aten.reshape.default: _flatten,
    aten._unsafe_view.default: _flatten,
    aten.squeeze.default: _flatten,
    aten.squeeze.dim: _flatten,
    aten.squeeze.dims: _flatten,
    aten.add.Tensor: _add,
    aten.softmax.int: _softmax,
    aten.log_softmax.int: _softmax,
}
