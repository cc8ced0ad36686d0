"""What a network computes that is the same for every input: masks, positions, first zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ellzero.operations.call import BATCHES, Values
from ellzero.operations.layout import Layout, times

_WITHOUT_VALUES = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided"}


def computed_of(fx_node: fx.Node, values: Values) -> tuple[Tensor, ...] | None:
    """What a call gives for batches of `BATCHES` examples, if no input and no weight changes it."""
    result, target = fx_node.meta.get("val"), fx_node.target
    if not isinstance(result, Tensor) or not isinstance(target, torch._ops.OpOverload):
        return None
    is_random = torch.Tag.nondeterministic_seeded in target.tags
    if (
        result.is_complex()
        or is_random
        or target._schema.is_mutable
        or target._schema.name in _WITHOUT_VALUES
    ):
        return None
    for source in fx_node.all_input_nodes:
        is_known = source in values.constants or source in values.counted
        if not is_known and not _is_number(source.meta.get("val")):
            return None
    return tuple(_computed(fx_node, values, batch) for batch in BATCHES)


def constant_of(
    fx_node: fx.Node, computed: tuple[Tensor, ...], batch: Any
) -> tuple[Tensor, Layout] | None:
    """One example of what a call gives, and how it lies, if each example of each batch is that."""
    dims = [
        (size if isinstance(size, int) else None,)
        for size in fx_node.meta["val"].shape
        if isinstance(size, int) or times(size, batch) == 1
    ]
    layout = Layout(tuple(dims))
    few, more = computed
    if len(dims) != more.ndim or dims.count((None,)) > 1:
        return None
    if layout.has_batch:
        place = dims.index((None,))
        few, more = few.movedim(place, 0), more.movedim(place, 0)
        few, example = few[0], more[0]
        is_same = torch.equal(more, example.expand_as(more))
    else:
        example, is_same = more, True
    return (example, layout) if is_same and torch.equal(few, example) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | bool | torch.SymInt)


def _computed(fx_node: fx.Node, values: Values, batch: int) -> Tensor:
    """What a call gives for a batch of this size."""

    def value_of(argument: fx.Node) -> Any:
        if argument in values.counted:
            return values.counted[argument][BATCHES.index(batch)]
        if argument in values.constants:
            layout, example = values.layouts[argument], values.constants[argument]
            if not layout.has_batch:
                return example
            return layout.restored(example.expand(batch, *example.shape))
        value = argument.meta["val"]
        if not isinstance(value, torch.SymInt):
            return value
        return int(value.node.expr.xreplace({values.batch.node.expr: batch}))

    args, kwargs = map_arg((fx_node.args, fx_node.kwargs), value_of)
    result = fx_node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
    return result.contiguous()
