"""Recognizers: what each call of an aten operation is, said in the operations of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ellzero.graph import ops

if TYPE_CHECKING:
    from ellzero.graph.trace import Tracer

aten = torch.ops.aten


def path_of(fx_node: Any) -> str:
    """The module that an operation belongs to, or else the operation's own name."""
    stack = list((fx_node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path if path and not path.startswith("_empty") else fx_node.name


def is_batch(fx_node: Any) -> bool:
    """Whether a call's result is a tensor whose dimension 0 is the batch."""
    value = fx_node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 0 and not isinstance(value.shape[0], int)


def example_size(fx_node: Any) -> ops.Shape:
    """Shape of one example of a tensor, nothing for what is none or has no batch."""
    if not is_batch(fx_node):
        return ()
    size = fx_node.meta["val"].shape[1:]
    return tuple(size) if all(isinstance(n, int) for n in size) else ()


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

BATCH_NORM = aten._native_batch_norm_legit_no_training.default
WEIGHT_ROLES = ("weight", "bias", "running_mean", "running_var")


def recognized(tracer: Tracer, fx_node: Any) -> bool:
    """Add what a call does to the tracer's nodes, if it can be said as data; whether it can."""
    recognize = RECOGNIZERS.get(fx_node.target)
    if recognize is None:
        return False
    arguments = _bound(fx_node)
    if arguments.get("self", arguments.get("input")) not in tracer.result:
        return False  # an operation on weights alone
    if not example_size(fx_node) and fx_node.target is not BATCH_NORM:  # which gives a tuple
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


def _linear(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    if len(example_size(fx_node)) != 1:
        return False
    weights = tracer.named({"weight": a["weight"], "bias": a["bias"]})
    tracer.add(fx_node, ops.Linear(), [tracer.result[a["input"]]], weights)
    return True


def _conv(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    if len(example_size(fx_node)) != 3:
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


def _batch_norm(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
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


def _activation(function: str, *roles: str) -> Callable[[Tracer, Any, dict[str, Any]], bool]:
    def recognize(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
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


def _relu6(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    op = ops.Activation(function="clamp", parameters=(0.0, 6.0))
    tracer.add(fx_node, op, [tracer.result[a["self"]]])
    return True


def _prelu(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    slope, channels = tracer.tensor(a["weight"]), example_size(fx_node)[0]
    if slope.numel() == channels:
        name = tracer.weight(a["weight"])
    else:  # one slope for all channels
        name = tracer.new_weight(f"{path_of(fx_node)}.slope", slope.detach().expand(channels))
    tracer.add(fx_node, ops.PReLU(), [tracer.result[a["self"]]], {"slope": name})
    return True


def _max_pool(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    op = ops.Pool(
        function="max",
        kernel=_pair(a["kernel_size"]),
        stride=_pair(a["stride"] or a["kernel_size"]),
        padding=_pair(a["padding"]),
        dilation=_pair(a["dilation"]),
        ceil=a["ceil_mode"],
    )
    return _pool(tracer, fx_node, a, op)


def _average_pool(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
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


def _adaptive_average(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    size, out = example_size(a["self"])[1:], example_size(fx_node)[1:]
    if len(out) != 2 or any(n % m for n, m in zip(size, out, strict=True)):
        return False  # windows of unequal size
    kernel = (size[0] // out[0], size[1] // out[1])
    return _pool(tracer, fx_node, a, ops.Pool(function="average", kernel=kernel, stride=kernel))


def _mean(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    size = example_size(a["self"])
    if len(size) != 3 or sorted(d % 4 for d in a["dim"] or ()) != [2, 3] or a["dtype"]:
        return False
    _pool(tracer, fx_node, a, ops.Pool(function="average", kernel=size[1:], stride=size[1:]))
    if not a["keepdim"]:
        tracer.add(fx_node, ops.Flatten(), [tracer.result[fx_node]], name=f"{fx_node.name}_flat")
    return True


def _pool(tracer: Tracer, fx_node: Any, a: dict[str, Any], op: ops.Pool) -> bool:
    if len(example_size(a["self"])) != 3:
        return False
    tracer.add(fx_node, op, [tracer.result[a["self"]]])
    return True


def _flatten(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    before, after = example_size(a["self"]), example_size(fx_node)
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


def _add(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    other = a["other"]
    if (
        a["alpha"] != 1
        or other not in tracer.result
        or example_size(other) != example_size(a["self"])
    ):
        return False
    if not example_size(other):
        return False
    tracer.add(fx_node, ops.Add(), [tracer.result[a["self"]], tracer.result[other]])
    return True


def _softmax(tracer: Tracer, fx_node: Any, a: dict[str, Any]) -> bool:
    if a["dim"] % a["self"].meta["val"].ndim != 1 or a["dtype"] is not None:
        return False
    op = ops.Softmax(log=fx_node.target is aten.log_softmax.int)
    tracer.add(fx_node, op, [tracer.result[a["self"]]])
    return True


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


RECOGNIZERS: dict[Any, Callable[[Tracer, Any, dict[str, Any]], bool]] = {
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
