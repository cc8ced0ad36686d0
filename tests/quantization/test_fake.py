"""Fake quantization: the same numbers as the integers, and the gradients of what is not rounded."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import ellzero as ez
from ellzero.quantization.fake import FakeNetwork
from small import residual, tensors_equal


def outputs(fake: FakeNetwork, x: Tensor) -> Tensor:
    return functional_call(fake.network, fake.rounded(), (x,))


@pytest.mark.parametrize("seed", [0, 1])
def test_it_computes_what_the_integers_compute(seed):
    """In floats, where a sum that is all but halfway between two steps may round the other way."""
    model, x = residual(seed), torch.randn(64, 2, 8, 8)
    form = ez.quantize(model, activations=8, data=x)
    expected = form.source.ended(form.model)(x)
    found = outputs(FakeNetwork(form.source), x).detach()
    assert (found == expected).float().mean() > 0.95
    assert (found - expected).abs().mean() < 0.1 * (expected - model(x)).abs().mean()
    torch.testing.assert_close(found.sum(1), torch.ones(64))  # the softmax is there


def test_what_was_not_trained_gives_the_same_integers():
    model, x = residual(), torch.randn(64, 2, 8, 8)
    before = copy.deepcopy(model)
    form = ez.quantize(model, activations=8, data=x)
    fake = FakeNetwork(form.source)
    outputs(fake, x).sum().backward()
    assert tensors_equal(fake.trained().integers(), form.model)
    assert tensors_equal(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_are_those_of_the_network_that_is_not_rounded():
    """Finite differences of the floats, which are near, as the rounding is fine."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(200, 5)
    form = ez.quantize(model, activations=8, data=x, ranges="minmax")
    fake = FakeNetwork(form.source)
    (outputs(fake, x) ** 2).mean().backward()

    exact = copy.deepcopy(model).double()
    found, expected = [], []
    for layer in fake.layers:
        units = layer.floats()
        for name, parameter in zip(layer.names, layer.parameters, strict=True):
            assert parameter.grad is not None
            with torch.no_grad():  # a parameter is in steps: float = parameter * unit
                unit = float(units[name].flatten()[0] / parameter.flatten()[0])
            found.append(float(parameter.grad.flatten()[0]) / unit)
            entry = exact.get_parameter(name).data.view(-1)[:1]
            losses = []
            for change in (1e-5, -2e-5):
                entry += change
                losses.append(float((exact(x.double()).detach() ** 2).mean()))
            entry += 1e-5
            expected.append((losses[0] - losses[1]) / 2e-5)
    largest = max(map(abs, expected))
    assert found == pytest.approx(expected, rel=0.05, abs=0.02 * largest)


def one_layer(weight: Any, x: Any) -> FakeNetwork:
    """A layer without bias, calibrated on a batch, all of whose values the ranges hold."""
    weight = torch.tensor(weight)
    layer = nn.Linear(weight.shape[1], len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return FakeNetwork(
        ez.quantize(layer, activations=8, data=torch.tensor(x), ranges="minmax").source
    )


def test_values_outside_of_their_range_give_no_gradient():
    fake = one_layer([[1.0], [2.0]], [[0.0], [1.0]])  # results of 0 to 2
    y = outputs(fake, torch.tensor([[0.5]]))
    assert y.tolist() == [pytest.approx([0.5, 1.0], abs=2 / 255)]
    y.sum().backward()
    (weight,) = fake.parameters
    assert weight.grad is not None
    # d y / d (weight in steps) = x * step, the steps 1 / 127 and 2 / 127
    assert weight.grad.flatten().tolist() == pytest.approx([0.5 / 127, 1 / 127], rel=0.01)
    with torch.no_grad():
        weight *= torch.tensor([[1.0], [5.0]])  # 5 where 2 is the end of the range
    weight.grad = None
    y = outputs(fake, torch.tensor([[0.5]]))
    assert float(y.detach()[0, 1]) == pytest.approx(2, rel=0.01)
    y.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad[0]) > 0
    assert float(weight.grad[1]) == 0


def test_zeros_of_the_integers_have_no_gradient():
    # 0.003 is less than half a step of 1 / 127
    fake = one_layer([[1.0, 0.003, 0.0, -0.5]], [[1.0] * 4, [0.0] * 4])
    outputs(fake, torch.full((1, 4), 0.5)).sum().backward()
    (weight,) = fake.parameters
    assert weight.grad is not None
    assert (weight.grad != 0).tolist() == [[True, False, False, True]]
    (rounded,) = fake.rounded().values()
    torch.testing.assert_close(rounded.detach() * 127, torch.tensor([[127.0, 0.0, 0.0, -64.0]]))
