"""What sets Hoyer-square apart from other penalties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ellzero as ez
from cases import fill, small_network

pytestmark = pytest.mark.filterwarnings("ignore:add_gradient")  # there is no loss here

WEIGHTS = st.lists(st.just(0.0) | st.floats(-3, 3, width=32), max_size=30)


def of(values, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@given(values=WEIGHTS, strength=st.floats(0.1, 10))
def test_lies_between_one_and_the_count_of_nonzeros(values, strength):
    measure = ez.HoyerSquare(strength).value(of(values)).item() / strength
    nonzeros = sum(v != 0 for v in values)
    assert min(nonzeros, 1) * (1 - 1e-12) <= measure <= nonzeros * (1 + 1e-12)


@pytest.mark.parametrize(
    ("values", "measure"),
    [([7.0], 1), ([0.0, -3.0, 0.0], 1), ([2.0, -2.0, 2.0, 0.0], 3), ([1.0, 1.0, 2.0], 16 / 6)],
)
def test_reaches_its_bounds(values, measure):
    assert ez.HoyerSquare(1.0).value(of(values)).item() == pytest.approx(measure, rel=1e-15)


@pytest.mark.parametrize("factor", [1e-150, 1e-3, -2.0, 1e150])
def test_does_not_change_with_the_scale_of_the_weights(factor):
    penalty, w = ez.HoyerSquare(0.7), of([0.0, 1.0, -2.0, 3.0])
    torch.testing.assert_close(penalty.value(factor * w), penalty.value(w), rtol=1e-14, atol=0)
    # so the gradient of c w is that of w over c, and orthogonal to the weights
    torch.testing.assert_close(
        penalty.gradient(factor * w) * factor, penalty.gradient(w), rtol=1e-13, atol=0
    )
    assert (penalty.gradient(w) @ w).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("tiny", [1e-25, 1e25])
def test_squares_neither_underflow_nor_overflow(tiny):
    # S = 4 tiny, Q = 10 tiny^2, S/Q = 2/5 / tiny; the gradient is worked out in the docstring
    w = of([0.0, tiny, -3 * tiny], torch.float32).requires_grad_()
    penalty = ez.HoyerSquare(0.5)
    value = penalty.value(w)
    value.backward()
    assert value.item() == pytest.approx(0.8)
    assert w.grad is not None
    for gradient in (w.grad, penalty.gradient(w.detach())):
        assert (gradient * tiny).tolist() == pytest.approx([0, 0.24, 0.08], rel=1e-5)


def test_the_gradient_of_a_large_layer_of_half_precision():
    w = torch.ones(400, 400, dtype=torch.float16)  # their sum is beyond 65,504
    w[0, 0] = 0.5
    gradient = ez.HoyerSquare(1.0).gradient(w)
    assert gradient.dtype == torch.float16
    # S/Q = 1 within 2e-6: 2 (1 - 1/2) there, 2 (1 - 1) elsewhere
    assert gradient[0, 0].item() == pytest.approx(1, rel=1e-3)
    assert gradient[1:].abs().max() < 1e-5


def test_pulls_small_weights_to_zero_and_pushes_large_ones_away():
    # S/Q = 6/14, so the border is 7/3
    gradient = ez.HoyerSquare(1.0).gradient(of([1.0, -2.0, 3.0]))
    assert gradient.sign().tolist() == [1, -1, -1]


def test_a_descent_on_it_leaves_one_weight_and_the_norm():
    w = of([0.5, -0.6, 0.7, -1.0])
    for _ in range(4000):
        w -= 1e-3 * ez.HoyerSquare(1.0).gradient(w)
    assert w[:3].abs().max() < 0.01  # they go back and forth within a step of zero
    assert w.norm().item() == pytest.approx(2.1**0.5, rel=1e-2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_each_layer_is_measured_by_itself(memory_format):
    model = small_network().to(memory_format=memory_format)
    with torch.no_grad():
        for name, count in (("0.weight", 5), ("4.weight", 7), ("6.weight", 2)):
            w = model.get_parameter(name)
            values = torch.zeros(w.numel())
            values[:count] = 0.3
            fill(w, values)
    regularizer = ez.Regularizer(model, ez.HoyerSquare(2.0))
    assert regularizer.value().item() == pytest.approx(2 * (5 + 7 + 2))
    regularizer.add_gradient()
    # nonzeros of equal magnitude are at Q/S, where they feel nothing, as zeros do
    for w in regularizer.weights.values():
        assert w.grad is not None
        assert w.grad.abs().max() < 1e-12
