"""Operations: each one's shape is what torch gives, and it computes what torch's module does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ellzero as ez
from activation_cases import ACTIVATIONS, OF_POSITIVES, activation
from ellzero import operations as ops
from ellzero.operations.activation import FUNCTIONS

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
margin = st.tuples(st.integers(0, 2), st.integers(0, 2))
size = st.tuples(st.integers(1, 9), st.integers(1, 9))


def check(op: Any, module: nn.Module, shape: tuple[int, ...], weights: dict[str, Tensor]) -> None:
    """The same shape, or the same refusal, as torch's; and the same values, if there are any."""
    x = torch.randn(2, *shape)
    sizes = {role: tuple(weight.shape) for role, weight in weights.items()}
    try:
        expected = module(x)
    except RuntimeError:
        with pytest.raises(ez.InputError):
            op.shape([shape], sizes)
        return
    assert op.shape([shape], sizes) == tuple(expected.shape[1:])
    assert torch.equal(op.run([x], weights), expected)


@settings(max_examples=200)
@given(
    size=size,
    kernel=pair,
    stride=pair,
    padding=margin,
    dilation=pair,
    groups=st.integers(1, 3),
    bias=st.booleans(),
)
def test_convolutions(size, kernel, stride, padding, dilation, groups, bias):
    module: Any = nn.Conv2d(
        2 * groups, groups, kernel, stride, padding, dilation, groups=groups, bias=bias
    )
    op = ops.Conv(stride=stride, padding=padding, dilation=dilation, groups=groups)
    check(op, module, (2 * groups, *size), dict(module.named_parameters()))


@settings(max_examples=200)
@given(
    size=size,
    kernel=pair,
    stride=pair,
    padding=margin,
    more=margin,
    dilation=pair,
    groups=st.integers(1, 3),
    bias=st.booleans(),
)
def test_transposed_convolutions(size, kernel, stride, padding, more, dilation, groups, bias):
    settings: Any = (kernel, stride, padding, more, groups, bias, dilation)
    module: Any = nn.ConvTranspose2d(2 * groups, groups, *settings)
    op = ops.ConvTransposed(
        stride=stride, padding=padding, output_padding=more, dilation=dilation, groups=groups
    )
    check(op, module, (2 * groups, *size), dict(module.named_parameters()))


@settings(max_examples=200)
@given(
    size=size,
    result=size,
    scale=st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
    by_scale=st.booleans(),
    mode=st.sampled_from(["nearest", "linear"]),
    corners=st.booleans(),
)
def test_upsampling(size, result, scale, by_scale, mode, corners):
    given: Any = {"scale": scale} if by_scale else {"size": result}
    told: Any = {"scale_factor": scale} if by_scale else {"size": result}
    linear: Any = {"mode": "bilinear", "align_corners": corners} if mode == "linear" else {}
    op = ops.Upsample(mode=mode, align_corners=corners, **given)
    check(op, nn.Upsample(**told, **linear), (2, *size), {})


@settings(max_examples=300)
@given(size=size, kernel=pair, stride=pair, padding=margin, dilation=pair, ceil=st.booleans())
def test_maximum_pools(size, kernel, stride, padding, dilation, ceil):
    module = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    op = ops.Pool(
        function="max", kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil=ceil
    )
    check(op, module, (2, *size), {})


@settings(max_examples=300)
@given(
    size=size,
    kernel=pair,
    stride=pair,
    padding=margin,
    ceil=st.booleans(),
    count=st.booleans(),
)
def test_average_pools(size, kernel, stride, padding, ceil, count):
    module = nn.AvgPool2d(kernel, stride, padding, ceil, count_include_pad=count)
    op = ops.Pool(
        function="average",
        kernel=kernel,
        stride=stride,
        padding=padding,
        ceil=ceil,
        count_padding=count,
    )
    check(op, module, (2, *size), {})


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), bias=st.booleans())
def test_dense_layers(rows, columns, bias):
    module = nn.Linear(columns, rows, bias=bias)
    check(ops.Linear(), module, (columns,), dict(module.named_parameters()))


def test_every_activation_is_tried():
    assert list(ACTIVATIONS) == list(FUNCTIONS)


@pytest.mark.parametrize("shape", [(5,), (3, 2, 4), (3, 6)], ids=str)
@pytest.mark.parametrize("function", ACTIVATIONS)
def test_activations(function, shape):
    module, parameters = ACTIVATIONS[function]
    op = activation(function)
    assert op.shape([shape], {}) == shape
    x = 4 * torch.randn(64, *shape)
    x = x.abs() + 0.1 if function in OF_POSITIVES else x
    assert torch.equal(op.run([x], {}), module(x))
    assert op.run([torch.full_like(x, torch.nan)], {}).isnan().all()
    with pytest.raises(ez.InputError, match=f"parameters; expected {len(parameters)}"):
        ops.Activation(function=function, parameters=(*parameters, 1.0)).shape([shape], {})


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4), (3, 6)], ids=str)
def test_elementwise_operations_with_weights(shape):
    slope, scale, shift = torch.tensor([[0.1, 2, -1], [1, 0, -3], [5, 6, 7]])
    module = nn.PReLU(3)
    module.weight.data = slope
    check(ops.PReLU(), module, shape, {"slope": module.weight})
    x = torch.randn(2, *shape)
    y = ops.Affine().run([x], {"scale": scale, "shift": shift})
    assert torch.equal(y[:, 1], torch.full_like(x[:, 1], 6))
    assert torch.equal(y[:, 2], x[:, 2] * -3 + 7)
    assert ops.Affine().shape([shape], {"scale": (3,), "shift": (3,)}) == shape


def test_operations_without_weights():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(ops.Flatten().run([x], {}), nn.Flatten()(x))
    assert ops.Flatten().shape([(3, 4, 5)], {}) == (60,)
    assert torch.equal(ops.Softmax().run([x], {}), nn.Softmax(1)(x))
    assert torch.equal(ops.Softmax(log=True).run([x], {}), nn.LogSoftmax(1)(x))
    assert torch.equal(ops.Add().run([x, x], {}), 2 * x)
    indices = torch.tensor([0, 2])
    assert torch.equal(ops.Select().run([x], {"indices": indices}), x[:, ::2])
    assert ops.Select().shape([(3, 4, 5)], {"indices": (2,)}) == (2, 4, 5)


BAD_SHAPES = {
    "4 x 3 for 2 features": (ops.Linear(), [(2,)], {"weight": (4, 3)}),
    "the bias has shape": (ops.Linear(), [(3,)], {"weight": (4, 3), "bias": (3,)}),
    "the weight has 4 dimensions; expected 2": (ops.Linear(), [(3,)], {"weight": (4, 3, 1, 1)}),
    "4 x 3 channels in 1 groups for 2": (ops.Conv(), [(2, 5, 5)], {"weight": (4, 3, 1, 1)}),
    "3 x 1 channels in 2 groups": (ops.Conv(groups=2), [(2, 5, 5)], {"weight": (3, 1, 1, 1)}),
    "the input has 1 dimensions; expected 3": (ops.Conv(), [(2,)], {"weight": (4, 2, 1, 1)}),
    "a kernel of 6": (ops.Conv(), [(2, 5, 6)], {"weight": (4, 2, 6, 6)}),
    "a kernel of 3 .dilation 3. for 6": (
        ops.Conv(dilation=(3, 3)),
        [(2, 6, 7)],
        {"weight": (4, 2, 3, 3)},
    ),
    r"stride is .1,., padding is .0, 0.; expected": (
        ops.Conv(stride=(1,), dilation=(1,)),
        [(2, 9)],
        {"weight": (4, 2, 3)},
    ),
    r"kernel is .2,., stride is .2, 2.; expected": (
        ops.Pool(function="max", kernel=(2,), stride=(2, 2)),
        [(2, 9)],
        {},
    ),
    "of 4 channels in 1 groups for 3": (
        ops.ConvTransposed(),
        [(3, 5, 5)],
        {"weight": (4, 2, 1, 1)},
    ),
    "an output padding of 2 for a stride of 2": (
        ops.ConvTransposed(stride=(1, 2), output_padding=(0, 2)),
        [(4, 5, 5)],
        {"weight": (4, 2, 1, 1)},
    ),
    "a kernel of 1 and a padding of 3 for 5": (
        ops.ConvTransposed(padding=(0, 3)),
        [(4, 7, 5)],
        {"weight": (4, 2, 1, 1)},
    ),
    "the last 3 axes of": (ops.LayerNorm(count=3), [(4, 5)], {}),
    "4 channels in 3 groups": (ops.GroupNorm(groups=3), [(4, 5)], {}),
    "places of .4,., which has none": (ops.InstanceNorm(), [(4,)], {}),
    r"scale has shape .5,.; expected .4, 5.": (
        ops.LayerNorm(count=2),
        [(4, 5)],
        {"scale": (5,), "shift": (4, 5)},
    ),
    "shift has shape .5,.; expected .4,.": (
        ops.GroupNorm(groups=2),
        [(4, 5)],
        {"scale": (4,), "shift": (5,)},
    ),
    "both a size and a scale, or neither": (ops.Upsample(mode="nearest"), [(2, 3)], {}),
    "none are left": (ops.Upsample(mode="nearest", scale=(0.3,)), [(2, 3)], {}),
    "6 channels; expected a multiple of 4": (ops.PixelShuffle(factor=2), [(6, 3, 3)], {}),
    "4 x 6 places; expected multiples of 3": (ops.PixelUnshuffle(factor=3), [(2, 4, 6)], {}),
    "scale has shape": (ops.Affine(), [(3,)], {"scale": (1,), "shift": (3,)}),
    "shift has shape": (ops.Affine(), [(3,)], {"scale": (3,), "shift": (2,)}),
    "the slope has shape": (ops.PReLU(), [(3,)], {"slope": (1,)}),
    "4 indices into axis 0 of .3,": (ops.Select(), [(3,)], {"indices": (4,)}),
    "more than half": (
        ops.Pool(function="max", kernel=(3, 3), stride=(1, 1), padding=(2, 0)),
        [(2, 9, 9)],
        {},
    ),
    "no dilation": (
        ops.Pool(function="average", kernel=(2, 2), stride=(1, 1), dilation=(2, 2)),
        [(2, 9, 9)],
        {},
    ),
    "values of .3,. and of .4,. do not go together": (ops.Add(), [(3,), (4,)], {}),
    "clamp from 2.0 to 1.0": (ops.Activation(function="clamp", parameters=(2, 1)), [(3,)], {}),
}


@pytest.mark.parametrize("message", BAD_SHAPES)
def test_shapes_that_do_not_go_together(message):
    op, inputs, weights = BAD_SHAPES[message]
    with pytest.raises(ez.InputError, match=message):
        op.shape(inputs, weights)
