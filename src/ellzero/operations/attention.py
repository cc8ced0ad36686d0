"""Scaled dot product attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ellzero.c.arrays import c_float
from ellzero.c.kernel import Context, strides
from ellzero.c.text import block, loop
from ellzero.errors import InputError
from ellzero.operations.axes import Axes, letters
from ellzero.operations.call import Call, aten, is_truth, result_of
from ellzero.operations.constant import Constant
from ellzero.operations.expand import repeated
from ellzero.operations.layout import Layout
from ellzero.operations.operation import FUNCTION, Operation, Recognized, Recognizer
from ellzero.operations.pairwise import aligned
from ellzero.operations.reshape import Reshape
from ellzero.operations.shapes import Number
from ellzero.tensors import Shape


class Attention(Operation):
    """`softmax(scale q k^T + mask) v` for each head: q (..., t, d), k (..., s, d), v (..., s, e).

    A fourth input is the mask (..., t, s); its axes of size 1 go with each index. It is added to
    the scores, or where it says which keys are seen, those where it is 0 are not; of a query that
    sees none the result is 0. Causal: query t sees the keys up to t alone.

    Source: Vaswani et al., Attention is all you need, 2017, equation 1.
    """

    kind: Literal["attention"] = "attention"
    scale: Number
    causal: bool = False
    mask: Literal["added", "seen"] = "added"
    ARITY = None
    ANY_LAYOUT = True
    C = "body"
    FINISHES = True

    @classmethod
    def recognizers(cls) -> Mapping[Any, Recognizer]:
        return {aten.scaled_dot_product_attention.default: _attention}

    def run(self, inputs: Sequence[Tensor], weights: Mapping[str, Tensor]) -> Tensor:
        q, k, v, *masks = inputs
        if q.ndim > 4:  # a mask's axes of size 1 are as long as the others before they become one
            masks = [m.expand(len(m), *q.shape[1:-2], *m.shape[-2:]) for m in masks]
        # with one axis of heads, as an ONNX file wants it
        q, k, v, *masks = (
            x.unsqueeze(1) if x.ndim == 3 else x.flatten(1, x.ndim - 3) for x in (q, k, v, *masks)
        )
        mask = masks[0] if masks else None
        if mask is not None and self.mask == "seen":
            mask = mask.bool()
        mixed = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=self.causal, scale=self.scale
        )
        if mask is not None and mask.dtype == torch.bool:
            # 0 is what torch gives where no key is seen; an ONNX file has to be told
            mixed = mixed.masked_fill(~mask.any(-1, keepdim=True), 0)
        return mixed.reshape(-1, *inputs[0].shape[1:-1], v.shape[-1])

    def shape(self, inputs: Sequence[Shape], weights: Mapping[str, Shape]) -> Shape:
        if not 3 <= len(inputs) <= 4:
            raise InputError(
                f"{len(inputs)} inputs; expected queries, keys, values, perhaps a mask"
            )
        q, k, v, *masks = inputs
        fits = len(q) > 1 and q[:-2] == k[:-2] == v[:-2] and q[-1] == k[-1] and k[-2] == v[-2]
        if not fits:
            raise InputError(f"queries {q}, keys {k} and values {v} do not go together")
        scores = (*q[:-1], k[-2])
        for mask in masks:
            if len(mask) != len(scores) or any(
                m not in (1, n) for m, n in zip(mask, scores, strict=True)
            ):
                raise InputError(f"a mask {mask} for scores {scores}")
        return (*q[:-1], v[-1])

    def work(self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape) -> int:
        """Of each score: its product, what a softmax does to it, its share of a value."""
        q, k, v, *_ = inputs
        return math.prod(q[:-1]) * k[-2] * (q[-1] + FUNCTION + v[-1])

    def workspace(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> int:
        """All scores, before the softmax and behind it, and a mask for each."""
        q, k, *_ = inputs
        return super().workspace(inputs, weights, output) + 3 * math.prod(q[:-1]) * k[-2]

    def axes(
        self, inputs: Sequence[Shape], weights: Mapping[str, Shape], output: Shape
    ) -> Axes | None:
        """A head leaves with its queries, keys and values, a value's feature alone.

        Causal ones are queries by their place, so that all of them stay.
        """
        heads = letters(len(output) - 2)
        read = [f"{heads} query inner", f"{heads} key inner", f"{heads} key value"]
        names = [*heads.split(), "query", "key"]
        for mask in inputs[3:]:
            pairs = zip(mask, names, strict=True)
            read.append(" ".join(name if size > 1 else "1" for size, name in pairs))
        return Axes(tuple(read), f"{heads} query value", whole="key inner" + " query" * self.causal)

    def why_whole(self) -> str:
        return "attention depends on every key"

    def c_body(self, context: Context) -> str:
        """Row by row, over the keys as they come: a sum so far is scaled where the maximum rises.

        So no scores are stored (Milakov and Gimelshein, Online normalizer calculation for softmax,
        2018).
        """
        (*heads, queries, inner), (keys, values) = context.inputs[0], context.inputs[2][-2:]
        count = f"t + 1 < {keys} ? t + 1 : {keys}" if self.causal else str(keys)
        score = loop("d", inner, f"score += x[t * {inner} + d] * x2[s * {inner} + d];")
        hidden = masked = ""
        total = "total"
        if len(context.inputs) > 3:
            value = f"x4[{_mask_place(context.inputs[3])}]"
            if self.mask == "seen":
                hidden = block(f"if ({value} == 0.0f)", "continue;") + "\n"
                total = "(total == 0.0f ? 1.0f : total)"
            else:
                masked = f"score += {value};\n"
        rise = block(
            "if (score > top)",
            "const float scale = expf(top - score);\ntotal *= scale;\n"
            + loop("e", values, "y[e] *= scale;")
            + "\ntop = score;",
        )
        each = (
            f"{hidden}float score = 0.0f;\n{score}\n"
            f"score *= {c_float(self.scale)};\n{masked}{rise}\n"
            "const float share = expf(score - top);\ntotal += share;\n"
            + loop("e", values, f"y[e] += share * x3[s * {values} + e];")
        )
        over = block(f"for (int s = 0; s < ({count}); ++s)", each)
        channel = f"m / {math.prod(heads[1:])}" if heads else "t"
        store = loop("e", values, context.finish(f"y[e] / {total}", "y[e]", channel))
        clear = loop("e", values, "y[e] = 0.0f;")
        start = f"float top = -HUGE_VALF;\nfloat total = 0.0f;\n{clear}"
        body = f"{start}\n{over}\n{store}\ny += {values};"
        rows = loop("t", queries, body)
        if not heads:
            return rows
        steps = f"x += {queries * inner};\nx2 += {keys * inner};\nx3 += {keys * values};"
        return loop("m", math.prod(heads), f"{rows}\n{steps}")


def _mask_place(mask: Shape) -> str:
    """C expression of where a mask has the value of head `m`, query `t` and key `s`."""
    steps = strides(mask)
    parts, below = (
        [f"{i} * {n}" for i, n, k in zip("ts", steps[-2:], mask[-2:], strict=True) if k > 1],
        1,
    )
    for size, step in zip(reversed(mask[:-2]), reversed(steps[:-2]), strict=True):
        parts += [f"m / {below} % {size} * {step}"] * (size > 1)
        below *= size
    return " + ".join(parts) or "0"


def _attention(call: Call) -> Recognized | None:
    q, k, v = (call.layout(role) for role in ("query", "key", "value"))
    if q is None or k is None or v is None or min(len(x.dims) for x in (q, k, v)) < 2:
        return None
    inputs: list[Any] = [call[role] for role in ("query", "key", "value")]
    if call["enable_gqa"]:
        grouped = _with_all_heads(call, q, k, v)
        if grouped is None:
            return None
        inputs[1:] = grouped
        k, v = (said.layout or layout for said, layout in zip(grouped, (k, v), strict=True))
    matrices = [layout.axis(dim) for layout in (q, k, v) for dim in (-2, -1)]
    if None in matrices or not q.dims[:-2] == k.dims[:-2] == v.dims[:-2] or call["dropout_p"]:
        return None
    operation = Attention(
        scale=call["scale"] if call["scale"] is not None else 1 / math.sqrt(q.shape[-1]),
        causal=call["is_causal"],
    )
    if call["attn_mask"] is not None:
        masked = _masked(call, operation, Layout((*q.dims[:-1], k.dims[-2])))
        if masked is None or call["is_causal"]:
            return None
        operation, masks = masked
        inputs += masks
    return Recognized(operation, inputs, layout=Layout((*q.dims[:-1], v.dims[-1])))


def _with_all_heads(call: Call, q: Layout, *layouts: Layout) -> list[Recognized] | None:
    """Keys and values of fewer heads than the queries: each is that of several heads in a row."""
    said = []
    for role, layout in zip(("key", "value"), layouts, strict=True):
        axis, heads = layout.axis(-3), q.axis(-3)
        if axis is None or heads is None or q.shape[heads] % layout.shape[axis]:
            return None
        said.append(repeated(call, role, -3, q.shape[heads] // layout.shape[axis]))
    return None if None in said else said


def _masked(
    call: Call, operation: Attention, scores: Layout
) -> tuple[Attention, list[Recognized]] | None:
    """Attention with a mask, and the mask as its input; None where it cannot be said as that."""
    layout, known = call.layout("attn_mask"), call.constant("attn_mask")
    size = None if layout is None else aligned(layout, scores)
    if size is None:
        return None
    if known is None:
        form: Literal["added", "seen"] = "seen" if is_truth(call["attn_mask"]) else "added"
        mask = Recognized(Reshape(size=size), [call["attn_mask"]])
        return operation.model_copy(update={"mask": form}), [mask]
    hidden = ~known if known.dtype == torch.bool else known == -math.inf
    if hidden.all(-1).any():  # a query without a key has no result
        return None
    dtype = result_of(call["query"]).dtype
    added = torch.zeros(known.shape, dtype=dtype) if known.dtype == torch.bool else known.to(dtype)
    *_, rows, columns = size
    after = torch.ones(rows, columns, dtype=torch.bool).triu(1)
    adds_nothing = not added.masked_fill(hidden, 0).any()
    if adds_nothing and rows == columns and bool((hidden.view(-1, rows, columns) == after).all()):
        return operation.model_copy(update={"causal": True}), []
    if adds_nothing and not hidden.any():
        return operation, []
    # a number that C and files can hold; its share is 0 beside any other key's
    value = added.masked_fill(hidden, torch.finfo(dtype).min).reshape(size)
    return operation, [Recognized(Constant(), [], {"value": value})]
